fn main() {
    let row = std::env::args().nth(1).unwrap_or_default();
    let programs = e2e::Programs {
        cloudcore: "/work/wt/stockcloud/target/debug/cloudcore".into(),
        edgecore: std::env::var("EC").unwrap_or("/work/wt/stockcloud/target/debug/edgecore".into()).into(),
        mapper: "/work/wt/stockcloud/target/debug/mapper".into(),
        kubectl: "/usr/bin/kubectl".into(),
        images: "/tmp/sc/images".into(),
        samples: "/work/wt/stockcloud/cloud/deploy/samples".into(),
    };
    let dir = std::path::PathBuf::from(format!("/tmp/sc/run-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let told = interop::run(&programs, &dir, &row).unwrap();
    println!("{told:#?}");
}
