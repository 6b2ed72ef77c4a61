use super::*;

fn parse(text: &str) -> Result<Loaded, String> {
    Config::parse(Path::new("edgecore.yaml"), text).map_err(|e| e.to_string())
}

const MINIMAL: &str = "modules:\n  edgeHub:\n    websocket:\n      server: cloud:10000\n";

#[test]
fn kubeedge_defaults_hold_where_the_file_is_silent() {
    let cfg = parse(MINIMAL).unwrap().config;
    assert_eq!(cfg.modules.event_bus.mqtt_mode, 2);
    assert_eq!(cfg.modules.event_bus.mqtt_server_internal, "tcp://127.0.0.1:1884");
    assert_eq!(cfg.modules.edge_hub.heartbeat, 15);
    assert_eq!(cfg.modules.edged.tailored_kubelet_config.max_pods, 110);
    assert_eq!(cfg.store_dir(), Path::new("/var/lib/kubeedge/store"));
}

#[test]
fn a_v1_23_file_loads_without_a_complaint() {
    let text = include_str!("../../tests/data/edgecore-v1.23.yaml");
    let loaded = parse(text).unwrap();
    assert_eq!(loaded.unknown, vec![]);
    let cfg = loaded.config;
    assert_eq!(cfg.node_name(), "line3");
    assert_eq!(cfg.modules.edge_hub.websocket.server, "192.0.2.2:10000");
    assert_eq!(cfg.modules.edged.tailored_kubelet_config.cgroup_driver, "systemd");
    assert_eq!(
        cfg.modules.edged.tailored_kubelet_config.node_status_report_frequency,
        GoDuration::from_secs(300)
    );
}

#[test]
fn unknown_keys_are_named_with_line_and_remedy() {
    let text = format!(
        "{MINIMAL}    hartbeat: 15\n  edged:\n    tailoredKubeletConfig:\n      maxPod: 5\n      evictionSoft: {{a: b}}\nbogus:\n  deep: 1\n"
    );
    let lines: Vec<String> = parse(&text).unwrap().unknown.iter().map(|u| u.to_string()).collect();
    assert_eq!(
        lines,
        [
            "line 5: unknown key modules.edgeHub.hartbeat; did you mean modules.edgeHub.heartbeat?",
            "line 8: unknown key modules.edged.tailoredKubeletConfig.maxPod; did you mean \
             modules.edged.tailoredKubeletConfig.maxPods?",
            "line 10: unknown key bogus; remove it, or look at docs/config.md for the known keys",
        ]
    );
}

#[test]
fn wrong_values_end_in_one_line() {
    for (extra, expected) in [
        ("    heartbeat: many\n", "line 5"),
        ("    heartbeat: 0\n", "modules.edgeHub.heartbeat is 0"),
        ("  eventBus:\n    mqttMode: 3\n", "mqttMode is 3; use 0"),
        ("  edged:\n    tailoredKubeletConfig:\n      cgroupDriver: none\n", "use cgroupfs or systemd"),
        (
            "  edged:\n    tailoredKubeletConfig:\n      runtimeRequestTimeout: 2 minutes\n",
            "is not a duration",
        ),
        ("  edged: [\n", "edgecore.yaml: "),
    ] {
        let error = parse(&format!("{MINIMAL}{extra}")).unwrap_err();
        assert!(error.contains(expected) && !error.contains('\n'), "{extra}: {error}");
    }
    let error = parse("modules: {}\n").unwrap_err();
    assert!(error.contains("modules.edgeHub.websocket.server is missing"), "{error}");
}

#[test]
fn what_join_writes_reads_back() {
    let mut cfg = Config::default();
    cfg.modules.edge_hub.websocket.server = "[2001:db8::1]:10000".into();
    cfg.modules.edged.hostname_override = "no".into();
    cfg.modules.edged.node_labels.insert("site".into(), "a: b # c\n\"".into());
    cfg.modules.event_bus.mqtt_mode = 0;
    let loaded = parse(&render(&cfg)).unwrap();
    assert_eq!(loaded.unknown, vec![]);
    assert_eq!(format!("{:?}", loaded.config), format!("{cfg:?}"));
}

#[test]
fn go_durations() {
    for (text, millis) in
        [("10s", 10_000), ("5m0s", 300_000), ("1h30m", 5_400_000), ("1.5s", 1_500), ("250ms", 250), ("0", 0)]
    {
        assert_eq!(
            GoDuration::parse(text),
            Some(GoDuration(std::time::Duration::from_millis(millis))),
            "{text}"
        );
    }
    for bad in ["", "10", "s", "5 m", "-1s", "1e9h", "1x"] {
        assert_eq!(GoDuration::parse(bad), None, "{bad}");
    }
}

/// Any text is a value or an error, never a panic.
#[test]
fn damaged_files_do_not_panic() {
    let whole = render(&Config::default());
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..300 {
        let mut bytes = whole.clone().into_bytes();
        for _ in 0..4 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (seed >> 33) as usize % bytes.len();
            bytes[at] = b" :\n-{}[]&*!\"'#x"[(seed >> 20) as usize % 15];
        }
        let _ = parse(&String::from_utf8_lossy(&bytes));
    }
}

/// `UPDATE=1` writes the page anew.
#[test]
fn the_page_of_keys_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config.md");
    let page = super::keys::page();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        page,
        "run: UPDATE=1 cargo test -p edgecore the_page_of_keys"
    );
}
