//! The line and the device against rmodbus in memory, with a wire that loses, delays, spoils and repeats.

use mqtt::broker::testing::Random;

use super::*;
use crate::{
    driver::{Quality, Reading},
    modbus::{
        adu::Framing,
        device::Device,
        line::{Line, Timing},
    },
    plan::Protocol,
};

/// One device on the line, and what its properties must say.
struct Side {
    unit: u8,
    client: u32,
    device: Device,
    storage: Storage,
    plan: Plan,
}

struct World {
    random: Random,
    line: Line,
    sides: Vec<Side>,
    now_ms: u64,
    /// Bytes on their way to us, and when they come.
    coming: Vec<(u64, Vec<u8>)>,
    faults: bool,
}

const TIMEOUT_MS: u64 = 100;

impl World {
    fn new(seed: u64, proto: ModbusProto, units: u8) -> World {
        let framing = if proto == ModbusProto::Rtu { Framing::Rtu } else { Framing::Tcp };
        let mut line =
            Line::new(framing, Timing { gap_ms: 4, pause_ms: 0, after_connect_ms: 0, byte_us: 100 });
        line.opened(0);
        let sides = (1..=units).map(|unit| {
            let storage: Storage = Arc::default();
            for address in 0..20 {
                let value = u16::from(unit) * 100 + address;
                storage.lock().unwrap().inputs[usize::from(address)] = value;
            }
            // Requests of one shape, which only their time tells apart.
            let input = |offset: u16| json!({"register": "InputRegister", "offset": offset});
            let properties = [
                ("a", "INT", input(3), None),
                ("b", "INT", input(7), None),
                ("c", "INT", input(11), None),
                ("set", "INT", json!({"register": "HoldingRegister", "offset": 5}), Some("7")),
            ];
            let plan = plan_of(
                json!({"ip": "127.0.0.1", "slaveID": unit, "timeoutMs": TIMEOUT_MS, "retries": 2, "merge": false}),
                &properties,
            );
            let Protocol::Modbus(slave) = &plan.protocol else { panic!() };
            let client = line.join();
            let device = Device::new(0, slave, format!("unit {unit}"), &plan.properties);
            Side { unit, client, device, storage, plan }
        });
        let sides: Vec<Side> = sides.collect();
        World { random: Random(seed), line, sides, now_ms: 0, coming: Vec::new(), faults: true }
    }

    fn proto(&self) -> ModbusProto {
        if self.line.is_anonymous() { ModbusProto::Rtu } else { ModbusProto::TcpUdp }
    }

    /// What goes out reaches the slaves, or does not; what they say comes back, in whatever shape.
    fn carry(&mut self) {
        let request = std::mem::take(self.line.output());
        if request.is_empty() {
            return;
        }
        let proto = self.proto();
        for side in &self.sides {
            let Some(mut answer) = serve(side.unit, proto, &side.storage, &request) else { continue };
            let random = &mut self.random;
            let quick = self.now_ms + 2;
            if !self.faults {
                self.coming.push((quick, answer));
                continue;
            }
            match random.below(12) {
                // Lost.
                0 => {}
                // Late, but not later than twice the time it has.
                1 | 2 => {
                    let late = self.now_ms + 1 + random.below(2 * TIMEOUT_MS as usize - 20) as u64;
                    self.coming.push((late, answer));
                }
                // Spoilt, on a wire without TCP's own checksum.
                3 if proto == ModbusProto::Rtu => {
                    let at = random.below(answer.len());
                    answer[at] ^= 1 << random.below(8);
                    self.coming.push((quick, answer));
                }
                // Twice.
                4 => {
                    let twice = [answer.clone(), answer].concat();
                    self.coming.push((quick, twice));
                }
                // With noise before it.
                5 if proto == ModbusProto::Rtu => {
                    let mut noise: Vec<u8> = (0..random.below(40)).map(|_| random.next() as u8).collect();
                    noise.extend_from_slice(&answer);
                    self.coming.push((quick, noise));
                }
                // In two pieces.
                6 => {
                    let rest = answer.split_off(answer.len() / 2);
                    self.coming.push((quick, answer));
                    self.coming.push((quick + 30, rest));
                }
                _ => self.coming.push((quick, answer)),
            }
        }
    }

    /// A stream keeps its order: what is late holds up what comes after it.
    fn keep_order(&mut self) {
        if !self.line.is_anonymous() {
            let mut least = 0;
            for (at, _) in &mut self.coming {
                least = least.max(*at);
                *at = least;
            }
        }
    }

    fn step(&mut self, check: &mut impl FnMut(u8, &Plan, &Reading)) {
        self.keep_order();
        self.coming.sort_by_key(|(at, _)| *at);
        while self.coming.first().is_some_and(|(at, _)| *at <= self.now_ms) {
            let (_, bytes) = self.coming.remove(0);
            self.line.received(self.now_ms, &bytes).unwrap();
        }
        self.line.tick(self.now_ms);
        self.carry();
        for side in &mut self.sides {
            let mut readings = Vec::new();
            while let Some(done) = self.line.take_done(side.client) {
                side.device.done(self.now_ms, done, &mut self.line, side.client, &mut readings);
            }
            side.device.tick(self.now_ms, &mut self.line, side.client);
            for reading in &readings {
                check(side.unit, &side.plan, reading);
            }
        }
        self.line.tick(self.now_ms);
        self.carry();
        let deadlines = self.sides.iter().map(|side| side.device.deadline_ms());
        let next = deadlines.chain([self.line.deadline_ms(), self.coming.iter().map(|(at, _)| *at).min()]);
        self.now_ms = next.flatten().min().unwrap_or(u64::MAX).max(self.now_ms + 1);
    }
}

#[test]
fn no_answer_is_taken_for_another() {
    for seed in 0..12 {
        let proto = if seed % 2 == 0 { ModbusProto::Rtu } else { ModbusProto::TcpUdp };
        let mut world = World::new(seed, proto, 3);
        let mut good = 0;
        let mut check = |unit: u8, plan: &Plan, reading: &Reading| {
            if reading.quality == Quality::Bad {
                return;
            }
            let expected = match plan.properties[reading.property].name.as_str() {
                "a" => u16::from(unit) * 100 + 3,
                "b" => u16::from(unit) * 100 + 7,
                "c" => u16::from(unit) * 100 + 11,
                _ => return,
            };
            assert_eq!(reading.value, expected.to_string(), "seed {seed}, unit {unit}");
            good += 1;
        };
        while world.now_ms < 40_000 {
            world.step(&mut check);
        }
        // The wire becomes good: whatever was wrong, it ends.
        world.faults = false;
        let end_ms = world.now_ms + 40_000;
        for (at, side) in world.sides.iter_mut().enumerate() {
            side.device.wish(3, &(40 + at).to_string());
        }
        while world.now_ms < end_ms {
            world.step(&mut check);
        }
        assert!(good > 9, "seed {seed}: {good}");
        for (at, side) in world.sides.iter().enumerate() {
            assert_eq!(side.device.complaint(), None, "seed {seed}");
            assert_eq!(side.storage.lock().unwrap().holdings[5], 40 + at as u16, "seed {seed}");
        }
    }
}

/// A slave that is switched off costs the others little, and is found again by itself.
#[test]
fn the_dead_do_not_stop_the_living() {
    let mut world = World::new(7, ModbusProto::Rtu, 2);
    world.faults = false;
    world.sides[0].unit = 99;
    let mut answers = [0; 3];
    let before = world.sides[1].storage.clone();
    let mut round = 0_u16;
    while world.now_ms < 30_000 {
        // Changes are what is reported.
        if world.now_ms / 500 != u64::from(round) {
            round = (world.now_ms / 500) as u16;
            before.lock().unwrap().inputs[3] = round;
        }
        world.step(&mut |unit, _, reading| {
            answers[usize::from(unit.min(2))] += usize::from(reading.quality == Quality::Good)
        });
    }
    assert!(answers[2] > 55, "the living one was asked about each half second: {answers:?}");
    let said = world.sides[0].device.complaint().unwrap();
    assert!(said.starts_with("unit 1 does not answer (100 ms, asked 3 times); check slaveID"), "{said}");
    world.sides[0].unit = 1;
    let mut back = Vec::new();
    let end_ms = world.now_ms + 31_000;
    while world.now_ms < end_ms {
        world.step(&mut |unit, _, reading| {
            if unit == 1 {
                back.push(reading.value.clone());
            }
        });
    }
    assert!(back.contains(&"103".to_owned()) && world.sides[0].device.complaint().is_none(), "{back:?}");
    assert_eq!(world.sides[0].storage.lock().unwrap().holdings[5], 7, "the desired value was not forgotten");
}

#[test]
fn what_a_slave_refuses_is_named_and_the_rest_goes_on() {
    let plan = plan_of(
        json!({"serialPort": "/dev/ttyS0", "slaveID": 1, "maxGap": 10}),
        &[
            ("there", "INT", json!({"register": "input", "offset": 9_998}), None),
            // rmodbus has 10000 registers of each kind.
            ("gone", "INT", json!({"register": "input", "offset": 10_003}), None),
            ("gone-too", "INT", json!({"register": "holding", "offset": 20_000}), Some("1")),
            ("flag", "BOOLEAN", json!({"register": "holding", "offset": 4, "bit": 2}), Some("true")),
            ("coils", "STRING", json!({"register": "coil", "offset": 3, "limit": 3}), Some("1,0,1")),
        ],
    );
    let mut world = World::new(1, ModbusProto::Rtu, 1);
    world.faults = false;
    let Protocol::Modbus(slave) = &plan.protocol else { panic!() };
    world.sides[0].device = Device::new(0, slave, "unit 1 on X".into(), &plan.properties);
    world.sides[0].storage.lock().unwrap().holdings[4] = 0b1001;
    let mut seen = Vec::new();
    while world.now_ms < 2_000 {
        world.step(&mut |_, _, reading| {
            if reading.quality == Quality::Good {
                seen.push((reading.property, reading.value.clone()));
            }
        });
    }
    assert!(seen.contains(&(0, "0".into())) && seen.contains(&(3, "true".into())), "{seen:?}");
    assert!(seen.contains(&(4, "1,0,1".into())), "{seen:?}");
    let storage = world.sides[0].storage.lock().unwrap();
    assert_eq!(storage.holdings[4], 0b1101, "the other bits are as they were");
    assert_eq!(storage.coils[3..6], [true, false, true]);
    let said = world.sides[0].device.complaint().unwrap();
    assert!(
        said.starts_with("unit 1 on X did not take 1 for gone-too: exception 2 (illegal data address"),
        "{said}"
    );
}

/// A Device object is deleted while its slave's answer is on the way: the answer is not taken for another's, and the line goes on.
#[test]
fn a_device_is_removed_while_it_is_read() {
    for (seed, proto) in [(1, ModbusProto::Rtu), (2, ModbusProto::TcpUdp), (3, ModbusProto::Rtu)] {
        let mut world = World::new(seed, proto, 2);
        world.faults = false;
        let unit_at = if proto == ModbusProto::Rtu { 0 } else { 6 };
        while !world.coming.iter().any(|(_, answer)| answer[unit_at] == 1) {
            world.step(&mut |_, _, _| {});
        }
        let removed = world.sides.remove(0);
        world.line.leave(removed.client);
        let mut seen = std::collections::BTreeSet::new();
        let end_ms = world.now_ms + 5_000;
        while world.now_ms < end_ms {
            world.step(&mut |unit, _, reading| {
                seen.insert((unit, reading.value.clone()));
            });
        }
        let expected = ["203", "207", "211", "7"].map(|value| (2, value.to_owned()));
        assert_eq!(seen, expected.into(), "seed {seed}");
        assert_eq!(world.sides[0].device.complaint(), None);
    }
}

/// Nobody answers a broadcast: it is written once, told as written, and nothing is asked.
#[test]
fn what_is_for_all_is_written_to_all() {
    let mut world = World::new(5, ModbusProto::Rtu, 2);
    world.faults = false;
    let plan = plan_of(
        json!({"serialPort": "/dev/ttyS0", "slaveID": 0}),
        &[
            ("limit", "INT", json!({"register": "holding", "offset": 9}), Some("42")),
            ("all-off", "BOOLEAN", json!({"register": "coil", "offset": 3}), Some("true")),
            ("unset", "INT", json!({"register": "holding", "offset": 10}), None),
        ],
    );
    let Protocol::Modbus(slave) = &plan.protocol else { panic!() };
    let storages: Vec<Storage> = world.sides.iter().map(|side| side.storage.clone()).collect();
    world.sides[0].device = Device::new(0, slave, "all on X".into(), &plan.properties);
    let mut told = Vec::new();
    while world.now_ms < 3_000 {
        world.step(&mut |unit, _, reading| {
            if unit == 1 {
                told.push((reading.property, reading.value.clone(), reading.quality));
            }
        });
    }
    told.sort_by_key(|(property, ..)| *property);
    assert_eq!(told, [(0, "42".into(), Quality::Good), (1, "true".into(), Quality::Good)]);
    assert_eq!(world.sides[0].device.complaint(), None);
    assert_eq!(world.sides[0].device.deadline_ms(), None, "nothing is left to do");
    for storage in storages {
        let storage = storage.lock().unwrap();
        assert_eq!((storage.holdings[9], storage.coils[3]), (42, true));
    }
}

/// A refusal that is about the moment passes; the value is written when it does.
#[test]
fn a_write_that_failed_for_the_moment_is_tried_again() {
    let mut world = World::new(3, ModbusProto::TcpUdp, 1);
    world.faults = false;
    let mut refusals = 0;
    let storage = world.sides[0].storage.clone();
    let mut said = Vec::new();
    while world.now_ms < 15_000 {
        world.step(&mut |_, _, _| {});
        // Every write until the tenth second is answered with "server device failure", and not done.
        for (_, answer) in &mut world.coming {
            if answer[7] == 6 && world.now_ms < 10_000 {
                *answer = [&answer[..4], &[0, 3, answer[6], 0x86, 4]].concat();
                storage.lock().unwrap().holdings[5] = 0;
                refusals += 1;
            }
        }
        said.extend(world.sides[0].device.complaint());
    }
    assert_eq!(refusals, 1, "it is not hammered");
    assert!(said.last().unwrap().contains("did not take 7 for set: exception 4 (server device failure)"));
    assert_eq!(storage.lock().unwrap().holdings[5], 7);
    assert_eq!(world.sides[0].device.complaint(), None);
}
