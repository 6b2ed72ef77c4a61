use super::*;

const AT_0: Now = Now { mono_ms: 0, unix_ms: 1_000 };

fn at(seconds: u64) -> Now {
    Now { mono_ms: seconds * 1000, unix_ms: 1_000 }
}

fn link() -> Link {
    Link::new(Settings { heartbeat_ms: 15_000, reconnect_first_ms: 1_000, reconnect_max_ms: 30_000, seed: 7 })
}

fn up() -> Link {
    let mut link = link();
    link.handle(AT_0, Input::Tick);
    link.handle(AT_0, Input::Connected { compact: false });
    link
}

fn push(resource: &str) -> Box<Message> {
    Box::new(
        Message::new(1, source::EDGE_CONTROLLER, "resource", Operation::INSERT, resource).with_content(&()),
    )
}

/// One line per action.
fn render(actions: &[Action]) -> Vec<String> {
    actions
        .iter()
        .map(|action| match action {
            Action::Transmit(m) => format!("transmit {} {}", m.route.operation, m.route.resource),
            Action::Store(m) => format!("store {}", m.route.resource),
            Action::Answered { .. } => "answered".into(),
            Action::Failed { why, .. } => format!("failed {why:?}"),
            Action::Unsupported(m) => format!("unsupported {}", m.route.resource),
            Action::Down(reason) => format!("down {reason}"),
            Action::Delivered { key, .. } => format!("delivered {key}"),
            other => format!("{other:?}").to_lowercase(),
        })
        .collect()
}

/// Whatever a cloud says, and however often, the node comes back; not before it was told, nor later than a bound.
#[test]
fn a_busy_cloud_is_left_alone_within_bounds() {
    for (asked, least, most) in [(0, 0, 30_000), (60_000, 60_000, 75_000), (u64::MAX, 300_000, 375_000)] {
        let mut link = up();
        link.handle(AT_0, Input::Busy { after_ms: asked });
        link.handle(AT_0, Input::Lost("busy".into()));
        let dial_at = link.next_deadline_ms().expect("it dials again");
        assert!((least..=most).contains(&dial_at), "{asked} ms asked, dials at {dial_at}");
    }
}

#[test]
fn on_the_compact_lane_whatever_passes_is_the_keepalive() {
    let mut link = link();
    link.handle(AT_0, Input::Tick);
    assert_eq!(render(&link.handle(AT_0, Input::Connected { compact: true })), ["up"]);
    let beat = |link: &mut Link, ms| render(&link.handle(Now { mono_ms: ms, ..AT_0 }, Input::Tick));
    let heartbeat = 15_000;
    link.handle(Now { mono_ms: heartbeat, ..AT_0 }, Input::Heard);
    let message = Message::new(0, source::EDGED, "meta", "update", "kube-node-lease/lease/a");
    link.handle(Now { mono_ms: heartbeat, ..AT_0 }, Input::Send(Box::new(message)));
    assert!(beat(&mut link, heartbeat).is_empty(), "both ends have heard of each other");
    assert!(beat(&mut link, 2 * heartbeat).is_empty());
    assert_eq!(beat(&mut link, 3 * heartbeat), ["ping"], "nothing passed for a whole beat");
    let end = beat(&mut link, 4 * heartbeat + heartbeat);
    assert!(end.iter().any(|action| action == "close"), "{end:?}");
}

#[test]
fn a_fresh_link_dials_then_beats_at_once() {
    let mut link = link();
    assert_eq!(render(&link.handle(AT_0, Input::Tick)), ["dial"]);
    assert_eq!(render(&link.handle(AT_0, Input::Tick)), [""; 0], "one dial at a time");
    assert_eq!(
        render(&link.handle(AT_0, Input::Connected { compact: false })),
        ["up", "transmit keepalive node", "ping"]
    );
    assert_eq!(render(&link.handle(at(14), Input::Tick)), [""; 0]);
    assert_eq!(render(&link.handle(at(15), Input::Tick)), ["transmit keepalive node", "ping"]);
}

#[test]
fn silence_closes_the_link() {
    let mut link = up();
    link.handle(at(15), Input::Heard);
    link.handle(at(30), Input::Tick);
    assert!(link.is_up());
    let actions = render(&link.handle(at(60), Input::Tick));
    assert_eq!(actions, ["close", "down the cloud was silent for 45 s; check the network to it"]);
}

#[test]
fn an_object_is_acknowledged_when_durable_and_not_before() {
    let mut link = up();
    let actions = link.handle(AT_0, Input::Received(push("default/pod/web")));
    assert_eq!(render(&actions), ["store default/pod/web"]);
    let Some(Action::Store(message)) = actions.into_iter().next() else { unreachable!() };
    let id = message.header.msg_id.clone();
    let acks = link.handle(AT_0, Input::Stored(message));
    let Some(Action::Transmit(ack)) = acks.first() else { panic!("{acks:?}") };
    assert!(ack.content_is_ok() && ack.header.parent_msg_id == id && ack.route.operation == "response");
    assert_eq!(render(&link.handle(AT_0, Input::NotStored(push("default/pod/web")))), [""; 0]);
}

#[test]
fn a_query_for_a_config_map_is_stored_before_it_is_answered() {
    let mut link = up();
    let query = Box::new(Message::new(1, source::EDGED, "meta", Operation::QUERY, "default/configmap/c"));
    let mut answer = query.response(2, source::EDGE_CONTROLLER, "resource").with_resource_version("5");
    answer.content = serde_json::value::to_raw_value(&()).unwrap();
    link.handle(AT_0, Input::Request { message: query, timeout_ms: 1000 });
    let actions = link.handle(AT_0, Input::Received(Box::new(answer)));
    assert_eq!(render(&actions), ["store default/configmap/c"]);
    let Some(Action::Store(message)) = actions.into_iter().next() else { unreachable!() };
    let actions = render(&link.handle(AT_0, Input::Stored(message)));
    assert_eq!(actions, ["transmit response default/configmap/c", "answered"]);
}

#[test]
fn an_error_in_place_of_an_object_is_only_an_answer() {
    let mut link = up();
    let query = Box::new(Message::new(1, source::EDGED, "meta", Operation::QUERY, "default/secret/s"));
    let answer =
        query.response(2, source::EDGE_CONTROLLER, "resource").with_content("secrets \"s\" not found");
    link.handle(AT_0, Input::Request { message: query, timeout_ms: 1000 });
    assert_eq!(render(&link.handle(AT_0, Input::Received(Box::new(answer)))), ["answered"]);
}

#[test]
fn requests_end_once() {
    let request = |id: &str| {
        let mut message = Message::new(1, source::EDGED, "meta", Operation::QUERY, "a/lease/b");
        message.header.msg_id = id.into();
        Input::Request { message: Box::new(message), timeout_ms: 5_000 }
    };
    let mut link = link();
    assert_eq!(render(&link.handle(AT_0, request("a"))), ["failed Disconnected(\"not dialled yet\")"]);
    let mut link = up();
    link.handle(AT_0, request("b"));
    assert_eq!(link.next_deadline_ms(), Some(5_000));
    assert_eq!(render(&link.handle(at(5), Input::Tick)), ["failed Timeout"]);
    link.handle(at(5), request("c"));
    let actions = render(&link.handle(at(6), Input::Lost("reset".into())));
    assert_eq!(actions, ["down reset", "failed Disconnected(\"reset\")"]);
}

#[test]
fn a_newer_report_replaces_an_older_one_and_only_its_own_answer_counts() {
    let report = |n: u32| {
        Box::new(
            Message::new(1, source::EDGED, "meta", Operation::PATCH, "default/podpatch/w").with_content(&n),
        )
    };
    let mut link = up();
    let (first, second) = (report(1), report(2));
    let answer = |to: &Message| Box::new(to.response(2, source::EDGE_CONTROLLER, "resource"));
    let (old_answer, new_answer) = (answer(&first), answer(&second));
    assert_eq!(link.handle(AT_0, Input::Report { key: "w".into(), message: first }).len(), 1);
    // A cloud that works on both at a time could let the older one win: the newer one waits for the older one's answer.
    assert!(link.handle(AT_0, Input::Report { key: "w".into(), message: second }).is_empty());
    let actions = link.handle(AT_0, Input::Received(old_answer));
    assert!(matches!(&actions[..], [Action::Transmit(message)] if message.content.get() == "2"));
    assert_eq!(link.outbox_len(), 1);
    assert_eq!(render(&link.handle(AT_0, Input::Received(new_answer))), ["delivered w"]);
}

#[test]
fn a_newer_report_does_not_wait_for_an_answer_that_does_not_come() {
    let report = |n: u32| {
        let message =
            Message::new(1, source::TWIN, "resource", Operation::UPDATE, "device/d/x/twin/edge_updated");
        Input::Report { key: "x".into(), message: Box::new(message.with_content(&n)) }
    };
    let mut link = up();
    assert_eq!(link.handle(AT_0, report(1)).len(), 1);
    assert!(link.handle(at(1), report(2)).is_empty());
    assert!(link.handle(at(2), report(3)).is_empty(), "the newest waits for the one that is on its way");
    assert_eq!(link.next_deadline_ms(), Some(6_000));
    let sent = link.handle(at(6), Input::Tick);
    let last = sent.iter().rev().find_map(|action| match action {
        Action::Transmit(message) => Some(message.content.get().to_owned()),
        _ => None,
    });
    assert_eq!(last.as_deref(), Some("3"));
}

/// Many devices' values in one message: what is reported within a moment leaves together, and the lane makes one frame of it.
#[test]
fn on_the_compact_lane_reports_leave_together_in_one_message() {
    let mut link = link();
    link.handle(AT_0, Input::Tick);
    link.handle(AT_0, Input::Connected { compact: true });
    for device in 0..12 {
        let resource = format!("device/default/m{device}/twin/edge_updated");
        let message = Box::new(
            Message::new(1, source::TWIN, "resource", Operation::UPDATE, &resource).with_content(&()),
        );
        let actions = link.handle(AT_0, Input::Report { key: format!("twin/default/m{device}"), message });
        assert_eq!(render(&actions), [""; 0]);
    }
    let now = Now { mono_ms: link.next_deadline_ms().expect("they leave soon"), ..AT_0 };
    let leaving = link.handle(now, Input::Tick);
    let mut lane = crate::lane::Lane::compact(1, crate::lane::End::Edge);
    for action in &leaving {
        let Action::Transmit(message) = action else { panic!("{action:?}") };
        lane.push(message);
    }
    assert_eq!(leaving.len(), 12);
    assert!(lane.take().is_some() && lane.take().is_none(), "one WebSocket message");
}

#[test]
fn a_full_outbox_refuses_new_keys_and_merges_known_ones() {
    let mut link = link();
    let message = || Box::new(Message::new(1, source::EDGED, "meta", Operation::PATCH, "a/b/c"));
    for n in 0..crate::limits::OUTBOX_KEYS_MAX {
        assert!(link.handle(AT_0, Input::Report { key: n.to_string(), message: message() }).is_empty());
    }
    let actions = link.handle(AT_0, Input::Report { key: "new".into(), message: message() });
    assert!(matches!(&actions[..], [Action::Refused { key }] if key == "new"));
    assert!(link.handle(AT_0, Input::Report { key: "0".into(), message: message() }).is_empty());
    link.handle(AT_0, Input::Tick);
    let sent = link.handle(AT_0, Input::Connected { compact: false });
    let reports = sent.iter().filter(|a| matches!(a, Action::Transmit(m) if m.route.operation == "patch"));
    assert_eq!(reports.count(), crate::limits::REPORTS_IN_FLIGHT_MAX, "the window bounds a burst");
}

#[test]
fn what_a_stock_cloud_sends_beside_objects_does_no_harm() {
    let mut link = up();
    let message = |source: &str, group: &str, operation: &str, resource: &str| {
        Input::Received(Box::new(Message::new(1, source, group, operation, resource)))
    };
    let control = link.handle(AT_0, message("cloudhub", "resource", "ping", "x"));
    assert!(matches!(&control[..], [Action::Transmit(m)] if m.content.get() == "\"ack\""));
    for (source, group, operation, resource) in [
        ("devicecontroller", "twin", "update", "membership"),
        ("router_eventbus", "user", "publish", "topic"),
        ("taskmanager", "taskmanager", "Upgrade", "operations.kubeedge.io/v1alpha2/nodeupgradejob/j/node/n"),
        ("", "", "", ""),
        ("edgecontroller", "resource", "insert", "no/whole-resource"),
    ] {
        let actions = render(&link.handle(AT_0, message(source, group, operation, resource)));
        assert_eq!(actions, [format!("unsupported {resource}")]);
    }
    let unknown_parent =
        Message::new(1, "edgecontroller", "resource", "insert", "a/pod/b").response(1, "x", "y");
    assert!(link.handle(AT_0, Input::Received(Box::new(unknown_parent))).is_empty());
}

#[test]
fn waits_are_jittered_bounded_and_start_again_after_a_stable_link() {
    let mut backoff = Backoff::new(1_000, 30_000, 3);
    let waits: Vec<u64> = (0..2000).map(|_| backoff.next_ms()).collect();
    assert!(waits[0] <= 1_000 && waits[1] <= 2_000 && waits.iter().all(|w| *w <= 30_000));
    let mean = waits[10..].iter().sum::<u64>() / 1990;
    assert!((13_000..17_000).contains(&mean), "evenly spread, mean {mean}");

    let mut link = up();
    link.handle(at(9), Input::Lost("short".into()));
    let short = link.backoff.clone();
    let mut link = up();
    link.handle(at(11), Input::Lost("long".into()));
    assert_eq!(format!("{:?}", short.clone()), format!("{:?}", link.backoff), "first loss is equal");
    link.handle(at(60), Input::Tick);
    link.handle(at(60), Input::Lost("refused".into()));
    assert_ne!(format!("{short:?}"), format!("{:?}", link.backoff), "a refused dial doubles the limit");
}

/// Any message is answered, stored or ignored, never a panic.
pub fn fuzz_link(data: &[u8]) {
    let mut link = up();
    if let Ok(message) = Message::decode(data) {
        for action in link.handle(AT_0, Input::Received(Box::new(message))) {
            if let Action::Store(message) = action {
                link.handle(AT_0, Input::Stored(message));
            }
        }
    }
}

#[test]
fn mutated_messages_do_not_panic() {
    let samples = [
        push("default/pod/web").encode(),
        push("default/pod/web").response(3, "edgecontroller", "resource").encode(),
        Message::new(1, "taskmanager", "taskmanager", "Upgrade", "a").encode(),
    ];
    let mut random = Backoff::new(u64::MAX / 2, u64::MAX / 2, 99);
    for round in 0..6_000 {
        let mut bytes = samples[round % samples.len()].clone().into_bytes();
        for _ in 0..random.next_ms() % 4 {
            let at = random.next_ms() as usize % bytes.len();
            match random.next_ms() % 3 {
                0 => bytes[at] = random.next_ms() as u8,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"\"{}[]:,/0n"[random.next_ms() as usize % 10]),
            }
        }
        fuzz_link(&bytes);
    }
}
