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
