//! Wishes of the cloud and of the node, brought together: rule by rule, and under seeds with cuts of the link and of the power.

use super::*;

fn expected(machine: &mut Machine, now_ms: i64) -> Option<String> {
    let answer = mqtt(machine, now_ms, "twin/get", "{}").remove(0);
    let (_, answer) = answer.split_once("result ").unwrap();
    let answer: Value = serde_json::from_str(answer).unwrap();
    answer["twin"]["level"]["expected"]["value"].as_str().map(str::to_owned)
}

fn wish(machine: &mut Machine, now_ms: i64, value: &str) -> Vec<String> {
    mqtt(
        machine,
        now_ms,
        "twin/update",
        &format!(r#"{{"twin":{{"level":{{"expected":{{"value":"{value}"}}}}}}}}"#),
    )
}

fn dated(value: &str, at_ms: i64) -> Value {
    let mut device = device(&[("level", value)]);
    device["spec"]["properties"][2]["desired"]["metadata"] = json!({"timestamp": at_ms.to_string()});
    device
}

#[test]
fn a_wish_of_the_node_reaches_mapper_and_cloud_and_is_kept_before_it_is_answered() {
    let mut machine = started();
    let actions = wish(&mut machine, 5, "7");
    assert_eq!(actions[0], "persist default/d", "not lazily");
    assert!(actions[1].starts_with("retained publish $kinglet/mapper/gpio/device/default/d {\"version\":2,"));
    assert!(
        actions[1].contains(r#""desired":{"metadata":{"timestamp":"5"},"value":"7"},"name":"level""#),
        "{}",
        actions[1]
    );
    assert!(actions[2].contains("twin/update/result") && actions[4].contains(r#""delta":{"level":"7"}"#));
    let told = &actions[5];
    assert!(
        told.contains(r#""expected":{"value":"7","metadata":{"timestamp":5,"origin":"node"}}"#),
        "{told}"
    );
    assert!(told.contains(r#""expected_version":{"cloud":0,"edge":1}"#), "{told}");
}

#[test]
fn the_newest_wish_counts_and_a_cloud_that_says_nothing_new_says_nothing() {
    let mut machine = started();
    machine.handle(2, objects(&[device(&[("level", "1")])]));
    wish(&mut machine, 3, "7");
    // Another change of the Device, and the same Device again: no new wish.
    let mut labelled = device(&[("level", "1")]);
    labelled["metadata"]["labels"]["description"] = json!("back");
    machine.handle(4, objects(&[labelled]));
    assert_eq!(expected(&mut machine, 5).as_deref(), Some("7"));
    machine.handle(6, objects(&[device(&[("level", "2")])]));
    assert_eq!(expected(&mut machine, 7).as_deref(), Some("2"), "a new wish of the cloud");
    wish(&mut machine, 8, "8");
    machine.handle(9, objects(&[device(&[])]));
    assert_eq!(
        expected(&mut machine, 10).as_deref(),
        Some("8"),
        "withdrawn in the cloud, which leaves the node's"
    );
    let actions = mqtt(&mut machine, 11, "twin/update", r#"{"twin":{"level":{"expected":{}}}}"#);
    assert!(actions[2].contains(r#""level":{"expected":{},"#), "{actions:?}");
    assert_eq!(expected(&mut machine, 12), None, "withdrawn on the node, and the cloud has none");
    machine.handle(13, objects(&[device(&[("level", "3")])]));
    wish(&mut machine, 14, "9");
    let actions = mqtt(&mut machine, 15, "twin/update", r#"{"twin":{"level":{"expected":{}}}}"#);
    assert_eq!(expected(&mut machine, 16).as_deref(), Some("3"), "gives way to the cloud's: {actions:?}");
}

#[test]
fn a_wish_of_the_cloud_with_an_older_time_gives_way() {
    let mut machine = started();
    wish(&mut machine, 1_000, "7");
    machine.handle(2_000, objects(&[dated("1", 900)]));
    assert_eq!(expected(&mut machine, 2_001).as_deref(), Some("7"));
    machine.handle(3_000, objects(&[dated("2", 1_100)]));
    assert_eq!(expected(&mut machine, 3_001).as_deref(), Some("2"));
    // The same wish made again, on either side: its age begins anew for whoever asks for it.
    let actions = texts(&machine.handle(4_000, objects(&[dated("2", 3_900)])));
    assert!(actions[1].contains(r#""desired":{"metadata":{"timestamp":"3900"},"value":"2"}"#), "{actions:?}");
    let actions = wish(&mut machine, 5_000, "2");
    assert!(actions[1].contains(r#""desired":{"metadata":{"timestamp":"5000"},"value":"2"}"#), "{actions:?}");
}

/// A cloud that keeps a Device and a DeviceStatus, a link that loses, repeats and delays, a store that loses what is lazy, and people
/// on both sides. In the end both sides have the same wish, and it is the one that the rules name.
#[test]
fn seeds_until_both_sides_agree() {
    for seed in 0..80 {
        let mut random = Random(seed);
        let mut world = World::new();
        for step in 0..80 {
            let now_ms = 1_000 + step * 700;
            match random.below(10) {
                0 | 1 => world.cloud_wishes(now_ms, &mut random),
                2 | 3 => world.node_wishes(now_ms, &mut random),
                4 => world.reading(now_ms, &mut random),
                5 => world.set_link(now_ms, random.below(2) == 0),
                6 => world.deliver_down(now_ms),
                7 => world.deliver_up(&mut random),
                8 => world.power_cut(now_ms, &mut random),
                _ => world.act(now_ms, Input::Tick),
            }
        }
        // Everything works again and nobody wishes any more.
        let end_ms = 1_000 + 80 * 700;
        world.set_link(end_ms, true);
        for now_ms in (end_ms..end_ms + 120_000).step_by(1_000) {
            world.deliver_down(now_ms);
            world.act(now_ms, Input::Tick);
            world.deliver_all();
        }
        let counts = expected(&mut world.machine, end_ms + 120_000);
        assert_eq!(world.observed, counts, "seed {seed}: the cloud knows what counts");
        if let Some(last) = &world.last_known {
            assert_eq!(
                &counts, last,
                "seed {seed}: the newest wish, the cloud's if both did not know of each other"
            );
        }
    }
}

struct World {
    machine: Machine,
    now_link: bool,
    /// The store: what is durable, and what a cut may lose.
    disk: BTreeMap<String, Bytes>,
    lazy: BTreeMap<String, Bytes>,
    /// The Device as the cloud has it, as the node's store has it (durable before it is acknowledged).
    cloud: Option<String>,
    node: Option<String>,
    next: i64,
    /// Reports that wait, the newest by key; the link carries them more than once and the older ones late.
    outbox: BTreeMap<String, Value>,
    late: Vec<Value>,
    /// `observedDesired`, and the versions it came with.
    observed: Option<String>,
    /// The wish that must count in the end, when that is beyond doubt: nothing else was wished without knowing of it.
    last_known: Option<Option<String>>,
}

impl World {
    fn new() -> World {
        let mut world = World {
            machine: machine_with(Vec::new()),
            now_link: true,
            disk: BTreeMap::new(),
            lazy: BTreeMap::new(),
            cloud: None,
            node: None,
            next: 0,
            outbox: BTreeMap::new(),
            late: Vec::new(),
            observed: None,
            last_known: None,
        };
        world.act(1, objects(&[device(&[])]));
        world.act(1, Input::Connected);
        world
    }

    fn act(&mut self, now_ms: i64, input: Input<'_>) {
        let actions = self.machine.handle(now_ms, input);
        for action in actions {
            match action {
                Action::Persist { id, record, durable: true } => {
                    // One log: what is synced, is synced with all before it.
                    self.disk.append(&mut self.lazy);
                    self.disk.insert(id, record);
                }
                Action::Persist { id, record, .. } => _ = self.lazy.insert(id, record),
                Action::Report { key, content, .. } => {
                    let content = serde_json::from_str(content.0.get()).unwrap();
                    if let Some(older) = self.outbox.insert(key, content) {
                        self.late.push(older);
                    }
                }
                _ => {}
            }
        }
    }

    fn value(&mut self) -> String {
        self.next += 1;
        self.next.to_string()
    }

    fn cloud_wishes(&mut self, now_ms: i64, random: &mut Random) {
        let value = (random.below(5) > 0).then(|| self.value());
        self.cloud = value.clone();
        // With the link up the node hears of it at once; else a wish of the node may come before it is heard.
        if self.now_link {
            self.deliver_down(now_ms);
        }
        self.last_known = value.map(Some);
    }

    fn node_wishes(&mut self, now_ms: i64, random: &mut Random) {
        if random.below(6) == 0 {
            self.mqtt(now_ms, r#"{"twin":{"level":{"expected":{}}}}"#);
            self.last_known = None;
            return;
        }
        let value = self.value();
        self.mqtt(now_ms, &format!(r#"{{"twin":{{"level":{{"expected":{{"value":"{value}"}}}}}}}}"#));
        // A wish of the cloud that the node has not heard of counts later, if it is one.
        let heard = self.cloud == self.node;
        self.last_known = match (heard, &self.cloud) {
            (true, _) => Some(Some(value)),
            (false, Some(cloud)) => Some(Some(cloud.clone())),
            (false, None) => Some(Some(value)),
        };
    }

    fn reading(&mut self, now_ms: i64, random: &mut Random) {
        self.mqtt(
            now_ms,
            &format!(r#"{{"twin":{{"level":{{"actual":{{"value":"{}"}}}}}}}}"#, random.below(9)),
        );
    }

    fn mqtt(&mut self, now_ms: i64, payload: &str) {
        let topic = "$hw/events/device/default/d/twin/update";
        self.act(now_ms, Input::Mqtt { topic, payload: payload.as_bytes() });
    }

    fn set_link(&mut self, now_ms: i64, up: bool) {
        if up == self.now_link {
            return;
        }
        self.now_link = up;
        self.late.clear();
        self.act(now_ms, if up { Input::Connected } else { Input::Disconnected });
    }

    /// The Device object, if the link is up: stored, then told.
    fn deliver_down(&mut self, now_ms: i64) {
        if self.now_link {
            self.node = self.cloud.clone();
            self.tell_device(now_ms);
        }
    }

    fn tell_device(&mut self, now_ms: i64) {
        let desired: Vec<(&str, &str)> =
            self.node.as_deref().map(|value| ("level", value)).into_iter().collect();
        let device = device(&desired);
        self.act(now_ms, objects(&[device]));
    }

    /// A report reaches the cloud; its answer may be lost, so it comes again.
    fn deliver_up(&mut self, random: &mut Random) {
        if !self.now_link {
            return;
        }
        if random.below(3) > 0 {
            self.deliver_all();
        } else if let Some(report) = self.outbox.get("twin/default/d").cloned() {
            self.observe(&report);
        }
    }

    fn deliver_all(&mut self) {
        for report in std::mem::take(&mut self.outbox).into_values() {
            self.observe(&report);
        }
    }

    fn observe(&mut self, report: &Value) {
        let twin = &report["twin"]["level"];
        if twin.is_object() {
            self.observed = twin["expected"]["value"].as_str().map(str::to_owned);
        }
    }

    /// The node starts anew with what its store has kept. The outbox is gone.
    fn power_cut(&mut self, now_ms: i64, random: &mut Random) {
        let before = expected(&mut self.machine, now_ms);
        let lazy = std::mem::take(&mut self.lazy);
        if random.below(2) == 0 {
            self.disk.extend(lazy);
        }
        self.outbox.clear();
        self.late.clear();
        self.machine = machine_with(self.disk.clone().into_iter().collect());
        self.tell_device(now_ms);
        assert_eq!(expected(&mut self.machine, now_ms), before, "a wish outlives the cut");
        if self.now_link {
            self.act(now_ms, Input::Connected);
        } else {
            self.act(now_ms, Input::Disconnected);
        }
    }
}
