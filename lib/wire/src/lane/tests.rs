use super::*;
use crate::{Message, Operation, frames, source};

const VECTORS: &str = include_str!("../../../../tests/vectors/lane-v1.txt");

/// One `Acks` frame, sixteen times, as zstd's C library packs it in the cloud.
const PACKED: &str = "28b52ffd2050650000282200020101010008b46801";

fn samples() -> Vec<(&'static str, Frame)> {
    let message = Envelope {
        seq: 300,
        parent: None,
        unix_ms: 1_700_000_000_123,
        source: "edgecontroller".into(),
        group: "resource".into(),
        operation: "insert".into(),
        resource: "default/pod/web".into(),
        resource_version: "41".into(),
        content: "{\"metadata\":{\"uid\":\"u\"}}".into(),
        ..Envelope::default()
    };
    let answer = Envelope {
        seq: 1,
        parent: Some(299),
        unix_ms: -1,
        sync: true,
        source: "someone".into(),
        destination: "else".into(),
        message_type: "t".into(),
        operation: "response".into(),
        content: "null".into(),
        ..Envelope::default()
    };
    vec![
        ("unknown", Frame::Unknown { kind: 0x1234 }),
        ("message", Frame::Message(message)),
        ("answer", Frame::Message(answer)),
        ("packed", Frame::Packed { inflated_len: 80, bytes: hex::decode(PACKED).unwrap() }),
        ("acks", Frame::Acks(vec![1, 2, 300, u32::MAX])),
        ("renew", Frame::Renew { seq: 5, lease_seconds: 40, unix_ms: 1_700_000_000_123 }),
        ("beat", Frame::Beat { seq: 6, unix_ms: 1_700_000_000_123 }),
        ("busy", Frame::Busy { after_ms: 30_000, reason: "cloudcore stops".into() }),
        ("welcome", Frame::Welcome { resumed: true }),
    ]
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode(&mut out);
    out
}

fn decoded(mut bytes: &[u8]) -> Result<Frame, FrameError> {
    let (kind, body) = frames::split(&mut bytes)?;
    Frame::decode(kind, body)
}

#[test]
fn released_frames_stay_what_they_are() {
    let lines: Vec<(&str, &str)> =
        VECTORS.lines().filter(|line| !line.starts_with('#')).filter_map(|l| l.split_once(' ')).collect();
    let ours: Vec<String> =
        samples().iter().map(|(name, frame)| format!("{name} {}", hex::encode(encoded(frame)))).collect();
    assert_eq!(lines.len(), samples().len(), "{}", ours.join("\n"));
    for ((name, frame), (line_name, hex_text)) in samples().into_iter().zip(lines) {
        assert_eq!((name, hex::encode(encoded(&frame)).as_str()), (line_name, hex_text));
        assert_eq!(decoded(&hex::decode(hex_text).unwrap()), Ok(frame));
    }
}

#[test]
fn bodies_are_postcard() {
    let body = |frame: &Frame| encoded(frame)[3..].to_vec();
    let renew = Frame::Renew { seq: 5, lease_seconds: 40, unix_ms: -7 };
    assert_eq!(body(&renew), postcard::to_allocvec(&(5u32, 40u32, -7i64)).unwrap());
    let busy = Frame::Busy { after_ms: 300, reason: "spät".into() };
    assert_eq!(body(&busy), postcard::to_allocvec(&(300u32, "spät")).unwrap());
    let acks = Frame::Acks(vec![4, 6, 300]);
    assert_eq!(body(&acks), postcard::to_allocvec(&vec![4u32, 2, 294]).unwrap());
}

fn pair() -> (Lane, Lane) {
    (Lane::compact(0xa, End::Edge), Lane::compact(0xa, End::Cloud { node: "pi".into(), compress: None }))
}

fn carry(from: &mut Lane, to: &mut Lane) -> Vec<Received> {
    let mut received = Vec::new();
    while let Some(Out::Binary(bytes)) = from.take() {
        received.extend(to.receive(Frames::Binary(&bytes)).expect("what we encode decodes"));
    }
    received
}

fn message(received: &Received) -> &Message {
    match received {
        Received::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

fn push(n: u32) -> Message {
    Message::new(1, source::EDGE_CONTROLLER, "resource", Operation::INSERT, &format!("default/pod/p{n}"))
        .with_content(&n)
        .with_resource_version("7")
}

#[test]
fn messages_arrive_as_they_were_and_many_are_acknowledged_at_once() {
    let (mut edge, mut cloud) = pair();
    let pushes: Vec<Message> = (0..5).map(push).collect();
    for push in &pushes {
        assert!(cloud.push(push));
    }
    let arrived = carry(&mut cloud, &mut edge);
    for (sent, got) in pushes.iter().zip(&arrived) {
        let got = message(got);
        assert_eq!((&got.route, got.content.get()), (&sent.route, sent.content.get()));
        assert_eq!((&got.header.resourceversion, got.header.timestamp), (&sent.header.resourceversion, 1));
    }
    for got in &arrived {
        edge.push(&message(got).ack(2));
    }
    assert!(edge.only_acks_wait());
    let Some(Out::Binary(bytes)) = edge.take() else { panic!("one frame") };
    assert!(bytes.len() < 10 && edge.take().is_none(), "{bytes:02x?}");
    let acked = cloud.receive(Frames::Binary(&bytes)).unwrap();
    for (sent, ack) in pushes.iter().zip(&acked) {
        let ack = message(ack);
        assert_eq!(ack.header.parent_msg_id, sent.header.msg_id);
        assert!(ack.content_is_ok() && ack.route.operation == "response");
    }
    assert_eq!(acked.len(), 5);
    // Again: answered once is answered.
    let again = cloud.receive(Frames::Binary(&bytes)).unwrap();
    assert!(again.iter().all(|r| matches!(r, Received::Unasked { .. })), "{again:?}");
}

#[test]
fn what_an_idle_node_repeats_is_short_and_means_the_same() {
    let (mut edge, mut cloud) = pair();
    let lease =
        serde_json::json!({"metadata": {"name": "pi", "uid": "1"}, "spec": {"leaseDurationSeconds": 40}});
    let update = Message::new(77, source::EDGED, "meta", Operation::UPDATE, "kube-node-lease/lease/pi")
        .with_content(&lease);
    edge.push(&update);
    let Some(Out::Binary(bytes)) = edge.take() else { panic!("a frame") };
    assert!(bytes.len() <= 12, "{} bytes", bytes.len());
    let got = cloud.receive(Frames::Binary(&bytes)).unwrap();
    let got = message(&got[0]);
    assert_eq!(
        (got.route.operation.as_str(), got.route.resource.as_str()),
        (RENEW, "kube-node-lease/lease/pi")
    );
    assert_eq!(got.content.get(), "{\"leaseDurationSeconds\":40,\"unixMs\":77}");
    cloud.push(&got.ack(1));
    let answer = carry(&mut cloud, &mut edge);
    assert_eq!(message(&answer[0]).header.parent_msg_id, update.header.msg_id);

    let status = |ready: &str, time: &str| {
        let conditions = serde_json::json!([{"type": "Ready", "status": ready, "lastHeartbeatTime": time}]);
        let patch = serde_json::json!({"status": {"conditions": conditions}}).to_string();
        Message::new(78, source::EDGED, "meta", Operation::PATCH, "null/nodepatch/pi").with_content(&patch)
    };
    let mut tell = |ready: &str, time: &str, accept: bool| {
        edge.push(&status(ready, time));
        let got = carry(&mut edge, &mut cloud);
        let got = message(&got[0]).clone();
        let refusal = || got.response(1, source::EDGE_CONTROLLER, "resource").with_content("no");
        cloud.push(&if accept { got.ack(1) } else { refusal() });
        carry(&mut cloud, &mut edge);
        got.route.operation
    };
    assert_eq!(tell("True", "1", true), Operation::PATCH, "the first time all is said");
    assert_eq!(tell("True", "2", true), BEAT, "nothing new but the time");
    assert_eq!(tell("False", "3", true), Operation::PATCH);
    assert_eq!(tell("False", "4", false), BEAT);
    assert_eq!(tell("False", "5", true), Operation::PATCH, "the cloud did not know it");
    assert_eq!(tell("False", "6", true), BEAT);
}

#[test]
fn an_answer_to_another_link_is_not_sent_and_one_to_nothing_is_told() {
    let (mut edge, mut cloud) = pair();
    cloud.push(&push(1));
    let old = message(&carry(&mut cloud, &mut edge)[0]).clone();
    let mut next = Lane::compact(0xb, End::Edge);
    assert!(!next.push(&old.ack(1)) && next.take().is_none());

    let mut bytes = encoded(&Frame::Acks(vec![1, 9]));
    bytes.extend(encoded(&Frame::Message(Envelope {
        parent: Some(55),
        content: "1".into(),
        ..Envelope::default()
    })));
    let received = cloud.receive(Frames::Binary(&bytes)).unwrap();
    assert!(matches!(received[0], Received::Message(_)), "this one was sent");
    assert!(matches!(received[1..], [Received::Unasked { parent: 9 }, Received::Unasked { parent: 55 }]));
}

/// What a node keeps of an answer it acknowledges as it does a push: that names a message which was sent.
#[test]
fn an_answer_that_is_kept_is_acknowledged() {
    let (mut edge, mut cloud) = pair();
    let answer_to = |edge: &mut Lane, cloud: &mut Lane, resource: &str, version: &str| {
        edge.push(&Message::new(1, source::EDGED, "meta", Operation::QUERY, resource));
        let asked = message(&carry(edge, cloud)[0]).clone();
        let answer = asked.response(2, source::EDGE_CONTROLLER, "resource").with_content(&"x");
        let answer = answer.with_resource_version(version);
        cloud.push(&answer);
        (answer.header.msg_id, message(&carry(cloud, edge)[0]).clone())
    };
    let (sent, got) = answer_to(&mut edge, &mut cloud, "default/configmap/settings", "7");
    edge.push(&got.ack(3));
    let acked = carry(&mut edge, &mut cloud);
    assert_eq!(message(&acked[0]).header.parent_msg_id, sent);
    // An error, and what is not kept: nobody waits for a word on them.
    for (resource, version) in [("default/configmap/settings", ""), ("kube-node-lease/lease/pi", "7")] {
        answer_to(&mut edge, &mut cloud, resource, version);
        assert_eq!(cloud.unanswered().count(), 0);
    }
}

#[test]
fn kinds_of_a_later_version_are_skipped_and_reported_once() {
    let (mut edge, mut cloud) = pair();
    let mut bytes = Vec::new();
    for kind in [0x0070, 0x0071, 0x0070] {
        frames::put_frame(&mut bytes, kind, b"whatever comes");
    }
    bytes.extend(encoded(&Frame::Welcome { resumed: false }));
    let received = edge.receive(Frames::Binary(&bytes)).unwrap();
    assert!(
        matches!(received[..], [Received::Welcome { resumed: false }]),
        "what we know is taken: {received:?}"
    );
    let told = carry(&mut edge, &mut cloud);
    assert!(matches!(told[..], [Received::PeerSkipped { kind: 0x70 }, Received::PeerSkipped { kind: 0x71 }]));
    assert!(carry(&mut cloud, &mut edge).is_empty(), "no answer to that");
}

/// Nothing is allocated for what a length says; see the limits that each error names.
#[test]
fn lengths_that_lie_end_the_link() {
    let packed = |len: u32, hex_text: &str| {
        encoded(&Frame::Packed { inflated_len: len, bytes: hex::decode(hex_text).unwrap() })
    };
    let mut nested = Vec::new();
    let inner = packed(80, PACKED);
    // A zstd frame with one raw block.
    let mut raw = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, inner.len() as u8];
    raw.extend(((inner.len() as u32) << 3 | 1).to_le_bytes()[..3].iter());
    raw.extend(&inner);
    Frame::Packed { inflated_len: inner.len() as u32, bytes: raw }.encode(&mut nested);
    for (what, bytes) in [
        ("a frame cut short", encoded(&Frame::Welcome { resumed: true })[..3].to_vec()),
        ("a length of four gigabytes", vec![0x20, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, 1]),
        ("a number of eleven bytes", [&[0x24, 0, 12][..], &[0xff; 12]].concat()),
        ("a million acknowledgements in no bytes", vec![0x22, 0, 3, 0xc0, 0x84, 0x3d]),
        ("acknowledgements that do not rise", vec![0x22, 0, 4, 3, 1, 0, 0]),
        ("bytes behind the body", vec![0x26, 0, 2, 1, 1]),
        ("a word that does not exist", vec![0x20, 0, 8, 0, 1, 0, 99, 0, 0, 0, 0]),
        ("inflated, larger than any message", packed(u32::MAX, PACKED)),
        ("inflated, another length than told", packed(81, PACKED)),
        ("a window of a gigabyte", packed(80, "28b52ffd40a05000")),
        ("no zstd at all", packed(80, "00")),
        ("a packed frame in a packed frame", nested),
        (
            "content that is not JSON",
            encoded(&Frame::Message(Envelope { content: "{".into(), ..Envelope::default() })),
        ),
    ] {
        let error = pair().0.receive(Frames::Binary(&bytes)).err();
        assert!(error.as_ref().is_some_and(LaneError::ends_link), "{what}: {error:?}");
    }
    let (mut edge, _) = pair();
    let whole = edge.receive(Frames::Binary(&packed(80, PACKED))).unwrap();
    assert_eq!(whole.len(), 16, "the same without a lie: {whole:?}");
}

#[test]
fn random_and_mutated_frames_never_panic() {
    let mut seed = 0x5eed_1234_9876_0001_u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let good: Vec<Vec<u8>> = samples().iter().map(|(_, frame)| encoded(frame)).collect();
    for _ in 0..20_000 {
        let mut bytes: Vec<u8> =
            (0..1 + next() % 3).flat_map(|_| good[(next() % good.len() as u64) as usize].clone()).collect();
        for _ in 0..next() % 5 {
            let at = (next() % bytes.len() as u64) as usize;
            match next() % 3 {
                0 => bytes[at] = next() as u8,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, next() as u8),
            }
        }
        fuzz_lane(&bytes);
    }
}
