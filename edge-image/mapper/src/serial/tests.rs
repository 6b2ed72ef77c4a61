use std::{
    io::{Read, Write},
    os::fd::OwnedFd,
};

use mqtt::broker::testing::Random;
use nix::pty::openpty;

use super::{
    frames::{Frame, FrameValue, Frames, crc16, encode, fuzz_frames},
    lines::{Lines, fuzz_lines},
    *,
};
use crate::{
    driver::{Driver, Reading},
    plan::{
        Access, Property,
        serial::{Flow, Framing, Parity, Port, TextField},
    },
};

/// A port whose other end the test holds.
fn pair(framing: Framing) -> (Port, std::fs::File, OwnedFd) {
    let pty = openpty(None, None).unwrap();
    let path = nix::unistd::ttyname(&pty.slave).unwrap().to_string_lossy().into_owned();
    let port = Port {
        path,
        baud_rate: 9600,
        data_bits: 8,
        parity: Parity::None,
        stop_bits: 1,
        flow: Flow::None,
        framing,
        rs485: None,
    };
    (port, std::fs::File::from(pty.master), pty.slave)
}

fn property(name: &str, access: Access, desired: Option<&str>) -> Property {
    Property { desired: desired.map(str::to_owned), ..Property::new(name, access) }
}

fn text(prefix: &str, separator: Option<char>, field: usize, write: Option<&str>) -> Access {
    Access::Text(TextField { prefix: prefix.into(), separator, field, write: write.map(str::to_owned) })
}

/// Polls the driver until it has read something.
fn readings(driver: &mut SerialDriver, count: usize) -> Vec<(usize, String)> {
    let mut all: Vec<Reading> = Vec::new();
    for _ in 0..4000 {
        driver.ready(0, &mut all).unwrap();
        if all.len() >= count {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    all.into_iter().map(|reading| (reading.property, reading.value)).collect()
}

fn read_until(master: &mut std::fs::File, end: u8) -> Vec<u8> {
    let mut got = Vec::new();
    let mut byte = [0];
    loop {
        master.read_exact(&mut byte).unwrap();
        got.push(byte[0]);
        if byte[0] == end {
            return got;
        }
    }
}

#[test]
fn lines_over_a_real_tty() {
    let (port, mut master, slave) = pair(Framing::Lines);
    let properties = [
        property("temperature", text("temperature=", None, 0, None), None),
        property("heater", text("heater=", None, 0, Some("heater={}")), Some("1")),
        property("third", text("csv:", Some(';'), 2, None), None),
    ];
    let mut driver = SerialDriver::open(0, &port, &properties).unwrap();
    assert_eq!(
        read_until(&mut master, b'\n'),
        b"heater=1\n",
        "the desired value is sent when the port opens"
    );
    master
        .write_all(b"temperature=21.5\r\ntemperature=21.5\nnoise\ncsv:a;b; c ;d\n\nheater=0\ntemp")
        .unwrap();
    assert_eq!(readings(&mut driver, 3), [(0, "21.5".into()), (2, "c".into()), (1, "0".into())]);
    master.write_all(b"erature=22\ntemperature=two words\ntemperature=23\n").unwrap();
    assert_eq!(readings(&mut driver, 2), [(0, "22".into()), (0, "23".into())]);
    let mut set = Vec::new();
    driver.set(0, 1, "1", &mut set).unwrap();
    assert_eq!(read_until(&mut master, b'\n'), b"heater=1\n");
    assert_eq!(set, [Reading::good(1, "1")]);
    assert!(driver.set(0, 0, "1", &mut set).is_err(), "read only");
    drop((master, slave));
    let error = (0..1000).find_map(|_| driver.ready(0, &mut Vec::new()).err()).expect("the port is gone");
    assert!(error.contains(&port.path) && error.contains("plug"), "{error}");
    let Err(error) = SerialDriver::open(0, &Port { path: "/dev/does-not-exist".into(), ..port }, &[]) else {
        panic!()
    };
    assert!(
        error.contains("cannot open /dev/does-not-exist") && error.contains("plug the device in"),
        "{error}"
    );
}

#[test]
fn frames_over_a_real_tty() {
    let (port, mut master, _slave) = pair(Framing::Frames);
    let properties =
        [property("level", Access::Channel(1), None), property("valve", Access::Channel(2), Some("true"))];
    let mut driver = SerialDriver::open(0, &port, &properties).unwrap();
    let mut seen = Vec::new();
    Frames::default().feed(&read_until(&mut master, 0), |frame| seen.push(frame));
    assert_eq!(seen, [Frame::Set { sequence: 1, channel: 2, value: FrameValue::Bool(true) }]);
    let mut wire = vec![1, 2, 3, 0];
    wire.extend_from_slice(&encode(&Frame::Report {
        sequence: 9,
        channel: 1,
        value: FrameValue::Float(1.5),
    }));
    wire.extend_from_slice(&encode(&Frame::Done { sequence: 1, accepted: true }));
    wire.extend_from_slice(&encode(&Frame::Report { sequence: 10, channel: 7, value: FrameValue::Int(1) }));
    master.write_all(&wire).unwrap();
    assert_eq!(readings(&mut driver, 2), [(0, "1.5".into()), (1, "true".into())]);
    // Not answered: sent again three times, then the device complains.
    driver.set(100, 1, "false", &mut Vec::new()).unwrap();
    let mut at = 100;
    for pause in [0, 1000, 2000] {
        at += pause;
        driver.tick(at, &mut Vec::new()).unwrap();
        let mut seen = Vec::new();
        Frames::default().feed(&read_until(&mut master, 0), |frame| seen.push(frame));
        assert_eq!(seen, [Frame::Set { sequence: 2, channel: 2, value: FrameValue::Bool(false) }]);
    }
    assert_eq!(driver.deadline_ms(), Some(7100));
    driver.tick(7100, &mut Vec::new()).unwrap();
    assert!(driver.complaint().unwrap().contains("does not answer to valve = false"));
    master
        .write_all(&encode(&Frame::Report { sequence: 11, channel: 1, value: FrameValue::Int(2) }))
        .unwrap();
    assert_eq!(readings(&mut driver, 1), [(0, "2".into())]);
    assert_eq!(driver.complaint(), None, "it speaks again");
}

/// The documented bytes: sensors in the field send these. Never change them.
#[test]
fn the_frame_s_bytes_are_frozen() {
    assert_eq!(crc16(b"123456789"), 0x906e);
    let report = Frame::Report { sequence: 300, channel: 1, value: FrameValue::Int(-2) };
    let body = [0, 0xac, 0x02, 1, 1, 3];
    let crc = crc16(&body).to_le_bytes();
    assert_eq!(encode(&report).as_slice(), [&[1, 8, 0xac, 0x02, 1, 1, 3][..], &crc, &[0]].concat());
    let text = Frame::Set { sequence: 1, channel: 255, value: FrameValue::from_text("on-hold").unwrap() };
    assert_eq!(&encode(&text)[1..13], [1, 1, 255, 3, 7, b'o', b'n', b'-', b'h', b'o', b'l', b'd']);
    for (text, value) in
        [("true", FrameValue::Bool(true)), ("-7", FrameValue::Int(-7)), ("0.5", FrameValue::Float(0.5))]
    {
        assert_eq!(FrameValue::from_text(text), Some(value.clone()));
        assert_eq!(value.text(), text);
    }
    assert_eq!(FrameValue::from_text(&"x".repeat(65)), None);
}

#[test]
fn noise_costs_one_frame() {
    let mut random = Random(5);
    let mut frames = Frames::default();
    let mut got = 0;
    for round in 0..2000u16 {
        let frame = Frame::Report { sequence: round, channel: 3, value: FrameValue::Int(i64::from(round)) };
        let mut wire = encode(&frame).to_vec();
        let spoilt = round % 3 == 0;
        if spoilt {
            let at = random.below(wire.len() - 1);
            wire[at] ^= 1 << random.below(8);
        }
        frames.feed(&wire, |seen| {
            assert_eq!(seen, frame, "a spoilt frame is never taken for another");
            got += 1;
        });
    }
    assert!(got >= 1200 && frames.broken >= 600, "{got} {}", frames.broken);
    frames.feed(&[7; 1000], |_| panic!("nothing whole"));
    frames.feed(&[0], |_| panic!("too long"));
    frames.feed(&encode(&Frame::Done { sequence: 1, accepted: true }), |_| got += 1);
}

#[test]
fn any_bytes() {
    let mut random = Random(11);
    for round in 0..5000 {
        let len = random.below(400);
        let mut data: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        if round % 2 == 0 {
            data.extend_from_slice(&encode(&Frame::Report {
                sequence: 1,
                channel: 1,
                value: FrameValue::Float(f32::from_bits(random.next() as u32)),
            }));
            let at = random.below(data.len());
            data[at] = random.next() as u8;
        }
        fuzz_lines(&data);
        fuzz_frames(&data);
    }
    let mut lines = Lines::default();
    let mut got = Vec::new();
    lines.feed(&[b'x'; 300], |_| panic!());
    lines.feed(b"rest\nnext\n", |line| got.push(line.to_owned()));
    assert_eq!(got, ["next"]);
}
