use bytes::Bytes;
use mqtt::broker::testing::Random;
use serde_json::{Value, json};

use super::{tail::Tail, *};
use crate::contract::HistoryQuery;
use crate::limits::{HISTORY_ANSWER_BYTES_MAX, HISTORY_SLOTS, HISTORY_TAIL_FACTOR, HISTORY_TAIL_MS};

fn sample(id: &str, property: &str, at_ms: i64, value: &str) -> Sample {
    Sample {
        id: id.into(),
        property: property.into(),
        value: value.into(),
        value_type: "int".into(),
        quality: String::new(),
        at_ms,
        kept: true,
        push: Vec::new().into(),
    }
}

fn ask(history: &History, id: &str, query: Value) -> Value {
    let query: HistoryQuery = serde_json::from_value(query).unwrap();
    serde_json::from_str(&history.answer(99, id, &query)).unwrap()
}

#[test]
fn a_question_names_property_time_and_number() {
    let mut history = History::new(5, 100_000);
    for at_ms in 0..8 {
        history.push(&sample("d/oven", "t", at_ms, &at_ms.to_string()));
    }
    history.push(&Sample { quality: "disconnected".into(), ..sample("d/oven", "h", 3, "") });
    history.push(&sample("d/other", "t", 3, "9"));
    let answer = ask(&history, "d/oven", json!({"event_id": "e"}));
    assert_eq!(
        answer,
        json!({"event_id": "e", "timestamp": 99, "device": "d/oven", "more": false, "properties":
            {"h": [[3, "", "disconnected"]], "t": [[3, "3"], [4, "4"], [5, "5"], [6, "6"], [7, "7"]]}})
    );
    let answer = ask(&history, "d/oven", json!({"property": "t", "since": 4, "until": 7, "limit": 2}));
    assert_eq!(answer["properties"], json!({"t": [[5, "5"], [6, "6"]]}));
    assert_eq!(ask(&history, "d/nothing", json!({}))["properties"], json!({}));
    history.forget("d/oven");
    assert_eq!(ask(&history, "d/oven", json!({}))["properties"], json!({}));
    assert_eq!(ask(&history, "d/other", json!({}))["properties"], json!({"t": [[3, "9"]]}));
}

#[test]
fn bytes_are_bounded_and_the_slow_property_keeps_its_values() {
    let mut history = History::new(10_000, 4_000);
    for at_ms in 0..10_000 {
        history.push(&sample("d/fast", "t", at_ms, "1234567"));
        if at_ms % 200 == 0 {
            history.push(&sample("d/slow", "t", at_ms, "1"));
        }
        assert!(history.bytes() <= 4_000);
    }
    let kept: usize = history.rings.values().map(Ring::bytes).sum();
    assert_eq!(kept, history.bytes());
    let slow = ask(&history, "d/slow", json!({}));
    assert_eq!(slow["properties"]["t"].as_array().unwrap().len(), 50);
    let fast = ask(&history, "d/fast", json!({}));
    let rows = fast["properties"]["t"].as_array().unwrap();
    assert!(rows.len() > 50 && rows.last().unwrap()[0] == 9_999 && history.dropped() > 8_000);
}

#[test]
fn an_answer_has_a_bound_and_the_newest_have_the_room() {
    let mut history = History::new(100_000, 10_000_000);
    for at_ms in 0..5_000 {
        for property in ["a", "b"] {
            history.push(&sample("d/oven", property, at_ms, "12345678"));
        }
    }
    let text = history.answer(1, "d/oven", &HistoryQuery::default());
    assert!(text.len() < HISTORY_ANSWER_BYTES_MAX + 300, "{}", text.len());
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&answer["more"], &answer["properties"]["b"].as_array().unwrap().last().unwrap()[0]),
        (&json!(true), &json!(4_999))
    );
    let len = |property: &str| answer["properties"][property].as_array().unwrap().len();
    assert!(len("a") > 500 && len("a").abs_diff(len("b")) < 5);
}

/// Against a plain list of entries, with clocks that jump and texts of all lengths.
#[test]
fn a_ring_gives_back_what_it_was_given() {
    for seed in 0..30 {
        let mut random = Random(seed);
        let (mut ring, mut plain) = (Ring::default(), Vec::new());
        for _ in 0..200 {
            if random.below(4) == 0 {
                let count = random.below(plain.len() + 2).min(20);
                let before = ring.bytes();
                assert_eq!(ring.drop_oldest(count), before - ring.bytes());
                plain.drain(..count.min(plain.len()));
                ring.shrink();
            }
            let at_ms = match random.below(20) {
                0 => i64::MIN,
                1 => i64::MAX,
                _ => 1_700_000_000_000 + random.below(100_000) as i64,
            };
            let mut text = |len: usize| "\u{e4}1".repeat(random.below(len)).into_boxed_str();
            let entry = Entry { at_ms, value: text(100), quality: text(3) };
            let before = ring.bytes();
            assert_eq!(ring.push(&entry), ring.bytes() - before);
            plain.push(entry);
            assert_eq!((ring.len(), ring.entries().collect::<Vec<_>>()), (plain.len(), plain.clone()));
        }
        ring.drop_oldest(usize::MAX);
        assert_eq!((ring.len(), ring.bytes()), (0, 0));
    }
    let mut ring = Ring::default();
    for second in 0..100 {
        ring.push(&Entry { at_ms: second * 1_000, value: "21.5".into(), quality: Box::default() });
    }
    assert!(ring.bytes() <= 8 * 100, "{}", ring.bytes());
}

/// Power cuts at random places: what comes back is in order, was really said, and all of it but what was not written.
#[test]
fn the_tail_comes_back_after_a_cut() {
    for seed in 0..15 {
        let mut random = Random(seed);
        let mut disk: BTreeMap<String, Bytes> = BTreeMap::new();
        let bytes_max = 6_000;
        let mut next = 0;
        let mut written = 0;
        for life in 0..4 {
            let mut history = History::new(10_000, 10_000_000);
            let slots = disk.values().cloned().collect();
            let mut tail = Tail::load(slots, bytes_max, &mut history);
            let answer = ask(&history, "d/x", json!({}));
            let times: Vec<i64> = answer["properties"]["t"]
                .as_array()
                .map(|rows| rows.iter().map(|row| row[0].as_i64().unwrap()).collect())
                .unwrap_or_default();
            assert!(times.windows(2).all(|two| two[0] < two[1]), "seed {seed} life {life}: {times:?}");
            if written > 0 {
                assert_eq!(times.last(), Some(&(written - 1)), "seed {seed} life {life}");
            }
            for _ in 0..random.below(1_500) {
                let now_ms = next * 1_000;
                let full = tail.push(now_ms, &sample("d/x", "t", next, &next.to_string()));
                next += 1;
                for (name, body) in full.into_iter().chain(tail.due(now_ms, false)) {
                    disk.insert(name, body);
                    written = next;
                }
            }
            assert!(disk.len() <= HISTORY_SLOTS as usize);
            assert!(
                disk.values()
                    .all(|body| body.len() < HISTORY_TAIL_FACTOR * bytes_max / HISTORY_SLOTS as usize + 100)
            );
        }
        assert!(next - written <= HISTORY_TAIL_MS / 1_000, "nothing stays unwritten for longer");
    }
}

#[test]
fn damaged_slots_and_questions_never_panic() {
    let mut random = Random(5);
    let mut history = History::new(10, 10_000);
    let mut tail = Tail::load(Vec::new(), 1 << 20, &mut history);
    for at_ms in 0..20 {
        tail.push(0, &sample("d/x", "t", at_ms, "1"));
    }
    let (_, good) = tail.due(0, true).unwrap();
    let question = br#"{"event_id":"e","property":"t","since":3,"until":-9,"limit":18446744073709551615}"#;
    for _ in 0..3_000 {
        for (at, body) in [&good[..], question].into_iter().enumerate() {
            let mut bytes = body.to_vec();
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len());
                bytes[at] = random.below(256) as u8;
            }
            match at {
                0 => drop(Tail::load(vec![bytes.into()], 1_000, &mut history)),
                _ => fuzz_query(&bytes),
            }
        }
    }
}
