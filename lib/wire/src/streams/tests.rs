use bytes::Bytes;

use super::*;
use crate::limits::{STREAM_ANSWERS_MAX, STREAM_CHUNK_LEN_MAX, STREAM_WINDOW_MAX, STREAMS_MAX};

/// One frame of each kind as version 1 sends it. Lines are added, never changed (design decision 2).
const VECTORS: &str = include_str!("../../../../tests/vectors/streams-v1.txt");

fn samples() -> Vec<(&'static str, Frame)> {
    let bytes = Bytes::from_static(&[0x00, 0xff, 0x80, b'k']);
    vec![
        ("unknown", Frame::Unknown { kind: 0x1234 }),
        ("open", Frame::Open { id: 1, window: 65_536 }),
        ("accept", Frame::Accept { id: 1, window: 4_096 }),
        ("data", Frame::Data { id: 300, bytes }),
        ("window", Frame::Window { id: u32::MAX, add: 32_768 }),
        ("finish", Frame::Finish { id: 7 }),
        ("stop", Frame::Stop { id: 128 }),
        ("reset", Frame::Reset { id: 7, reason: "zu spät".into() }),
    ]
}

#[test]
fn released_frames_stay_what_they_are() {
    let lines: Vec<(&str, &str)> =
        VECTORS.lines().filter(|line| !line.starts_with('#')).filter_map(|l| l.split_once(' ')).collect();
    assert_eq!(lines.len(), samples().len());
    for ((name, frame), (line_name, hex_text)) in samples().into_iter().zip(lines) {
        assert_eq!((name, hex::encode(frame.encode()).as_str()), (line_name, hex_text));
        assert_eq!(Frame::decode(&hex::decode(hex_text).unwrap()), Ok(frame));
    }
}

#[test]
fn bodies_are_postcard() {
    let body = |frame: &Frame| frame.encode()[3..].to_vec();
    let data = Frame::Data { id: 300, bytes: Bytes::from_static(&[0, 255]) };
    assert_eq!(body(&data), postcard::to_allocvec(&(300u32, [0u8, 255].as_slice())).unwrap());
    let reset = Frame::Reset { id: 9, reason: "spät".into() };
    assert_eq!(body(&reset), postcard::to_allocvec(&(9u32, "spät")).unwrap());
    assert_eq!(
        body(&Frame::Window { id: 1, add: u32::MAX }),
        postcard::to_allocvec(&(1u32, u32::MAX)).unwrap()
    );
    assert_eq!(body(&Frame::Unknown { kind: u16::MAX }), postcard::to_allocvec(&u16::MAX).unwrap());
}

#[test]
fn bad_frames_are_errors() {
    for (bytes, error) in [
        (vec![], FrameError::Short),
        (vec![0x12], FrameError::Short),
        (vec![0x14, 0, 2, 7], FrameError::Length { said: 2, found: 1 }),
        (vec![0x14, 0, 2, 7, 7], FrameError::Length { said: 1, found: 2 }),
        (vec![0x14, 0, 5, 0xff, 0xff, 0xff, 0xff, 0x7f], FrameError::Number),
        (vec![0x12, 0, 3, 1, 9, 0], FrameError::Short),
        (vec![0x15, 0, 3, 1, 1, 0xff], FrameError::Reason),
    ] {
        assert_eq!(Frame::decode(&bytes), Err(error), "{bytes:?}");
    }
    let large = Frame::Data { id: 1, bytes: vec![0; STREAM_CHUNK_LEN_MAX + 1].into() };
    assert_eq!(Frame::decode(&large.encode()), Err(FrameError::Chunk(STREAM_CHUNK_LEN_MAX + 1)));
    let long = Frame::Reset { id: 1, reason: "ä".repeat(300) };
    assert!(matches!(Frame::decode(&long.encode()), Ok(Frame::Reset { reason, .. }) if reason.len() == 256));
}

fn frames(mux: &mut Mux) -> Vec<Frame> {
    std::iter::from_fn(|| mux.transmit()).map(|(frame, _)| frame).collect()
}

/// Carries everything there is, both ways, until nothing is left.
fn carry(a: &mut Mux, b: &mut Mux) {
    loop {
        let (there, back) = (frames(a), frames(b));
        if there.is_empty() && back.is_empty() {
            return;
        }
        there.into_iter().for_each(|frame| _ = b.handle(frame).unwrap());
        back.into_iter().for_each(|frame| _ = a.handle(frame).unwrap());
    }
}

fn pair() -> (Mux, Mux) {
    (Mux::opener(Settings::default()), Mux::acceptor(Settings::default()))
}

fn read_all(mux: &mut Mux, id: u32) -> (Vec<u8>, Read) {
    let (mut all, mut buffer) = (Vec::new(), [0; 1000]);
    loop {
        match mux.read(id, &mut buffer).unwrap() {
            Read::Bytes(len) => all.extend_from_slice(&buffer[..len]),
            other => return (all, other),
        }
    }
}

#[test]
fn each_direction_ends_by_itself() {
    let (mut cloud, mut edge) = pair();
    let id = cloud.open().unwrap();
    assert_eq!(cloud.write(id, b"GET /").unwrap(), 5);
    cloud.finish(id);
    carry(&mut cloud, &mut edge);
    assert_eq!(read_all(&mut edge, id), (b"GET /".to_vec(), Read::End));
    assert_eq!(read_all(&mut cloud, id), (vec![], Read::Wait));
    edge.write(id, b"200").unwrap();
    edge.finish(id);
    // Its owner goes before all was sent: still delivered.
    edge.close(id);
    carry(&mut cloud, &mut edge);
    assert_eq!(read_all(&mut cloud, id), (b"200".to_vec(), Read::End));
    cloud.close(id);
    carry(&mut cloud, &mut edge);
    assert_eq!((cloud.len(), edge.len()), (0, 0));
}

#[test]
fn who_goes_away_in_the_middle_ends_the_stream_at_both_ends() {
    let (mut cloud, mut edge) = pair();
    let id = cloud.open().unwrap();
    cloud.write(id, b"half").unwrap();
    carry(&mut cloud, &mut edge);
    cloud.close(id);
    carry(&mut cloud, &mut edge);
    let end = StreamEnd("closed by the other end".into());
    assert_eq!(edge.read(id, &mut [0; 9]), Err(end.clone()), "what was not read is lost, and that shows");
    assert_eq!(edge.write(id, b"x"), Err(end));
    edge.close(id);
    assert_eq!((cloud.len(), edge.len()), (0, 0));
}

#[test]
fn who_finished_and_went_away_does_not_lose_what_it_sent() {
    let (mut cloud, mut edge) = pair();
    let id = cloud.open().unwrap();
    carry(&mut cloud, &mut edge);
    edge.write(id, b"the end of a log").unwrap();
    edge.finish(id);
    edge.close(id);
    carry(&mut cloud, &mut edge);
    assert_eq!(edge.len(), 0, "the edge said that it reads no more, and the cloud that it sends no more");
    assert!(cloud.write(id, b"x").is_err());
    assert_eq!(read_all(&mut cloud, id), (b"the end of a log".to_vec(), Read::End));
    cloud.close(id);
    assert_eq!(cloud.len(), 0);
}

#[test]
fn two_that_went_away_with_data_nobody_reads_do_not_wait_for_each_other() {
    let (mut cloud, mut edge) = pair();
    let id = cloud.open().unwrap();
    carry(&mut cloud, &mut edge);
    for _ in 0..10 {
        cloud.write(id, &[1; 10_000]).unwrap();
        edge.write(id, &[2; 10_000]).unwrap();
        carry(&mut cloud, &mut edge);
    }
    for mux in [&mut cloud, &mut edge] {
        mux.finish(id);
        mux.close(id);
    }
    assert!(cloud.queued_len() > 0 && edge.queued_len() > 0);
    carry(&mut cloud, &mut edge);
    assert_eq!((cloud.len(), edge.len()), (0, 0));
}

#[test]
fn limits_of_streams_and_bytes() {
    let settings = Settings { streams_max: 3, ..Settings::default() };
    let (mut cloud, mut edge) = (Mux::opener(Settings::default()), Mux::acceptor(settings));
    let ids: Vec<u32> = (0..4).map(|_| cloud.open().unwrap()).collect();
    carry(&mut cloud, &mut edge);
    assert_eq!(cloud.is_accepted(ids[2]), Ok(true));
    assert_eq!(cloud.is_accepted(ids[3]), Err(StreamEnd("3 streams are open, which is the limit".into())));
    cloud.close(ids[3]);
    assert_eq!(cloud.len(), 3);

    let mut cloud = Mux::opener(Settings::default());
    let mut granted = 0;
    while let Ok(_id) = cloud.open() {
        let Some((Frame::Open { window, .. }, _)) = cloud.transmit() else { panic!("an open") };
        assert!(window <= STREAM_WINDOW_MAX);
        granted += window as usize;
    }
    assert!(cloud.len() > STREAMS_MAX * 3 / 4, "{} streams beside each other", cloud.len());
    assert!(granted <= Settings::default().link_bytes_max, "{granted}");
}

#[test]
fn a_stalled_link_refuses_further_streams() {
    let mut cloud = Mux::opener(Settings::default());
    let opened = std::iter::repeat_with(|| cloud.open().map(|id| cloud.close(id))).take_while(Result::is_ok);
    let opened = opened.take(10_000).count();
    assert!(opened <= STREAM_ANSWERS_MAX, "{opened} pairs of open and reset wait");
}

#[test]
fn a_peer_that_breaks_a_streams_rules_loses_the_stream() {
    let id = 1;
    let data = |len: usize| Frame::Data { id, bytes: vec![0; len].into() };
    let cases: [(&str, Vec<Frame>); 4] = [
        ("more than granted", (0..5).map(|_| data(STREAM_CHUNK_LEN_MAX)).collect()),
        ("data after its end", vec![Frame::Finish { id }, data(1)]),
        ("endless window", vec![Frame::Window { id, add: u32::MAX }]),
        ("accepted by the opener", vec![Frame::Accept { id, window: 1 }]),
    ];
    for (what, frames_of_peer) in cases {
        let mut edge = Mux::acceptor(Settings::default());
        edge.handle(Frame::Open { id, window: 100 }).unwrap();
        let opened = frames(&mut edge);
        assert!(matches!(opened[..], [Frame::Accept { .. }]));
        frames_of_peer.into_iter().for_each(|frame| _ = edge.handle(frame).unwrap());
        assert!(
            matches!(&frames(&mut edge)[..], [Frame::Reset { reason, .. }] if reason.contains("rules")),
            "{what}"
        );
        assert!(edge.kept_len() <= STREAM_WINDOW_MAX as usize, "{what}");
        assert!(edge.write(id, b"x").is_err(), "{what}");
    }
}

#[test]
fn a_peer_that_breaks_the_links_rules_loses_the_link() {
    let mut edge = Mux::acceptor(Settings::default());
    assert_eq!(edge.handle(Frame::Finish { id: 1 }), Err(Violation::NeverOpened(1)));
    edge.handle(Frame::Open { id: 5, window: 1 }).unwrap();
    assert_eq!(edge.handle(Frame::Open { id: 5, window: 1 }), Err(Violation::Id { id: 5, last: 5 }));
    assert_eq!(edge.handle(Frame::Finish { id: 3 }), Ok(None), "late is not wrong");
    let flood = (6..2000).find_map(|id| edge.handle(Frame::Open { id, window: 1 }).err());
    assert_eq!(flood, Some(Violation::Flood));
    let mut cloud = Mux::opener(Settings::default());
    assert_eq!(cloud.handle(Frame::Open { id: 1, window: 1 }), Err(Violation::NotTheOpener));
}

#[test]
fn unknown_kinds_are_reported_once() {
    let mut edge = Mux::acceptor(Settings::default());
    let frame = Frame::decode(&[0x34, 0x12, 1, 0]).unwrap();
    assert_eq!(edge.handle(frame.clone()), Ok(None));
    assert_eq!(edge.handle(frame), Ok(None));
    assert_eq!(frames(&mut edge), [Frame::Unknown { kind: 0x1234 }]);
    assert_eq!(edge.handle(Frame::Unknown { kind: 9 }), Ok(None));
    assert_eq!(frames(&mut edge), []);
}

#[test]
fn streams_take_turns_and_windows_go_first() {
    let (mut cloud, mut edge) = pair();
    let ids: Vec<u32> = (0..3).map(|_| cloud.open().unwrap()).collect();
    carry(&mut cloud, &mut edge);
    for id in &ids {
        assert_eq!(cloud.write(*id, &[0; 100_000]).unwrap(), crate::limits::SEND_BUFFER_LEN);
    }
    let order: Vec<u32> = frames(&mut cloud)
        .iter()
        .map(|frame| match frame {
            Frame::Data { id, .. } => *id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(order, [1, 2, 3, 1, 2, 3]);
}

#[test]
fn the_end_of_the_link_ends_every_stream() {
    let (mut cloud, mut edge) = pair();
    let id = cloud.open().unwrap();
    carry(&mut cloud, &mut edge);
    edge.write(id, b"x").unwrap();
    assert_eq!(edge.end_all("the link broke"), [Action::Ready(id)]);
    assert_eq!(edge.read(id, &mut [0; 1]), Err(StreamEnd("the link broke".into())));
    assert!(edge.write(id, b"x").is_err() && edge.transmit().is_none());
    edge.close(id);
    assert!(edge.is_empty());
}

#[test]
fn any_bytes_are_no_panic() {
    let mut seed = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..3_000 {
        // A byte of length before each frame: whole frames with some bytes changed.
        let mut data = Vec::new();
        for _ in 0..next() % 12 {
            let samples = samples();
            let mut frame = samples[(next() % samples.len() as u64) as usize].1.encode();
            for _ in 0..next() % 3 {
                let at = (next() % frame.len() as u64) as usize;
                frame[at] = if next() % 2 == 0 { next() as u8 } else { 1 };
            }
            data.push(frame.len() as u8);
            data.extend(frame);
        }
        fuzz_frames(&data);
    }
}
