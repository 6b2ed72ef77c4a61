use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::limits::DEVICE_WRITE_EVERY_MS;
use crate::upstream::devices::{merge_state, merge_twins, only_times_differ, parse_state, parse_twins};

fn twins(device: &str, values: &[(&str, &str)], at_ms: i64) -> (DeviceId, Said, Message) {
    let twin: BTreeMap<&str, Value> = values
        .iter()
        .map(|(name, value)| {
            let actual = json!({"value": value, "metadata": {"timestamp": at_ms}});
            (*name, json!({"actual": actual, "metadata": {"type": "int"}}))
        })
        .collect();
    let message =
        Message::new(at_ms, "twin", "resource", "update", &format!("device/d/{device}/twin/edge_updated"))
            .with_content(&json!({"event_id": "", "timestamp": at_ms, "twin": twin}));
    let said = Said::Twins(parse_twins(&message).unwrap());
    (("d".into(), device.into()), said, message)
}

fn state(device: &str, state: &str, at_ms: i64) -> (DeviceId, Said, Message) {
    let text = json!({"device": {"name": device, "state": state, "lastOnlineTime": format!("T{at_ms}")}})
        .to_string();
    let message =
        Message::new(at_ms, "twin", "resource", "update", &format!("device/d/{device}/state/update"))
            .with_content(&text);
    let said = Said::State(parse_state(&message).unwrap());
    (("d".into(), device.into()), said, message)
}

/// The Kubernetes API, as far as it matters: statuses, and how often they were written.
#[derive(Default)]
struct Objects {
    statuses: BTreeMap<DeviceId, Value>,
    writes: usize,
}

impl Objects {
    fn write(&mut self, book: &Book, now_ms: i64, id: &DeviceId, pending: &Pending) -> Outcome {
        let before = self.statuses.get(id).cloned().unwrap_or(Value::Null);
        let after = merge_twins(&before, &pending.twins).unwrap().unwrap_or(before.clone());
        let after = pending.state.as_ref().and_then(|state| merge_state(&after, state)).unwrap_or(after);
        if after == before || (!book.is_calm(now_ms, id) && only_times_differ(&before, &after)) {
            return Outcome::Unchanged;
        }
        self.writes += 1;
        self.statuses.insert(id.clone(), after);
        Outcome::Written
    }

    fn work(&mut self, book: &mut Book, now_ms: i64) -> Vec<Message> {
        let mut answers = Vec::new();
        while let Some((id, pending)) = book.next(now_ms) {
            let outcome = self.write(book, now_ms, &id, &pending);
            answers.extend(book.done(now_ms, id, pending, &outcome));
        }
        answers
    }

    fn value(&self, device: &str, property: &str) -> &str {
        let twins = self.statuses[&("d".to_owned(), device.to_owned())]["twins"].as_array().unwrap();
        let twin = twins.iter().find(|twin| twin["propertyName"] == property).unwrap();
        twin["reported"]["value"].as_str().unwrap()
    }
}

/// The goal of the design: thirty devices at three values a second, as a stock edge sends them, message by message.
#[test]
fn thirty_devices_at_three_values_a_second_cost_less_than_one_write_a_second() {
    let (mut book, mut objects) = (Book::new(DEVICE_WRITE_EVERY_MS), Objects::default());
    let (mut asked, mut answered) = (0, 0);
    let seconds = 1_800;
    for now_ms in (0..seconds * 1_000).step_by(111) {
        let tick = now_ms / 111;
        for device in 0..10 {
            // Each device speaks at every third tick, so that all thirty do at three values a second.
            let device = format!("m{}", device * 3 + tick % 3);
            let (id, said, message) = twins(&device, &[("t", &tick.to_string())], now_ms);
            asked += 1;
            answered += book.put(now_ms, id, said, message).len();
        }
        answered += objects.work(&mut book, now_ms).len();
    }
    assert!(asked > 88 * seconds, "{asked} reports");
    let per_second = objects.writes as f64 / seconds as f64;
    assert!(per_second < 1.0, "{per_second} writes a second");
    println!("{asked} reports, {} writes, {per_second:.3} writes a second", objects.writes);
    // Silence: what is left is written, and everything is answered.
    for now_ms in (seconds * 1_000..(seconds + 60) * 1_000).step_by(500) {
        answered += objects.work(&mut book, now_ms).len();
    }
    assert_eq!(answered, asked as usize);
    assert_eq!(book.next_ms(), None);
    let last = (seconds * 1_000 - 1) / 111;
    for device in 0..30 {
        let own = last - (last + 3 - device % 3) % 3;
        assert_eq!(objects.value(&format!("m{device}"), "t"), own.to_string());
    }
}

#[test]
fn a_rare_change_is_written_at_once_and_a_state_goes_first() {
    let (mut book, mut objects) = (Book::new(DEVICE_WRITE_EVERY_MS), Objects::default());
    // First values go at once, and use up nobody else's turns.
    for value in ["1", "2"] {
        for device in 0..200 {
            let (id, said, message) = twins(&format!("m{device:03}"), &[("t", value)], 5);
            assert!(book.put(5, id, said, message).is_empty());
        }
        objects.work(&mut book, 5);
        let wanted = if value == "1" { 200 } else { 200 + DEVICE_WRITE_BURST as usize };
        assert_eq!(objects.writes, wanted);
        assert!(book.next_ms().is_none_or(|at| at > 5), "it would be asked again for ever");
    }
    let (id, said, message) = state("m199", "offline", 6);
    let asked = message.header.msg_id.clone();
    book.put(6, id, said, message);
    let answers = objects.work(&mut book, 6);
    assert_eq!(answers.len(), 2, "the device's values went with its state");
    assert!(answers.iter().any(|answer| answer.header.msg_id == asked));
    assert_eq!(objects.statuses[&("d".into(), "m199".into())]["state"], "offline");
}

#[test]
fn an_answer_waits_for_its_values() {
    let mut book = Book::new(1_000_000);
    // Use up the bursts.
    let mut objects = Objects::default();
    for device in 0..DEVICE_WRITE_BURST + DEVICE_WRITE_BURST_FIRST {
        let (id, said, message) = twins(&format!("x{device}"), &[("t", "1")], 0);
        book.put(0, id, said, message);
    }
    objects.work(&mut book, 0);
    let (id, said, first) = twins("a", &[("t", "1")], 1);
    assert!(book.put(1, id, said, first.clone()).is_empty());
    let (id, said, other) = twins("a", &[("u", "1")], 2);
    assert!(book.put(2, id, said, other).is_empty(), "it does not say what the first said");
    let (id, said, newer) = twins("a", &[("t", "2")], 3);
    let answers = book.put(3, id, said, newer);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].header.msg_id, first.header.msg_id, "the newer one waits in its stead");
    let (id, said, state) = state("a", "online", 4);
    assert!(book.put(4, id, said, state).is_empty());
    // A write that fails keeps all of it, below what comes meanwhile.
    let (id, pending) = book.next(5).unwrap();
    let (_, said, meanwhile) = twins("a", &[("t", "3")], 6);
    book.put(6, id.clone(), said, meanwhile);
    assert!(book.done(7, id, pending, &Outcome::Failed).is_empty());
    assert_eq!(book.next_ms().map(|at| at >= 7 + DEVICE_WRITE_RETRY_MS), Some(true));
    let answers = objects.work(&mut book, 7 + DEVICE_WRITE_RETRY_MS);
    assert_eq!(answers.len(), 4, "u, t, the state, and t again");
    assert_eq!((objects.value("a", "t"), objects.value("a", "u")), ("3", "1"));
}

#[test]
fn times_alone_are_written_once_a_minute() {
    let (mut book, mut objects) = (Book::new(1), Objects::default());
    for now_ms in (0..600_000).step_by(1_000) {
        let (id, said, message) = state("a", "online", now_ms);
        book.put(now_ms, id, said, message);
        let (id, said, message) = twins("a", &[("t", "1")], now_ms);
        book.put(now_ms, id, said, message);
        assert_eq!(objects.work(&mut book, now_ms).len(), 2, "answered all the same");
    }
    assert_eq!(objects.writes, 10);
}

#[test]
fn what_waits_has_a_bound() {
    let mut book = Book::new(1_000_000);
    for device in 0..DEVICES_WAITING_MAX + 10 {
        let (id, said, message) = twins(&format!("m{device}"), &[("t", "1")], 0);
        book.put(0, id, said, message);
    }
    assert_eq!(book.pending.len(), DEVICES_WAITING_MAX);
    let mut answers = 0;
    for property in 0..DEVICE_ANSWERS_MAX + 5 {
        let (id, said, message) = twins("m0", &[(&format!("p{property}"), "1")], 0);
        answers += book.put(0, id, said, message).len();
    }
    // The first report of the device waited too.
    assert_eq!(answers, 6);
}
