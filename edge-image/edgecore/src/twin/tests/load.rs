//! What many values cost the cloud, and that none of them is missing on the node.

use super::*;

fn meter(at: usize) -> Value {
    let mut device = device(&[]);
    device["metadata"]["name"] = json!(format!("m{at}"));
    device["metadata"]["uid"] = json!(format!("u{at}"));
    device
}

/// The goal: thirty devices at three values a second cost less than one API write a second. Each report is one write at a stock
/// cloudcore (ours writes less often still).
#[test]
fn thirty_devices_at_three_values_a_second_cost_less_than_one_report_a_second() {
    let mut machine = machine_with(Vec::new());
    let devices: Vec<Value> = (0..30).map(meter).collect();
    machine.handle(0, objects(&devices));
    machine.handle(0, Input::Connected);
    let (mut reports, mut samples, mut sent) = (0, 0, 0);
    let mut told: BTreeMap<String, i64> = BTreeMap::new();
    let mut count = |actions: Vec<Action>, told: &mut BTreeMap<String, i64>| {
        for action in actions {
            match action {
                Action::Report { resource, content, .. } => {
                    reports += 1;
                    let content: Value = serde_json::from_str(content.0.get()).unwrap();
                    let value =
                        content["twin"]["level"]["actual"]["value"].as_str().unwrap_or_default().parse();
                    if let Ok(value) = value {
                        let before = told.insert(resource, value).unwrap_or(-1);
                        assert!(value >= before, "an older value goes up after a newer one");
                    }
                }
                Action::Sample(_) => samples += 1,
                _ => {}
            }
        }
    };
    let seconds = 400;
    for tick in 0..seconds * 3 {
        let now_ms = 1_000 + tick * 1_000 / 3;
        for at in 0..30 {
            let topic = format!("$hw/events/device/default/m{at}/twin/update");
            let payload = format!(r#"{{"twin":{{"level":{{"actual":{{"value":"{tick}"}}}}}}}}"#);
            sent += 1;
            let input = Input::Mqtt { topic: &topic, payload: payload.as_bytes() };
            count(machine.handle(now_ms, input), &mut told);
        }
        if machine.deadline_ms().is_some_and(|at| at <= now_ms) {
            count(machine.handle(now_ms, Input::Tick), &mut told);
        }
    }
    // The last values go up when it is quiet.
    let end_ms = 1_000 + seconds * 1_000;
    for now_ms in (end_ms..end_ms + 90_000).step_by(500) {
        count(machine.handle(now_ms, Input::Tick), &mut told);
    }
    assert_eq!(told.len(), 30);
    assert!(told.values().all(|value| *value == seconds * 3 - 1), "{told:?}");
    assert_eq!(samples, sent, "every value is there on the node");
    let per_second = f64::from(reports) / seconds as f64;
    println!("{sent} values, {reports} reports, {per_second:.3} reports a second");
    // With the burst at the beginning.
    assert!(per_second < 1.0, "{per_second} reports a second");
}

/// A person who adds devices sees their values at once, and what else goes up then does not wait for it.
#[test]
fn first_values_of_many_devices_go_at_once() {
    let mut machine = machine_with(Vec::new());
    let devices: Vec<Value> = (0..60).map(meter).collect();
    machine.handle(0, objects(&devices[..10]));
    machine.handle(0, Input::Connected);
    let say = |machine: &mut Machine, now_ms: i64, at: usize, value: i64| {
        let topic = format!("$hw/events/device/default/m{at}/twin/update");
        let payload = format!(r#"{{"twin":{{"level":{{"actual":{{"value":"{value}"}}}}}}}}"#);
        let actions = machine.handle(now_ms, Input::Mqtt { topic: &topic, payload: payload.as_bytes() });
        actions.iter().filter(|action| matches!(action, Action::Report { .. })).count()
    };
    // What was saved up is used up by devices that talk much.
    let sent: usize = (0..100).map(|round| say(&mut machine, 100_000, round % 10, round as i64)).sum();
    assert!(sent >= REPORT_BURST as usize && sent < 60, "{sent}");
    machine.handle(100_010, objects(&devices));
    let first: usize = (10..60).map(|at| say(&mut machine, 100_020, at, 1)).sum();
    assert_eq!(first, 50, "each first value goes when it comes");
    let second: usize = (10..60).map(|at| say(&mut machine, 100_030, at, 2)).sum();
    assert_eq!(second, 0, "the next ones have their turn");
    // Once more for a cloud that loses first ones; that carries the newest.
    let again = machine.handle(100_030 + TWIN_REPEAT_MS, Input::Tick);
    let again = again.iter().filter(|action| matches!(action, Action::Report { .. })).count();
    assert!(again >= 50, "{again}");
    // Many more in a short time wait.
    let names: usize = (0..1_000)
        .map(|n| {
            let payload = format!(r#"{{"twin":{{"p{n}":{{"actual":{{"value":"1"}}}}}}}}"#);
            let topic = format!("$hw/events/device/default/m{}/twin/update", n % 60);
            let input = Input::Mqtt { topic: &topic, payload: payload.as_bytes() };
            let actions = machine.handle(110_000, input);
            actions.iter().filter(|action| matches!(action, Action::Report { .. })).count()
        })
        .sum();
    assert!(names <= REPORT_BURST_FIRST as usize, "{names}");
}

fn report_of(actions: &[String]) -> Option<Value> {
    let report = actions.iter().find_map(|action| {
        action.strip_prefix("report twin/default/d device/default/d/twin/edge_updated ")
    })?;
    Some(serde_json::from_str(report).unwrap())
}

#[test]
fn deadband_interval_and_values_that_stay() {
    let mut machine = machine_with(Vec::new());
    let mut object = device(&[]);
    object["metadata"]["annotations"] = json!({"kinglet.dev/values": r#"{"level":{"deadband":5,"everyMs":10000},"button":{"toCloud":false}}"#});
    machine.handle(1, objects(&[object.clone()]));
    let update =
        |name: &str, value: &str| format!(r#"{{"twin":{{"{name}":{{"actual":{{"value":"{value}"}}}}}}}}"#);
    assert!(report_of(&mqtt(&mut machine, 1_000, "twin/update", &update("level", "50"))).is_some());
    // The first value is said once more, for stock clouds.
    machine.handle(1_000 + TWIN_REPEAT_MS, Input::Tick);
    assert!(
        report_of(&mqtt(&mut machine, 12_000, "twin/update", &update("level", "54"))).is_none(),
        "within"
    );
    assert!(
        report_of(&mqtt(&mut machine, 13_000, "twin/update", &update("level", "60"))).is_none(),
        "too soon"
    );
    assert!(report_of(&mqtt(&mut machine, 13_500, "twin/update", &update("level", "61"))).is_none());
    let at = machine.deadline_ms().unwrap();
    assert_eq!(at, 1_000 + TWIN_REPEAT_MS + 10_000, "when the interval is over");
    let report = report_of(&texts(&machine.handle(at, Input::Tick))).unwrap();
    assert_eq!(report["twin"]["level"]["actual"]["value"], "61", "the newest");
    assert!(report_of(&mqtt(&mut machine, 30_000, "twin/update", &update("button", "true"))).is_none());
    let report = report_of(&texts(&machine.handle(40_000, Input::Connected))).unwrap();
    assert!(report["twin"]["button"].is_null(), "{report}");
    // A quality is news, whatever the deadband says.
    let stale = r#"{"twin":{"level":{"actual":{"value":"61"},"metadata":{"quality":"stale"}}}}"#;
    let report = report_of(&mqtt(&mut machine, 90_000, "twin/update", stale)).unwrap();
    assert_eq!(report["twin"]["level"]["metadata"]["quality"], "stale");
    object["metadata"]["annotations"]["kinglet.dev/values"] = json!(r#"{"level":{"deadbnd":5}}"#);
    let actions = texts(&machine.handle(91_000, objects(&[object])));
    assert!(
        actions[0].contains("annotation kinglet.dev/values")
            && actions[0].contains("unknown field `deadbnd`"),
        "{actions:?}"
    );
}

#[test]
fn without_a_link_nothing_is_reported_and_afterwards_the_last_of_everything() {
    let mut machine = started();
    machine.handle(2, Input::Connected);
    machine.handle(2, Input::Disconnected);
    for at in 0..50 {
        let payload = format!(r#"{{"twin":{{"level":{{"actual":{{"value":"{at}"}}}}}}}}"#);
        let actions = mqtt(&mut machine, 10 + at, "twin/update", &payload);
        assert!(!actions.iter().any(|action| action.starts_with("report")), "{actions:?}");
    }
    mqtt(&mut machine, 70, "state/update", r#"{"state":"online"}"#);
    assert!(machine.handle(100, Input::Resumed).len() == 2, "the twins and the state");
    let actions = mqtt(&mut machine, 60_000, "state/update", r#"{"state":"offline"}"#);
    assert!(actions.last().unwrap().contains("lastOnlineTime"), "it is not forgotten: {actions:?}");
    machine.handle(70_000, Input::Disconnected);
    let actions = texts(&machine.handle(80_000, Input::Connected));
    assert!(actions.iter().any(|action| action.contains(r#""value":"49""#)), "{actions:?}");
    assert!(actions.iter().any(|action| action.contains("offline")), "{actions:?}");
}

#[test]
fn a_clock_that_goes_back_stops_nothing() {
    let mut machine = started();
    let year_ms = 31_536_000_000;
    for at in 0..100 {
        let payload = format!(r#"{{"twin":{{"level":{{"actual":{{"value":"{at}"}}}}}}}}"#);
        mqtt(&mut machine, year_ms + at * 10, "twin/update", &payload);
    }
    machine.handle(5_000, Input::Tick);
    let deadline = machine.deadline_ms().unwrap();
    assert!(deadline < 5_000 + TWIN_PERSIST_MS, "{deadline}");
    let mut reports = 0;
    for now_ms in (5_000..120_000).step_by(500) {
        reports +=
            texts(&machine.handle(now_ms, Input::Tick)).iter().filter(|a| a.starts_with("report")).count();
    }
    assert!(reports >= 1);
}

#[test]
fn what_is_not_supported_is_in_the_devices_state() {
    let mut machine = machine_with(Vec::new());
    let mut object = device(&[]);
    object["spec"]["properties"][2]["pushMethod"] =
        json!({"dbMethod": {"redis": {"redisClientConfig": {"addr": "h"}}}});
    let actions = texts(&machine.handle(1, objects(&[object])));
    let state = actions.iter().find(|action| action.starts_with("report devicestate")).unwrap();
    let why = "spec.properties[2].pushMethod.dbMethod.redis is not supported: use http, mqtt, otel or dbMethod.influxdb2";
    assert!(state.contains(why) && state.contains("unknown"), "{state}");
    let actions = mqtt(&mut machine, 2, "state/update", r#"{"state":"online","reason":"slow"}"#);
    assert!(actions.last().unwrap().contains("slow; spec.properties[2]"), "{actions:?}");
}
