use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex, mpsc},
};

use mqtt::broker::testing::Random;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    onewire::{OneWire, Scratchpad, parse},
    registers::Registers,
    *,
};
use crate::{
    driver::{Driver, Quality, Reading, Wait},
    limits::PASSING_FAILURES_MAX,
    plan::{Access, Plan, register::fuzz_registers, sensor::Thermometer},
};

/// A sensor's file as the kernel writes it.
fn w1(bytes: &str, verdict: &str, millidegrees: i32) -> String {
    format!("{bytes} : crc={} {verdict}\n{bytes} t={millidegrees}\n", &bytes[bytes.len() - 2..])
}

const WARM: &str = "72 01 4b 46 7f ff 0e 10 57";
const POWER_ON: &str = "50 05 4b 46 7f ff 0c 10 1c";

fn sensor(root: &Path, id: &str, text: &str) {
    fs::create_dir_all(root.join("devices").join(id)).unwrap();
    fs::write(root.join("devices").join(id).join("w1_slave"), text).unwrap();
}

fn thermometer(id: Option<&str>) -> Thermometer {
    Thermometer { id: id.map(str::to_owned), offset: 0.0 }
}

fn passing(result: Result<String, Failure>) -> String {
    match result {
        Err(Failure::Passing(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn thermometers_on_the_wire() {
    let dir = tempfile::tempdir().unwrap();
    let id = "28-0316a2795cff";
    let sensors = vec![thermometer(Some(id)), Thermometer { id: None, offset: -0.5 }];
    let mut bus = OneWire::new(dir.path(), sensors);
    assert!(passing(bus.read(1)).contains("no thermometer on the 1-Wire bus"));
    sensor(dir.path(), id, &w1(WARM, "YES", 23_125));
    fs::create_dir_all(dir.path().join("devices/w1_bus_master1")).unwrap();
    assert_eq!((bus.read(0), bus.read(1)), (Ok("23.125".into()), Ok("22.625".into())));
    for (text, expected) in [
        (w1(WARM, "NO", 23_125), "its checksum is wrong"),
        (w1("72 01 4b 46 7f ff 0e 10 58", "YES", 23_125), "its checksum is wrong"),
        (w1("00 00 00 00 00 00 00 00 00", "YES", 0), "short circuit"),
        (w1("ff ff ff ff ff ff ff ff ff", "NO", -62), "it was unplugged"),
        (w1(WARM, "YES", 127_937), "outside of -55 to 125"),
        (w1(POWER_ON, "YES", 85_000), "its value after power-on"),
        (String::new(), "it said nothing"),
        ("72 01\nt=1\n".into(), "something odd"),
        (format!("{WARM} : crc=57 YES\n{WARM} t=warm\n"), "something odd"),
    ] {
        sensor(dir.path(), id, &text);
        assert!(passing(bus.read(0)).contains(expected), "{text}");
    }
    // A real 85: counted down differently, and said twice.
    let hot = w1("50 05 4b 46 7f ff 10 10 bd", "YES", 85_000);
    let Scratchpad::Millidegrees { after_power_on: false, .. } = parse(hot.as_bytes()) else {
        panic!("{:?}", parse(hot.as_bytes()))
    };
    sensor(dir.path(), id, &hot);
    assert!(passing(bus.read(0)).contains("85 degrees"));
    assert_eq!(bus.read(0), Ok("85".into()));
    fs::remove_dir_all(dir.path().join("devices").join(id)).unwrap();
    sensor(dir.path(), "28-000000000001", &w1(WARM, "YES", 23_125));
    let reason = passing(bus.read(0));
    assert!(reason.contains("28-0316a2795cff is not on the bus; there are: 28-000000000001"), "{reason}");
    sensor(dir.path(), "10-000000000002", &w1(WARM, "YES", 23_125));
    assert!(passing(bus.read(1)).contains("write configData.id: one of 10-000000000002, 28-000000000001"));
}

#[test]
fn any_bytes_of_a_sensor_are_taken() {
    let text = w1(WARM, "YES", 23_125);
    for seed in 0..3000 {
        let (mut random, mut bytes) = (Random(seed), text.clone().into_bytes());
        for _ in 0..random.below(6) {
            let at = random.below(bytes.len());
            bytes[at] = random.below(256) as u8;
        }
        bytes.truncate(random.below(bytes.len() + 1));
        parse(&bytes);
    }
}

/// Registers in memory: the last byte sent before is the address.
#[derive(Clone, Default)]
struct FakeBus {
    memory: Arc<Mutex<BTreeMap<u8, u8>>>,
    error: Arc<Mutex<Option<i32>>>,
    /// Answers wait for this, when it is there.
    gate: Option<Arc<Mutex<mpsc::Receiver<()>>>>,
}

impl Bus for FakeBus {
    fn exchange(&mut self, send: &[u8], receive: &mut [u8]) -> std::io::Result<()> {
        if let Some(gate) = &self.gate {
            let _ = gate.lock().unwrap().recv();
        }
        if let Some(code) = *self.error.lock().unwrap() {
            return Err(std::io::Error::from_raw_os_error(code));
        }
        let mut memory = self.memory.lock().unwrap();
        let place = |at: usize| send[0].wrapping_add(at as u8);
        for (at, byte) in receive.iter_mut().enumerate() {
            *byte = memory.get(&place(at)).copied().unwrap_or(0);
        }
        for (at, byte) in send.iter().skip(1).enumerate() {
            memory.insert(place(at), *byte);
        }
        Ok(())
    }
}

impl FakeBus {
    fn holds(bytes: &[(u8, u8)]) -> FakeBus {
        FakeBus { memory: Arc::new(Mutex::new(bytes.iter().copied().collect())), ..FakeBus::default() }
    }
}

fn plan(protocol: &str, properties: serde_json::Value) -> Result<Plan, String> {
    let config =
        if protocol == "i2c" { serde_json::json!({"address": "0x48"}) } else { serde_json::json!({}) };
    let device = serde_json::json!({"device": {"metadata": {"name": "d", "namespace": "default"}, "spec": {
        "protocol": {"protocolName": protocol, "configData": config}, "properties": properties}}});
    crate::plan::read(device.to_string().as_bytes()).and_then(|(_, plan)| plan)
}

fn one(protocol: &str, config: serde_json::Value) -> Result<Plan, String> {
    plan(protocol, serde_json::json!([{"name": "x", "visitors": {"configData": config}}]))
}

fn source(plan: &Plan, bus: &FakeBus) -> Registers {
    let registers = plan.properties.iter().filter_map(|property| match &property.access {
        Access::Bytes(register) => Some(register.as_ref().clone()),
        _ => None,
    });
    Registers::new(Box::new(bus.clone()), registers.collect(), "address 0x48 of /dev/i2c-1".into())
}

#[test]
fn bytes_become_values_as_described_and_values_bytes() {
    let bus = FakeBus::holds(&[(0, 0xe7), (1, 0x80), (2, 0x34), (3, 0x12), (4, 0b1010_0110)]);
    for (config, expected) in [
        // LM75: eleven bits at the top of two bytes, in eighths of a degree.
        (
            serde_json::json!({"register": 0, "length": 2, "signed": true, "mask": "0xffe0", "scale": 0.125}),
            "-24.5",
        ),
        (serde_json::json!({"register": 0, "length": 2}), "59264"),
        (serde_json::json!({"register": 2, "length": 2, "byteOrder": "little"}), "4660"),
        (serde_json::json!({"register": "0x04", "mask": "0x06"}), "3"),
        (serde_json::json!({"register": 4, "mask": 1}), "0"),
        (serde_json::json!({"register": 4, "scale": 0.5, "offset": -40}), "43"),
        (serde_json::json!({"send": "02", "skip": 1}), "18"),
        (serde_json::json!({"register": 0, "length": 8}), "16681390274479390720"),
    ] {
        let plan = one("i2c", config.clone()).unwrap();
        assert_eq!(source(&plan, &bus).read(0), Ok(expected.into()), "{config}");
    }
    let valve = one("i2c", serde_json::json!({"register": 4, "mask": "0x30", "write": true})).unwrap();
    let mut valve = source(&valve, &bus);
    valve.write(0, "1").unwrap();
    assert_eq!(bus.memory.lock().unwrap()[&4], 0b1001_0110, "the other bits stay");
    assert!(passing(valve.write(0, "4").map(|()| String::new())).contains("4 does not fit into 2 bits"));
    let level = serde_json::json!({"register": 2, "length": 2, "byteOrder": "little", "signed": true, "scale": 0.1, "write": true});
    let mut level = source(&one("i2c", level).unwrap(), &bus);
    level.write(0, "-12.3").unwrap();
    let low = bus.memory.lock().unwrap()[&2];
    assert_eq!((low, level.read(0)), (0x85, Ok("-12.3".into())));
    let spi = one("spi", serde_json::json!({"register": 2, "length": 1})).unwrap();
    let Access::Bytes(register) = &spi.properties[0].access else { panic!() };
    assert_eq!(register.read, [0x82], "the read bit of most SPI devices");
}

#[test]
fn what_is_wrong_with_a_register_is_named() {
    for (protocol, config, expected) in [
        ("i2c", serde_json::json!({}), "register is missing"),
        ("i2c", serde_json::json!({"register": 256}), "register: 256 needs registerLength: 2"),
        ("i2c", serde_json::json!({"register": 1, "send": "01"}), "send: register says it already"),
        ("i2c", serde_json::json!({"send": "0x1"}), "send: \"0x1\" is not 1 to 16 bytes"),
        ("i2c", serde_json::json!({"send": "01", "write": true}), "write: needs configData.register"),
        (
            "i2c",
            serde_json::json!({"register": 1, "length": 9}),
            "length: 9 is not a whole number from 1 to 8",
        ),
        (
            "i2c",
            serde_json::json!({"register": 1, "mask": "0x100"}),
            "mask: 0x100 has no bit, or one that 1 byte(s) do not have",
        ),
        ("i2c", serde_json::json!({"register": 1, "scale": 0}), "scale: 0 makes every value the same"),
        ("i2c", serde_json::json!({"register": 1, "readBit": 128}), "readBit: unknown field"),
        ("onewire", serde_json::json!({"id": "28-1"}), "id: \"28-1\" is no 1-Wire id"),
    ] {
        let error = one(protocol, config).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
    let read_only = serde_json::json!([{"name": "x", "desired": {"value": "1"}, "visitors": {"configData": {"register": 1}}}]);
    let refused = plan("i2c", read_only).unwrap().properties[0].refused.clone().unwrap();
    assert!(refused.contains("set configData.write to true"), "{refused}");
}

#[test]
fn any_description_and_any_bytes() {
    let words = [
        "\"register\":1",
        "\"register\":\"0xfff0\"",
        "\"registerLength\":2",
        "\"send\":\"01 80\"",
        "\"skip\":3",
        "\"length\":8",
        "\"length\":3",
        "\"mask\":\"0x7e\"",
        "\"signed\":true",
        "\"byteOrder\":\"little\"",
        "\"scale\":-0.125",
        "\"offset\":1e300",
        "\"write\":true",
        "\"address\":\"0x76\"",
        "\"bus\":255",
        "\"mode\":3",
        "\"mask\":18446744073709551615",
        "\"scale\":1e-320",
    ];
    for seed in 0..4000 {
        let mut random = Random(seed);
        let picked: Vec<&str> = (0..random.below(7)).map(|_| words[random.below(words.len())]).collect();
        let mut data = format!("{{{}}}\n", picked.join(",")).into_bytes();
        data.extend((0..random.below(12)).map(|_| random.below(256) as u8));
        if random.below(4) == 0 {
            let at = random.below(data.len());
            data[at] = random.below(256) as u8;
        }
        fuzz_registers(&data);
    }
}

/// Waits for the device's bell as the mapper's loop does.
#[allow(unsafe_code)]
fn ready(driver: &mut PolledDriver, now_ms: u64) -> (Result<(), String>, Vec<Reading>) {
    let (mut waits, mut readings) = (Vec::<Wait>::new(), Vec::new());
    driver.waits(&mut waits);
    // SAFETY: the driver owns it and lives until after the poll.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(waits[0].fd) };
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(20_000u16)), Ok(1), "the device answers in time");
    let result = driver.ready(now_ms, &mut readings);
    (result, readings)
}

#[test]
fn a_device_that_fails_is_stale_then_bad_then_back_and_gone_is_offline() {
    let bus = FakeBus::holds(&[(1, 42)]);
    let config = serde_json::json!([{"name": "x", "collectCycle": 100, "visitors": {"configData": {"register": 1, "write": true}}}]);
    let plan = plan("i2c", config).unwrap();
    let mut driver = PolledDriver::open(0, &plan.properties, Box::new(source(&plan, &bus))).unwrap();
    let quality = |readings: Vec<Reading>| {
        readings.into_iter().map(|reading| (reading.value, reading.quality)).collect::<Vec<_>>()
    };
    assert_eq!(quality(ready(&mut driver, 0).1), [("42".into(), Quality::Good)]);
    *bus.error.lock().unwrap() = Some(libc::ENXIO);
    for round in 1..=PASSING_FAILURES_MAX {
        let now_ms = u64::from(round) * 100;
        assert_eq!(driver.deadline_ms(), Some(now_ms));
        driver.tick(now_ms, &mut Vec::new()).unwrap();
        let seen = quality(ready(&mut driver, now_ms).1);
        match round {
            1 => assert_eq!(seen, [("42".into(), Quality::Stale)]),
            PASSING_FAILURES_MAX => assert_eq!(seen, [(String::new(), Quality::Bad)]),
            _ => assert!(seen.is_empty()),
        }
        assert!(driver.complaint().unwrap().contains("x: nothing answers at address 0x48 of /dev/i2c-1"));
    }
    *bus.error.lock().unwrap() = None;
    driver.set(550, 0, "7", &mut Vec::new()).unwrap();
    assert_eq!(quality(ready(&mut driver, 550).1), [("7".into(), Quality::Good)], "written, and read back");
    assert_eq!(driver.complaint(), None);
    *bus.error.lock().unwrap() = Some(libc::ENODEV);
    driver.tick(2000, &mut Vec::new()).unwrap();
    assert!(ready(&mut driver, 2000).0.unwrap_err().contains("/dev/i2c-1 is gone"));
}

#[test]
fn a_bus_that_hangs_holds_nobody_up_and_is_told() {
    let (open, gate) = mpsc::channel();
    let mut bus = FakeBus::holds(&[(1, 42)]);
    bus.gate = Some(Arc::new(Mutex::new(gate)));
    let plan = one("i2c", serde_json::json!({"register": 1})).unwrap();
    let mut driver = PolledDriver::open(0, &plan.properties, Box::new(source(&plan, &bus))).unwrap();
    open.send(()).unwrap();
    ready(&mut driver, 0).0.unwrap();
    let mut readings = Vec::new();
    driver.tick(1000, &mut readings).unwrap();
    let overdue = driver.deadline_ms().unwrap();
    driver.tick(overdue, &mut readings).unwrap();
    assert_eq!((readings.len(), readings[0].quality), (1, Quality::Stale));
    assert!(driver.complaint().unwrap().contains("the bus has not answered"));
    assert_eq!(driver.deadline_ms(), None, "no busy loop while it hangs");
    open.send(()).unwrap();
    let (result, readings) = ready(&mut driver, overdue + 5000);
    assert_eq!((result, readings[0].quality, driver.complaint()), (Ok(()), Quality::Good, None));
    // Given up while it hangs: the thread ends when the bus lets it.
    drop(driver);
    drop(open);
}
