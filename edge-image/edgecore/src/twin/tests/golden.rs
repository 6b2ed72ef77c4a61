//! A conversation with KubeEdge's topics, word by word: `tests/vectors/kubeedge/twin.txt`. Lines: `@` a time in milliseconds, `>` what an
//! application publishes, `<` what it or the cloud hears. `UPDATE=1` writes the answers anew.

use super::*;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/kubeedge/twin.txt");

#[test]
fn the_conversation_is_the_recorded_one() {
    let recorded = std::fs::read_to_string(PATH).unwrap();
    let mut machine = machine_with(Vec::new());
    let mut now_ms = 0;
    let mut played = String::new();
    machine.handle(0, objects(&[device(&[])]));
    for line in recorded.lines().filter(|line| !line.starts_with("< ")) {
        played += &format!("{line}\n");
        if let Some(time) = line.strip_prefix("@ ") {
            now_ms = time.parse().unwrap();
        }
        let Some((topic, payload)) = line.strip_prefix("> ").and_then(|rest| rest.split_once(' ')) else {
            continue;
        };
        let heard = machine.handle(now_ms, Input::Mqtt { topic, payload: payload.as_bytes() });
        for text in
            texts(&heard).iter().filter(|text| !text.starts_with("persist") && !text.starts_with("retained"))
        {
            played += &format!("< {text}\n");
        }
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(PATH, &played).unwrap();
    }
    assert_eq!(played, recorded, "UPDATE=1 writes it anew");
}

const STOCK: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/kubeedge/stock-twin.txt"));

/// What KubeEdge's edge answers to the same requests; `~` where ours differs, and why.
#[test]
fn requests_are_answered_as_by_kubeedge() {
    let mut machine = machine_with(Vec::new());
    let mut oven = device(&[]);
    oven["metadata"]["name"] = json!("oven");
    oven["metadata"].as_object_mut().unwrap().remove("labels");
    oven["spec"]["properties"] = json!([]);
    let (mut steps, mut now_ms) = (0, 1_000);
    let lines: Vec<&str> = STOCK.lines().filter(|line| !line.starts_with('#')).collect();
    let mut at = 0;
    while at < lines.len() {
        let (done, rest) = (lines[at], &lines[at + 1..]);
        let len = rest.iter().take_while(|line| line.starts_with(['<', '~'])).count();
        at += len + 1;
        let (mut expected, differs): (Vec<String>, Vec<String>) =
            rest[..len].iter().map(|line| line.to_string()).partition(|line| line.starts_with('<'));
        now_ms += 10_000;
        let topic: String;
        let input = match done {
            "! made" => objects(&[oven.clone()]),
            "! removed" => objects(&[]),
            asked => {
                let (asked, payload) = asked.strip_prefix("> ").unwrap().split_once(' ').unwrap();
                topic = asked.replace("DEV", "oven").replace("NODE", "edge-1");
                Input::Mqtt { topic: &topic, payload: payload.as_bytes() }
            }
        };
        let mut heard: Vec<String> = machine.handle(now_ms, input).iter().filter_map(published).collect();
        heard.sort();
        expected.sort();
        assert_eq!(heard == expected, differs.is_empty(), "{done}\n{heard:#?}\n{expected:#?}\n{differs:?}");
        steps += 1;
    }
    assert!(steps > 30, "{steps} requests");
}

fn published(action: &Action) -> Option<String> {
    let Action::Publish { topic, payload, retain: false } = action else { return None };
    let mut payload: Value = serde_json::from_slice(payload).unwrap();
    plain(&mut payload);
    Some(format!("< {topic} {payload}").replace("oven", "DEV").replace("edge-1", "NODE"))
}

fn plain(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(plain),
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), &*value) {
                    ("timestamp", Value::Number(number)) if number.as_i64() != Some(0) => *value = json!(1),
                    ("event_id", Value::String(id)) if id.starts_with('e') => *value = json!("ID"),
                    ("lastOnlineTime" | "last_online", Value::String(_)) => *value = json!("T"),
                    ("reason", Value::String(_)) => *value = json!(""),
                    _ => plain(value),
                }
            }
        }
        _ => {}
    }
}
