//! Over pseudo terminals: the test holds the far end.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    path::Path,
};

use frames::{Frame, FrameValue, Frames, encode};
use mqtt::broker::testing::Random;
use nix::pty::openpty;
use serde_json::{Value, json};

use super::{
    lines::{Lines, fuzz_lines},
    *,
};
use crate::{
    driver::{Driver, Quality, Reading},
    plan::{self, Access, Plan, Protocol},
};

struct Bench {
    path: String,
    far: File,
    _near: OwnedFd,
    ports: Ports,
}

impl Bench {
    fn new() -> Bench {
        let pty = openpty(None, None).unwrap();
        let path = nix::unistd::ttyname(&pty.slave).unwrap().to_string_lossy().into_owned();
        // Raw, as a wire is, whoever speaks first.
        let mut settings = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
        nix::sys::termios::cfmakeraw(&mut settings);
        nix::sys::termios::tcsetattr(&pty.slave, nix::sys::termios::SetArg::TCSANOW, &settings).unwrap();
        Bench { path, far: File::from(pty.master), _near: pty.slave, ports: Ports::default() }
    }

    fn open(&mut self, config: Value, properties: Value) -> Result<SerialDriver, String> {
        let plan = plan_of(&self.path, config, properties);
        let Protocol::Serial(port) = &plan.protocol else { panic!() };
        SerialDriver::open(0, "default/d", port, &plan.properties, &mut self.ports)
    }

    fn says(&mut self, bytes: &[u8]) {
        self.far.write_all(bytes).unwrap();
    }

    fn hears(&mut self, end: u8) -> String {
        String::from_utf8(read_until(&mut self.far, end)).unwrap()
    }
}

fn read_until(far: &mut File, end: u8) -> Vec<u8> {
    let mut got = Vec::new();
    let mut byte = [0];
    loop {
        far.read_exact(&mut byte).unwrap();
        got.push(byte[0]);
        if byte[0] == end {
            return got;
        }
    }
}

/// Properties are `[name, type, desired, visitor]`.
fn plan_of(path: &str, mut config: Value, properties: Value) -> Plan {
    config["path"] = json!(path);
    config["baudRate"] = json!(9600);
    let list = properties.as_array().unwrap();
    let models: Vec<Value> = list.iter().map(|p| json!({"name": p[0], "type": p[1]})).collect();
    let properties: Vec<Value> = list
        .iter()
        .map(|p| json!({"name": p[0], "desired": {"value": p[2]}, "visitors": {"configData": p[3]}}))
        .collect();
    let description = json!({"device": {"spec": {"protocol": {"protocolName": "serial", "configData": config},
        "properties": properties}}, "model": {"spec": {"properties": models}}});
    plan::read(description.to_string().as_bytes()).unwrap().1.unwrap()
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

#[test]
fn lines_over_a_real_tty() {
    let mut bench = Bench::new();
    let properties = json!([
        ["temperature", "FLOAT", "", {}],
        ["heater", "INT", "1", {"write": "heater={}"}],
        ["third", "", "", {"prefix": "csv:", "separator": ";", "field": 2}],
    ]);
    let mut driver = bench.open(json!({}), properties).unwrap();
    assert_eq!(bench.hears(b'\n'), "heater=1\n", "the desired value is sent when the port opens");
    bench.says(b"temperature=21.5\r\ntemperature=21.5\nnoise\ncsv:a;b; c ;d\n\nheater=0\rtemp");
    let expected = [(1, "1"), (0, "21.5"), (2, "c"), (1, "0")].map(|(at, value)| (at, value.into()));
    assert_eq!(readings(&mut driver, 4), expected, "what was sent when the port opened is told, too");
    bench.says(b"erature=22\ntemperature=two words\ntemperature=23\n");
    assert_eq!(readings(&mut driver, 2), [(0, "22".into()), (0, "23".into())]);
    let mut set = Vec::new();
    driver.set(0, 1, "1", &mut set).unwrap();
    assert_eq!(bench.hears(b'\n'), "heater=1\n");
    assert_eq!(set, [Reading::good(1, "1")]);
    assert!(driver.set(0, 0, "1", &mut set).is_err(), "read only");
    let path = bench.path.clone();
    drop(bench);
    let error = (0..1000).find_map(|_| driver.ready(0, &mut Vec::new()).err()).expect("the port is gone");
    assert!(error.contains(&path) && error.contains("plug"), "{error}");
    assert_eq!(driver.deadline_ms(), Some(0), "whoever shares the port learns it at once");
    let plan = plan_of("/dev/does-not-exist", json!({}), json!([]));
    let Protocol::Serial(port) = &plan.protocol else { panic!() };
    let Err(error) = SerialDriver::open(0, "d", port, &[], &mut Ports::default()) else { panic!() };
    assert!(
        error.contains("cannot open /dev/does-not-exist") && error.contains("plug the device in"),
        "{error}"
    );
}

/// Each way to pick a value, and to write one.
#[test]
fn fields_of_lines() {
    let value = |kind: &str, visitor: Value, line: &str| {
        let plan = plan_of("/dev/x", json!({}), json!([["p", kind, "", visitor]]));
        let Access::Text(text) = &plan.properties[0].access else { panic!() };
        text.value(line)
    };
    let gga = "$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47";
    for (kind, visitor, line, expected) in [
        ("FLOAT", json!({"json": "/s/0/t"}), r#"{"s":[{"t":21.5}]}"#, Some("21.5")),
        ("FLOAT", json!({"json": "/t", "scale": "0.01", "offset": -40}), r#"{"t": 6150}"#, Some("21.5")),
        ("FLOAT", json!({"json": "/t"}), "{\"t\": ", None),
        ("INT", json!({"nmea": "GGA", "field": 7}), gga, Some("08")),
        ("FLOAT", json!({"nmea": "GPGGA", "field": 9}), gga, Some("545.4")),
        ("FLOAT", json!({"nmea": "GGA", "field": 9}), &gga.replace("545", "645"), None),
        (
            "DOUBLE",
            json!({"nmea": "GGA", "field": 2, "expression": "round(floor(value / 100) + value % 100 / 60, 6)"}),
            gga,
            Some("48.1173"),
        ),
        ("FLOAT", json!({"pattern": "*T: *C*", "field": 1}), "#7 T: 21.5C H: 40%", Some("21.5")),
        ("FLOAT", json!({"separator": ";", "prefix": "", "field": -1}), "a;b;7", Some("7")),
        (
            "INT",
            json!({"expression": "starts(line, 'W') ? number(word(line, 1)) * 1000 : 1 / 0"}),
            "W 1.2345 kg",
            Some("1235"),
        ),
        (
            "INT",
            json!({"expression": "starts(line, 'W') ? number(word(line, 1)) * 1000 : 1 / 0"}),
            "E 7",
            None,
        ),
        ("INT", json!({"prefix": "x=", "scale": 0.1}), "x=215", Some("22")),
        ("INT", json!({"prefix": "x=", "scale": 0.1}), "x=many", None),
    ] {
        assert_eq!(value(kind, visitor.clone(), line).as_deref(), expected, "{visitor} of {line}");
    }
    let written = |visitor: Value, value: &str| {
        let plan = plan_of("/dev/x", json!({}), json!([["p", "", "", visitor]]));
        let Access::Text(text) = &plan.properties[0].access else { panic!() };
        text.write.as_ref().unwrap().line(value)
    };
    assert_eq!(written(json!({"write": "{\"heater\":{}}"}), "1").unwrap(), "{\"heater\":1}");
    assert_eq!(written(json!({"write": "T{}", "writeExpression": "value * 10"}), "21.5").unwrap(), "T215");
    assert_eq!(written(json!({"write": "$PMTK220,{}*{checksum}"}), "1000").unwrap(), "$PMTK220,1000*1F");
    assert!(written(json!({"write": "T{}", "writeExpression": "value * 10"}), "warm").is_err());
    let refused = |visitor: Value| {
        let description = json!({"device": {"spec": {"protocol": {"protocolName": "serial", "configData": {"path": "/dev/x"}},
            "properties": [{"name": "p", "visitors": {"configData": visitor}}]}}});
        plan::read(description.to_string().as_bytes()).unwrap().1.unwrap_err()
    };
    for (visitor, expected) in [
        (json!({"json": "t"}), "\"t\" is no JSON pointer"),
        (json!({"json": "/t", "nmea": "GGA", "field": 1}), "use one of them"),
        (json!({"nmea": "GGA"}), "field is missing"),
        (json!({"pattern": "T"}), "has no * for the value"),
        (json!({"field": 1}), "needs a separator, nmea or pattern"),
        (json!({"expression": "foo(1)"}), "expression: foo is unknown"),
        (json!({"writeExpression": "value"}), "write configData.write"),
        (json!({"ask": "a\nb"}), "is no line"),
        (json!({"scale": 0}), "0 makes every value 0"),
    ] {
        let error = refused(visitor);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn devices_that_are_asked_and_devices_that_fall_silent() {
    let mut bench = Bench::new();
    let properties = json!([
        ["weight", "FLOAT", "", {"ask": "W?", "pattern": "W *kg"}],
        ["tare", "FLOAT", "", {"ask": "T?", "pattern": "T *kg"}],
    ]);
    let mut driver = bench.open(json!({"lineEnd": "crlf", "silentAfterMs": 3000}), properties).unwrap();
    let mut all = Vec::new();
    assert_eq!(driver.deadline_ms(), Some(0));
    driver.tick(0, &mut all).unwrap();
    assert_eq!(driver.deadline_ms(), Some(50), "one question at a time");
    driver.tick(50, &mut all).unwrap();
    assert_eq!((bench.hears(b'\n'), bench.hears(b'\n')), ("W?\r\n".into(), "T?\r\n".into()));
    assert_eq!(driver.deadline_ms(), Some(1000));
    bench.says(b"W 1.5kg\r\n");
    assert_eq!(readings(&mut driver, 1), [(0, "1.5".into())]);
    for at in [1000, 1050, 2000, 2050, 3000, 3050] {
        driver.tick(at, &mut all).unwrap();
    }
    let quality: Vec<(usize, Quality)> =
        all.iter().map(|reading| (reading.property, reading.quality)).collect();
    assert_eq!(quality, [(0, Quality::Stale), (1, Quality::Bad)]);
    assert!(driver.complaint().unwrap().contains("for 3000 ms; check that the device is on"));
    bench.says(b"W 1.5kg\r\n");
    assert_eq!(readings(&mut driver, 1), [(0, "1.5".into())], "told again, since it was stale");
    assert_eq!(driver.complaint(), None);
}

#[test]
fn several_devices_on_one_port() {
    let mut bench = Bench::new();
    let mut one = bench.open(json!({}), json!([["a", "", "", {"write": "a={}"}]])).unwrap();
    let mut two = bench.open(json!({}), json!([["b", "", "", {"write": "b={}"}]])).unwrap();
    bench.says(b"a=1\nb=2\n");
    assert_eq!(readings(&mut one, 1), [(0, "1".into())]);
    assert_eq!(two.deadline_ms(), Some(0), "what the other's turn brought");
    assert_eq!(readings(&mut two, 1), [(0, "2".into())]);
    one.set(0, 0, "3", &mut Vec::new()).unwrap();
    two.set(0, 0, "4", &mut Vec::new()).unwrap();
    assert_eq!((bench.hears(b'\n'), bench.hears(b'\n')), ("a=3\n".into(), "b=4\n".into()));
    let Err(error) = bench.open(json!({"parity": "even"}), json!([])) else { panic!() };
    assert!(error.contains("is open for default/d with other settings"), "{error}");
    // Another mapper, a terminal program: the lock is the kernel's.
    let mut ports = std::mem::take(&mut bench.ports);
    let Err(error) = bench.open(json!({}), json!([])) else { panic!() };
    assert!(error.contains("is in use by another program"), "{error}");
    drop(one);
    std::mem::swap(&mut ports, &mut bench.ports);
    bench.says(b"b=5\n");
    assert_eq!(readings(&mut two, 1), [(0, "5".into())]);
    drop(two);
    bench.open(json!({"parity": "even"}), json!([])).expect("the last one closed it");
}

#[test]
fn rs485_where_the_driver_cannot() {
    let mut bench = Bench::new();
    let Err(error) = bench.open(json!({"rs485": true}), json!([])) else { panic!() };
    assert!(
        error.contains("cannot switch an RS-485 transmitter") && error.contains("remove rs485"),
        "{error}"
    );
}

#[test]
fn frames_over_a_real_tty() {
    let mut bench = Bench::new();
    let properties = json!([["level", "", "", {"channel": 1}], ["valve", "", "true", {"channel": 2}]]);
    let mut driver = bench.open(json!({"framing": "frames"}), properties).unwrap();
    let heard = |bench: &mut Bench| {
        let mut seen = Vec::new();
        Frames::default().feed(&read_until(&mut bench.far, 0), |frame| seen.push(frame));
        seen
    };
    assert_eq!(heard(&mut bench), [Frame::Set { sequence: 1, channel: 2, value: FrameValue::Bool(true) }]);
    let mut wire = vec![1, 2, 3, 0];
    wire.extend_from_slice(&encode(&Frame::Report {
        sequence: 9,
        channel: 1,
        value: FrameValue::Float(1.5),
    }));
    wire.extend_from_slice(&encode(&Frame::Done { sequence: 1, accepted: true }));
    wire.extend_from_slice(&encode(&Frame::Report { sequence: 10, channel: 7, value: FrameValue::Int(1) }));
    bench.says(&wire);
    assert_eq!(readings(&mut driver, 2), [(0, "1.5".into()), (1, "true".into())]);
    // Not answered: sent again three times, then the device complains.
    driver.set(100, 1, "false", &mut Vec::new()).unwrap();
    let mut at = 100;
    for pause in [0, 1000, 2000] {
        at += pause;
        driver.tick(at, &mut Vec::new()).unwrap();
        assert_eq!(
            heard(&mut bench),
            [Frame::Set { sequence: 2, channel: 2, value: FrameValue::Bool(false) }]
        );
    }
    assert_eq!(driver.deadline_ms(), Some(7100));
    driver.tick(7100, &mut Vec::new()).unwrap();
    assert!(driver.complaint().unwrap().contains("does not answer to valve = false"));
    bench.says(&encode(&Frame::Report { sequence: 11, channel: 1, value: FrameValue::Int(2) }));
    assert_eq!(readings(&mut driver, 1), [(0, "2".into())]);
    assert_eq!(driver.complaint(), None, "it speaks again");
}

/// Names as udev makes them, from a sysfs of files.
#[test]
fn by_id_without_udev() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let put = |path: &str, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put("usb1/1-1/idVendor", "0403\n");
    put("usb1/1-1/idProduct", "6001\n");
    put("usb1/1-1/manufacturer", "FTDI\n");
    put("usb1/1-1/product", "FT232R  USB UART\n");
    put("usb1/1-1/serial", "A50285BI\n");
    put("usb1/1-1/1-1:1.0/bInterfaceNumber", "00\n");
    put("usb1/1-1/1-1:1.0/ttyUSB0/port_number", "0\n");
    put("usb1/1-2/idVendor", "2341\n");
    put("usb1/1-2/idProduct", "0043\n");
    put("usb1/1-2/manufacturer", "Arduino (www.arduino.cc)\n");
    put("usb1/1-2/serial", "bad\u{e9}\n");
    put("usb1/1-2/1-2:1.0/bInterfaceNumber", "00\n");
    put("platform/ttyS0/x", "");
    for (port, device) in [
        ("ttyUSB0", "usb1/1-1/1-1:1.0/ttyUSB0"),
        ("ttyACM0", "usb1/1-2/1-2:1.0"),
        ("ttyS0", "platform/ttyS0"),
    ] {
        let class = root.join("class").join(port);
        std::fs::create_dir_all(&class).unwrap();
        std::os::unix::fs::symlink(root.join(device), class.join("device")).unwrap();
    }
    let names = byid::names(&root.join("class"));
    let expected = [
        ("usb-Arduino__www.arduino.cc__0043-if00", "ttyACM0"),
        ("usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0", "ttyUSB0"),
    ];
    assert_eq!(names, expected.map(|(name, port)| (name.to_owned(), port.to_owned())));
    let of = |name: &str| byid::resolve_in(&format!("{}{name}", byid::FOLDER), &root.join("class"));
    assert_eq!(of(expected[1].0), Path::new("/dev/ttyUSB0"));
    assert_eq!(of("usb-other"), Path::new("/dev/serial/by-id/usb-other"));
}

#[test]
fn any_bytes() {
    let mut random = Random(11);
    for _ in 0..5000 {
        let len = random.below(400);
        let data: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        fuzz_lines(&data);
        plan::text::fuzz_text(&data);
    }
    let mut lines = Lines::default();
    let mut got = Vec::new();
    lines.feed(&[b'x'; 1100], |_| panic!());
    lines.feed(b"rest\nnext\n", |line| got.push(line.to_owned()));
    assert_eq!(got, ["next"]);
}
