use super::*;

const GOOD: &str = r#"# a comment
cloud = "192.168.1.10:10000"
join_port = 10002
token = "abc.def.ghi" # once
node_name = "line3-{serial}"
ntp = ["192.168.1.1:1123", "time.example.org"]

[labels]
site = "hall3"
"kinglet.io/line" = "3"

[network]
interface = "eth1"
address = "192.168.1.20/24"
gateway = "192.168.1.1"
dns = ["192.168.1.1"]
"#;

#[test]
fn every_key_is_read() {
    let read = parse(GOOD.as_bytes()).expect("valid");
    assert_eq!((read.cloud.as_str(), read.join_port), ("192.168.1.10:10000", Some(10_002)));
    assert_eq!((read.token.as_str(), read.node_name.as_str()), ("abc.def.ghi", "line3-{serial}"));
    assert_eq!((read.ntp.len(), read.labels["kinglet.io/line"].as_str()), (2, "3"));
    let network = read.network.expect("network");
    assert_eq!(
        (network.interface.as_deref(), network.address),
        (Some("eth1"), Some(([192, 168, 1, 20], 24)))
    );
    assert_eq!((network.gateway, network.dns.len()), (Some([192, 168, 1, 1]), 1));
    let windows = format!("\u{feff}{}", GOOD.replace('\n', "\r\n"));
    assert!(parse(windows.as_bytes()).is_ok(), "as Windows saves it");
    assert!(
        parse(b"").is_ok() && parse(b"# nothing\n").is_ok(),
        "an empty file says nothing, and that is no mistake"
    );
}

#[test]
fn the_example_on_the_card_is_valid() {
    let text = include_str!("../../../mkimage/src/provision-example.toml");
    assert_eq!(parse(text.as_bytes()).expect("valid").join_port, Some(10_002));
    let all: String = text
        .lines()
        .map(|line| {
            line.strip_prefix("# ")
                .filter(|rest| rest.contains(" = ") || rest.starts_with('['))
                .unwrap_or(line)
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let read = parse(all.as_bytes()).expect("valid with every key");
    assert!(read.network.is_some() && !read.ntp.is_empty() && !read.labels.is_empty() && read.realtime);
    assert!(!parse(text.as_bytes()).expect("valid").realtime, "only who asks for it has it");
}

#[test]
fn a_ca_hash_completes_a_token_or_confirms_it() {
    let hash = "0123456789abcdef".repeat(4);
    let token = |text: &str| {
        let file = format!("cloud = \"c:1\"\nca_hash = \"{}\"\ntoken = \"{text}\"\n", hash.to_uppercase());
        parse(file.as_bytes()).unwrap().token
    };
    assert_eq!(token("a.b.c"), format!("{hash}.a.b.c"));
    assert_eq!(token(&format!("{hash}.a.b.c")), format!("{hash}.a.b.c"));
    assert_eq!(token(""), "");
}

#[test]
fn each_mistake_has_its_line_and_its_remedy() {
    let with = |line: &str| format!("# first\ncloud = \"c:1\"\n{line}\n");
    for (text, line, says, remedy) in [
        ("token = \"x\"\n".to_owned(), None, "no cloud", "cloud = \"HOST:10000\""),
        ("\ncloud = \"c\"\n".to_owned(), Some(2), "has no port", "HOST:10000"),
        ("cloud = \"https://c:1\"\n".to_owned(), Some(1), "URL", "HOST:10000"),
        ("cloud = \":1\"\n".to_owned(), Some(1), "host name", "HOST:10000"),
        ("cloud = \"a b:1\"\n".to_owned(), Some(1), "host name", "HOST:10000"),
        ("cloud = \"c:99999\"\n".to_owned(), Some(1), "no port", "HOST:10000"),
        ("cloud = 5\n".to_owned(), Some(1), "expected a string", "provision-example.toml"),
        ("cloud = c:1\n".to_owned(), Some(1), "", "double quotes"),
        (with("tokn = \"x\""), Some(3), "unknown key `tokn`", "remove this key"),
        (with("token = \"x y\""), Some(3), "space", "cloudcore token"),
        (with("token = \"x"), Some(3), "", "double quotes"),
        (with("ca_hash = \"abc\""), Some(3), "not a SHA-256", "before the first dot"),
        (
            with(&format!("ca_hash = \"{}\"\ntoken = \"{}.a.b.c\"", "0".repeat(64), "1".repeat(64))),
            Some(3),
            "another hash",
            "correct ca_hash",
        ),
        (with("join_port = 0"), Some(3), "not a port", "10002"),
        (with("join_port = \"x\""), Some(3), "invalid type", "provision-example.toml"),
        (with("ntp = [\"a b\"]"), Some(3), "ntp server", "host names"),
        (with("[labels]\na = \"b,c\""), Some(4), "label \"a\"", "letters"),
        (with("[labels]\n\"a b\" = \"x\""), Some(4), "label \"a b\"", "letters"),
        (with("[network]\naddress = \"1.2.3.4\""), Some(4), "network.address", "192.168.1.20/24"),
        (with("[network]\naddress = \"1.2.3.4/33\""), Some(4), "network.address", "192.168.1.20/24"),
        (with("[network]\ngateway = \"1.2.3.4\""), Some(4), "need an address", "DHCP"),
        (
            with("[network]\naddress = \"1.2.3.4/24\"\ngateway = \"1.2.4.1\""),
            Some(5),
            "not in the network",
            "correct",
        ),
        (with("[network]\naddress = \"1.2.3.4/24\"\ndns = [\"x\"]"), Some(5), "network.dns", "192.168.1.1"),
        (with("[network]\nadress = \"1.2.3.4/24\""), Some(4), "unknown key `adress`", "remove this key"),
        (with("cloud = \"d:1\""), Some(3), "duplicate", "provision-example.toml"),
        ("cloud = \"c:1\"\ntoken = \"ab".to_owned(), Some(2), "", "cut off"),
    ] {
        let mistake = parse(text.as_bytes()).expect_err(&text);
        assert_eq!(mistake.line, line, "{text}: {mistake:?}");
        assert!(mistake.what.contains(says) && mistake.remedy.contains(remedy), "{text}: {mistake:?}");
        let shown = mistake.to_string();
        assert!(shown.starts_with("provision.toml") && !shown.contains('\n'), "{shown}");
    }
    let cut = parse(&[b'c', 0xff, 0xfe]).expect_err("not text").to_string();
    assert!(cut.contains("not a text file") && cut.contains("write it again"), "{cut}");
    assert!(parse(b"cloud = \"c:1\"\n\0\0\0").expect_err("zeros").what.contains("zero bytes"));
}

#[test]
fn a_file_cut_off_anywhere_says_less_or_is_one_clear_line() {
    for end in 0..GOOD.len() {
        fuzz_provision(&GOOD.as_bytes()[..end]);
        match parse(&GOOD.as_bytes()[..end]) {
            Ok(read) => {
                assert!(["", "192.168.1.10:10000"].contains(&read.cloud.as_str()), "cut at {end}: {read:?}")
            }
            Err(mistake) => {
                assert!(
                    !mistake.remedy.is_empty() && !mistake.to_string().contains('\n'),
                    "cut at {end}: {mistake:?}"
                );
            }
        }
    }
}

#[test]
fn changed_bytes_never_panic_and_blanking_never_fails() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..3000 {
        let mut bytes = GOOD.as_bytes().to_vec();
        for _ in 0..=next() % 4 {
            let at = usize::try_from(next()).expect("64 bits") % bytes.len();
            match next() % 3 {
                0 => bytes[at] = next() as u8,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, next() as u8),
            }
        }
        fuzz_provision(&bytes);
    }
}

#[test]
fn masks() {
    assert_eq!([mask(0), mask(1), mask(24), mask(32)], [0, 0x8000_0000, 0xffff_ff00, 0xffff_ffff]);
}
