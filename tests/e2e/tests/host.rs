//! The host story with the programs that KINGLET_PROGRAMS names: a folder with `cloudcore`, `edgecore`, and `images/`.

use std::path::{Path, PathBuf};

use e2e::{Programs, containerd, host, steps::Steps};

#[test]
fn a_pod_survives_agent_and_cloud() {
    let name = "host story";
    let Some(dir) = std::env::var_os("KINGLET_PROGRAMS").map(PathBuf::from) else {
        return containerd::not_run(
            name,
            "KINGLET_PROGRAMS is not set; `cargo xtask test --suite host` sets it",
        );
    };
    if let Some(why) = containerd::missing() {
        return containerd::not_run(name, &why);
    }
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cloud/deploy/samples");
    let kubectl = std::env::var_os("KINGLET_KUBECTL").map_or_else(|| PathBuf::from("kubectl"), PathBuf::from);
    let programs = Programs {
        cloudcore: dir.join("cloudcore"),
        edgecore: dir.join("edgecore"),
        mapper: dir.join("mapper"),
        kubectl,
        images: dir.join("images"),
        samples,
    };
    let scratch = tempfile::tempdir().unwrap();
    host::run(&programs, scratch.path(), &mut Steps::default()).unwrap_or_else(|error| panic!("{error:?}"));
}
