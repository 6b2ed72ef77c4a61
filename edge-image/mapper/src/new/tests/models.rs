//! Each model of the library against its device.

use super::bench::{Bench, RtuSlave, Silent, TextDevice};
use crate::polled::{
    Bus,
    chip::tests::{FakeAds, FakeBme},
};

#[test]
fn button() {
    let bench = Bench::new("button");
    bench.set_line(27, true);
    let mut bench = bench.start();
    bench.expect("pressed", "false", &mut Silent);
    bench.set_line(27, false);
    bench.expect("pressed", "true", &mut Silent);
    assert_eq!(bench.state, "online");
}

#[test]
fn contact() {
    let mut bench = Bench::new("contact").start();
    bench.expect("open", "false", &mut Silent);
    bench.set_line(22, true);
    bench.expect("open", "true", &mut Silent);
}

#[test]
fn pir() {
    let mut bench = Bench::new("pir").start();
    bench.expect("motion", "false", &mut Silent);
    bench.set_line(23, true);
    bench.expect("motion", "true", &mut Silent);
}

#[test]
fn led() {
    let mut bench = Bench::new("led").start();
    bench.expect("lit", "false", &mut Silent);
    bench.desire("lit", "true");
    bench.expect("lit", "true", &mut Silent);
    assert!(bench.line(17));
}

#[test]
fn relay_board_4() {
    let mut bench = Bench::new("relay-board-4").start();
    bench.expect("relay4", "false", &mut Silent);
    assert_eq!([5, 6, 7, 8].map(|line| bench.line(line)), [true; 4], "a channel is off while its line is 1");
    bench.desire("relay2", "true");
    bench.expect("relay2", "true", &mut Silent);
    assert_eq!([5, 6, 7, 8].map(|line| bench.line(line)), [true, false, true, true]);
}

#[test]
fn s0_meter() {
    let bench = Bench::new("s0-meter");
    bench.set_line(24, true);
    let mut bench = bench.start();
    bench.expect("energy", "0", &mut Silent);
    for _ in 0..12 {
        // A pulse closes the contact for some ten milliseconds.
        bench.set_line(24, false);
        (0..10).for_each(|_| bench.turn(&mut Silent));
        bench.set_line(24, true);
        (0..10).for_each(|_| bench.turn(&mut Silent));
    }
    bench.expect("energy", "0.012", &mut Silent);
}

#[test]
fn servo() {
    let mut bench = Bench::new("servo").start();
    bench.expect("position", "7.5", &mut Silent);
    bench.desire("position", "10");
    bench.expect("position", "10", &mut Silent);
    bench.desire("position", "50");
    (0..20).for_each(|_| bench.turn(&mut Silent));
    assert!(bench.state.contains("50"), "beyond the hand's end: {}", bench.state);
}

#[test]
fn arduino_lines() {
    let mut bench = Bench::new("arduino-lines").start();
    let mut arduino = TextDevice::default();
    bench.turn(&mut arduino);
    bench.say("temperature=21.5\r\nheater=0\r\n");
    bench.expect("temperature", "21.5", &mut arduino);
    bench.expect("heater", "0", &mut arduino);
    bench.desire("heater", "1");
    for _ in 0..2_000 {
        bench.turn(&mut arduino);
        if arduino.heard == "heater=1\n" {
            return;
        }
    }
    panic!("{:?}", arduino.heard);
}

#[test]
fn gps_nmea() {
    let mut bench = Bench::new("gps-nmea").start();
    bench.turn(&mut Silent);
    bench.say("$GPGSA,A,3,10,07,05*30\r\n$GPGGA,092751.000,5321.6802,N,00630.3371,W,1,8,1.03,61.7,M,55.3,M,,*75\r\n");
    bench.expect("altitude", "61.7", &mut Silent);
    for (property, value) in [
        ("latitude", "5321.6802"),
        ("latitude-side", "N"),
        ("longitude", "00630.3371"),
        ("longitude-side", "W"),
        ("fix", "1"),
        ("satellites", "8"),
    ] {
        bench.expect(property, value, &mut Silent);
    }
}

/// The register map of Eastron's manuals ("SDM120-Modbus protocol", "SDM630 Modbus protocol"), as addresses on the wire.
const SDM120: [(&str, u16); 10] = [
    ("voltage", 0x0000),
    ("current", 0x0006),
    ("power", 0x000c),
    ("apparent-power", 0x0012),
    ("reactive-power", 0x0018),
    ("power-factor", 0x001e),
    ("frequency", 0x0046),
    ("imported", 0x0048),
    ("exported", 0x004a),
    ("total", 0x0156),
];
const SDM630: [(&str, u16); 30] = [
    ("voltage-l1", 0x0000),
    ("voltage-l2", 0x0002),
    ("voltage-l3", 0x0004),
    ("current-l1", 0x0006),
    ("current-l2", 0x0008),
    ("current-l3", 0x000a),
    ("power-l1", 0x000c),
    ("power-l2", 0x000e),
    ("power-l3", 0x0010),
    ("apparent-power-l1", 0x0012),
    ("apparent-power-l2", 0x0014),
    ("apparent-power-l3", 0x0016),
    ("reactive-power-l1", 0x0018),
    ("reactive-power-l2", 0x001a),
    ("reactive-power-l3", 0x001c),
    ("power-factor-l1", 0x001e),
    ("power-factor-l2", 0x0020),
    ("power-factor-l3", 0x0022),
    ("power", 0x0034),
    ("apparent-power", 0x0038),
    ("reactive-power", 0x003c),
    ("power-factor", 0x003e),
    ("frequency", 0x0046),
    ("imported", 0x0048),
    ("exported", 0x004a),
    ("voltage-l1-l2", 0x00c8),
    ("voltage-l2-l3", 0x00ca),
    ("voltage-l3-l1", 0x00cc),
    ("current-neutral", 0x00e0),
    ("total", 0x0156),
];

fn meter(model: &str, map: &[(&str, u16)]) -> usize {
    let mut meter = RtuSlave::default();
    meter.registers_max = 80;
    for (at, (_, address)) in map.iter().enumerate() {
        // A value of its own for each register, so that none can stand for another.
        meter.put_float(*address, 100.0 + at as f32 + 0.25);
    }
    let mut bench = Bench::new(model).start();
    for (at, (property, _)) in map.iter().enumerate() {
        bench.expect(property, &format!("{}.25", 100 + at), &mut meter);
    }
    assert_eq!(bench.values.len(), map.len(), "{:?}", bench.values);
    assert_eq!(bench.state, "online");
    meter.requests
}

#[test]
fn sdm120() {
    let requests = meter("sdm120", &SDM120);
    assert!(requests <= 12, "registers are read together: {requests}");
}

#[test]
fn sdm630() {
    meter("sdm630", &SDM630);
}

#[test]
fn modbus_relay_8() {
    let mut board = RtuSlave::default();
    board.discrete_inputs.insert(2, true);
    let mut bench = Bench::new("modbus-relay-8").start();
    bench.expect("input3", "true", &mut board);
    bench.expect("relay8", "false", &mut board);
    bench.desire("relay5", "true");
    bench.expect("relay5", "true", &mut board);
    assert!(board.coils[&4]);
    assert_eq!(bench.values["input1"], "false");
}

#[test]
fn bme280() {
    let mut bench = Bench::new("bme280").with_chip(FakeBme::new(0x60)).start();
    bench.expect("temperature", "25.08", &mut Silent);
    bench.expect("pressure", "1006.53", &mut Silent);
    bench.turn(&mut Silent);
    for _ in 0..2_000 {
        bench.turn(&mut Silent);
        if let Some(humidity) = bench.values.get("humidity") {
            assert!((20.0..95.0).contains(&humidity.parse::<f64>().unwrap()), "{humidity}");
            return;
        }
    }
    panic!("{:?}", bench.state);
}

#[test]
fn ads1115() {
    let mut chip = FakeAds::default();
    chip.volts = [0.25, 1.5, 3.3, 0.0];
    let mut bench = Bench::new("ads1115").with_chip(chip).start();
    for (property, value) in [("a0", "0.25"), ("a1", "1.5"), ("a2", "3.3"), ("a3", "0")] {
        bench.expect(property, value, &mut Silent);
    }
}

/// Bit by bit, as the data sheet's figure 5-1 (DS21295) has it: after the start bit come SGL and three bits of the channel, one clock to
/// sample, a null bit, and ten bits of the value.
struct Mcp3008([u16; 8]);

impl Bus for Mcp3008 {
    fn exchange(&mut self, send: &[u8], receive: &mut [u8]) -> std::io::Result<()> {
        let bytes: Vec<u8> = send.iter().copied().chain(receive.iter().map(|_| 0)).collect();
        let (mut command, mut said): (Vec<bool>, Vec<bool>) = (Vec::new(), Vec::new());
        let mut started = false;
        let mut clocks_after = 0_u32;
        for clock in 0..bytes.len() * 8 {
            let bit = bytes[clock / 8] >> (7 - clock % 8) & 1 == 1;
            // Before the value the output floats: a one here, so that a wrong mask is seen.
            let mut out = true;
            if command.len() == 4 {
                let channel = command[1..].iter().fold(0, |number, bit| number << 1 | usize::from(*bit));
                assert!(command[0], "single-ended");
                out = match clocks_after {
                    0 => true,
                    1 => false,
                    at @ 2..=11 => self.0[channel] >> (11 - at) & 1 == 1,
                    _ => true,
                };
                clocks_after += 1;
            } else if started {
                command.push(bit);
            } else {
                started = bit;
            }
            said.push(out);
        }
        let all: Vec<u8> =
            said.chunks(8).map(|bits| bits.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect();
        receive.copy_from_slice(&all[send.len()..]);
        Ok(())
    }
}

#[test]
fn mcp3008() {
    let chip = Mcp3008([0, 1023, 512, 1, 2, 3, 4, 341]);
    let mut bench = Bench::new("mcp3008").with_chip(chip).start();
    for (property, value) in
        [("ch0", "0"), ("ch1", "3.296781"), ("ch2", "1.650002"), ("ch3", "0.003223"), ("ch7", "1.098927")]
    {
        bench.expect(property, value, &mut Silent);
    }
}

#[test]
fn ds18b20() {
    let bench = Bench::new("ds18b20");
    let sensor = bench.one_wire.path().join("devices/28-0316a2795cff");
    std::fs::create_dir_all(&sensor).unwrap();
    // As the kernel's w1_therm writes it.
    let text = "72 01 4b 46 7f ff 0e 10 57 : crc=57 YES\n72 01 4b 46 7f ff 0e 10 57 t=23125\n";
    std::fs::write(sensor.join("w1_slave"), text).unwrap();
    let mut bench = bench.start();
    bench.expect("temperature", "23.125", &mut Silent);
}
