//! What one slave is asked and when, and what its answers mean. A plain value over a [`Line`].

use std::collections::BTreeMap;

use super::{
    line::{Done, Failure, Job, Line},
    merge::{Span, merge},
    pdu::{Answer, Exception, Request},
    value::Data,
};
use crate::{
    driver::Reading,
    limits::{MODBUS_PROBE_MS_MAX, MODBUS_PROBE_MS_MIN, MODBUS_REFUSED_MS},
    plan::{
        Access, Property,
        modbus::{Register, Slave},
    },
};

/// Reading is due then when nobody would answer.
const NEVER: u64 = u64::MAX;

struct Point {
    property: usize,
    name: String,
    register: Register,
    cycle_ms: u64,
    due_ms: u64,
    /// Read on its own: a request for more was refused.
    alone: bool,
    last: Option<String>,
    /// The last value was told as stale.
    stale: bool,
    /// What keeps it from being read.
    trouble: Option<String>,
    wish: Option<Wish>,
}

/// A desired value that the slave has not got yet.
struct Wish {
    value: String,
    /// Its request is out.
    asked: bool,
    refused: Option<String>,
    /// When what was refused is tried again: what the slave is not at fault for alone may pass.
    again_at_ms: Option<u64>,
}

enum Work {
    Read {
        span: Span,
        points: Vec<usize>,
    },
    Write {
        point: usize,
    },
    /// The register that one of its bits is to be changed in.
    Before {
        point: usize,
    },
}

pub struct Device {
    slave: Slave,
    /// For messages: "unit 3 on /dev/ttyUSB0".
    place: String,
    points: Vec<Point>,
    works: BTreeMap<u32, Work>,
    /// How long to leave a slave alone that does not answer; 0: it answers.
    probe_pause_ms: u64,
    probe_at_ms: u64,
    silence: Option<String>,
}

impl Device {
    pub fn new(now_ms: u64, slave: &Slave, place: String, properties: &[Property]) -> Device {
        let point = |(property, planned): (usize, &Property)| {
            let Access::Register(register) = &planned.access else { return None };
            Some(Point {
                property,
                name: planned.name.clone(),
                register: register.as_ref().clone(),
                cycle_ms: planned.collect_cycle_ms,
                due_ms: if slave.is_broadcast() { NEVER } else { now_ms },
                alone: false,
                last: None,
                stale: false,
                trouble: None,
                wish: planned.desired.clone().map(Wish::new),
            })
        };
        let mut device = Device {
            slave: slave.clone(),
            place,
            points: properties.iter().enumerate().filter_map(point).collect(),
            works: BTreeMap::new(),
            probe_pause_ms: 0,
            probe_at_ms: 0,
            silence: None,
        };
        device.await_first_answer();
        device
    }

    /// An open line says nothing about the slave: it is there when it has answered.
    fn await_first_answer(&mut self) {
        let awaited = !self.points.is_empty() && !self.slave.is_broadcast();
        self.silence = awaited.then(|| format!("{} has not answered yet", self.place));
    }

    /// A new desired value; one that was not written yet is forgotten.
    pub fn wish(&mut self, property: usize, value: &str) {
        if let Some(point) = self.points.iter_mut().find(|point| point.property == property) {
            point.wish = Some(Wish::new(value.to_owned()));
        }
    }

    pub fn deadline_ms(&self) -> Option<u64> {
        if !self.works.is_empty() {
            return None;
        }
        if self.probe_pause_ms > 0 {
            return Some(self.probe_at_ms);
        }
        let wishes = self.points.iter().filter_map(|point| point.wish.as_ref()?.due_ms());
        let reads = self.points.iter().map(|point| point.due_ms).filter(|due_ms| *due_ms != NEVER);
        wishes.chain(reads).min()
    }

    /// Asks for what is due.
    pub fn tick(&mut self, now_ms: u64, line: &mut Line, client: u32) {
        if self.probe_pause_ms > 0 && now_ms < self.probe_at_ms {
            return;
        }
        // Writes go first, and between the reads of a long round.
        for at in 0..self.points.len() {
            let due_ms = self.points[at].wish.as_ref().and_then(Wish::due_ms);
            if due_ms.is_some_and(|due_ms| due_ms <= now_ms) {
                self.write(at, line, client);
                if self.probe_pause_ms > 0 && !self.works.is_empty() {
                    return;
                }
            }
        }
        if self.works.is_empty() {
            self.read_due(now_ms, line, client);
        }
    }

    fn read_due(&mut self, now_ms: u64, line: &mut Line, client: u32) {
        let probing = self.probe_pause_ms > 0;
        let mut together = Vec::new();
        let mut reads = Vec::new();
        for (at, point) in self.points.iter_mut().enumerate() {
            if point.due_ms > now_ms && !probing {
                continue;
            }
            // In step with the clock, unless it is late by a whole round.
            let next_ms = point.due_ms + point.cycle_ms;
            point.due_ms = if next_ms > now_ms { next_ms } else { now_ms + point.cycle_ms };
            let span = point.register.span;
            if point.alone {
                reads.push((span, vec![at]));
            } else {
                together.push((at, span));
            }
        }
        let merged = merge(together, self.slave.merging).into_iter();
        reads.extend(merged.map(|read| (read.span, read.serves)));
        // One request is enough to see whether it answers.
        reads.truncate(if probing { 1 } else { reads.len() });
        for (span, points) in reads {
            self.read(span, points, line, client, false);
        }
    }

    fn read(&mut self, span: Span, points: Vec<usize>, line: &mut Line, client: u32, urgent: bool) {
        let Span { table, address, count } = span;
        let job = self.job(Request::Read { table, address, count });
        if let Some(ticket) = line.submit(client, job, urgent) {
            self.works.insert(ticket, Work::Read { span, points });
        }
    }

    fn job(&self, request: Request) -> Job {
        Job {
            unit: self.slave.unit,
            request,
            timeout_ms: self.slave.timeout_ms,
            retries: self.slave.retries,
            busy_retries: self.slave.busy_retries,
            busy_pause_ms: self.slave.busy_pause_ms,
        }
    }

    fn write(&mut self, at: usize, line: &mut Line, client: u32) {
        let point = &mut self.points[at];
        let Some(wish) = &mut point.wish else { return };
        let Span { table, address, count } = point.register.span;
        let encoding = &point.register.encoding;
        let is_bit = matches!(encoding.data, Data::Bit(_));
        let request = if table.is_bits() {
            encoding.bits(&wish.value, count).map(|values| Request::WriteCoils { address, values })
        } else if is_bit {
            Ok(Request::Read { table, address, count: 1 })
        } else {
            let multiple = point.register.multiple;
            encoding.registers(&wish.value).map(|values| Request::WriteRegisters {
                address,
                values,
                multiple,
            })
        };
        let work =
            if is_bit && !table.is_bits() { Work::Before { point: at } } else { Work::Write { point: at } };
        match request {
            Ok(request) => {
                wish.asked = true;
                let job = self.job(request);
                match line.submit(client, job, true) {
                    Some(ticket) => {
                        self.works.insert(ticket, work);
                    }
                    None => self.ask_again(at),
                }
            }
            Err(reason) => wish.refused = Some(format!("{} cannot be written: {reason}", point.name)),
        }
    }

    fn ask_again(&mut self, at: usize) {
        if let Some(wish) = &mut self.points[at].wish {
            wish.asked = false;
        }
    }

    /// Takes one result of the line.
    pub fn done(
        &mut self,
        now_ms: u64,
        done: Done,
        line: &mut Line,
        client: u32,
        readings: &mut Vec<Reading>,
    ) {
        let Some(work) = self.works.remove(&done.ticket) else { return };
        if let Err(Failure::NoAnswer { tries, noise }) = done.result {
            return self.fell_silent(now_ms, tries, noise, line, client, readings);
        }
        if std::mem::take(&mut self.probe_pause_ms) > 0 {
            // It is back: everything is due, not only what was looked for.
            self.points.iter_mut().for_each(|point| point.due_ms = now_ms);
        }
        self.silence = None;
        match (work, done.result) {
            (Work::Read { span, points }, Ok(answer)) => self.took(span, &points, &answer, readings),
            (Work::Read { points, .. }, Err(failure)) => {
                self.not_read(now_ms, &points, &failure, line, client, readings);
            }
            (Work::Before { point }, Ok(Answer::Registers(registers))) => {
                self.write_bit(point, &registers, line, client);
            }
            (Work::Write { point }, Ok(_)) => {
                // What it then really has is read back; a newer wish is still open.
                let written = self.points[point].wish.take_if(|wish| wish.asked);
                self.points[point].last = None;
                if self.slave.is_broadcast() {
                    // Nobody says what he has: what was sent is all that is known.
                    if let Some(wish) = written {
                        self.points[point].tell(wish.value, readings);
                    }
                    return;
                }
                let span = self.points[point].register.span;
                self.read(span, vec![point], line, client, true);
            }
            (Work::Write { point } | Work::Before { point }, result) => {
                self.not_written(now_ms, point, result.err());
            }
        }
    }

    /// One bit of a register is written with the other fifteen as they are.
    fn write_bit(&mut self, at: usize, registers: &[u16], line: &mut Line, client: u32) {
        let point = &self.points[at];
        let (Some(wish), [register], Data::Bit(bit)) = (&point.wish, registers, point.register.encoding.data)
        else {
            return;
        };
        let Ok(bits) = point.register.encoding.bits(&wish.value, 1) else { return };
        let mask = if point.register.encoding.swap_bytes { (1_u16 << bit).swap_bytes() } else { 1 << bit };
        let value = if bits == [true] { register | mask } else { register & !mask };
        let job = self.job(Request::WriteRegisters {
            address: point.register.span.address,
            values: vec![value],
            multiple: point.register.multiple,
        });
        match line.submit(client, job, true) {
            Some(ticket) => {
                self.works.insert(ticket, Work::Write { point: at });
            }
            None => self.ask_again(at),
        }
    }

    fn not_written(&mut self, now_ms: u64, at: usize, failure: Option<Failure>) {
        let place = &self.place;
        let point = &mut self.points[at];
        let Some(wish) = point.wish.as_mut().filter(|wish| wish.asked) else { return };
        let (reason, final_word) = match failure {
            Some(Failure::Exception(exception)) => (exception.to_string(), exception.is_final()),
            _ => ("it answered something else".to_owned(), false),
        };
        wish.asked = false;
        wish.again_at_ms = (!final_word).then_some(now_ms + MODBUS_REFUSED_MS);
        wish.refused = Some(format!("{place} did not take {} for {}: {reason}", wish.value, point.name));
    }

    fn took(&mut self, span: Span, points: &[usize], answer: &Answer, readings: &mut Vec<Reading>) {
        for at in points {
            let point = &mut self.points[*at];
            let own = point.register.span;
            let from = usize::from(own.address - span.address);
            let range = from..from + usize::from(own.count);
            let text = match answer {
                Answer::Bits(bits) => bits.get(range).map(|bits| point.register.encoding.bits_text(bits)),
                Answer::Registers(registers) => {
                    registers.get(range).map(|registers| point.register.encoding.registers_text(registers))
                }
                Answer::Written => None,
            };
            match text {
                Some(Ok(text)) => point.tell(text, readings),
                Some(Err(reason)) => point.mistrust(format!("{}: {reason}", point.name), readings),
                None => {}
            }
        }
    }

    fn not_read(
        &mut self,
        now_ms: u64,
        points: &[usize],
        failure: &Failure,
        line: &mut Line,
        client: u32,
        readings: &mut Vec<Reading>,
    ) {
        let together = points.len() > 1;
        let hole = matches!(
            failure,
            Failure::Exception(Exception::ILLEGAL_ADDRESS | Exception::ILLEGAL_VALUE) | Failure::Wrong
        );
        if together && hole {
            // One of them, or what lies between, is not there: each on its own tells which, and the others go on.
            for at in points {
                self.points[*at].alone = true;
                let span = self.points[*at].register.span;
                self.read(span, vec![*at], line, client, false);
            }
            return;
        }
        let reason = match failure {
            Failure::Exception(exception) => exception.to_string(),
            _ => "it answered something else".to_owned(),
        };
        for at in points {
            let place = &self.place;
            let point = &mut self.points[*at];
            let Span { table, address, .. } = point.register.span;
            point.due_ms = now_ms + point.cycle_ms.max(MODBUS_REFUSED_MS);
            point.mistrust(
                format!("{}: {place} does not tell {} {address}: {reason}", point.name, table.name()),
                readings,
            );
        }
    }

    fn fell_silent(
        &mut self,
        now_ms: u64,
        tries: u8,
        noise: bool,
        line: &mut Line,
        client: u32,
        readings: &mut Vec<Reading>,
    ) {
        line.cancel(client);
        self.works.clear();
        let times = if tries == 1 { "once".to_owned() } else { format!("{tries} times") };
        let remedy = if noise {
            "something came that is no answer: check baudRate, parity, stopBits and the wires"
        } else {
            "check slaveID, the wires (A and B), termination and power"
        };
        self.silence = Some(format!(
            "{} does not answer ({} ms, asked {times}); {remedy}",
            self.place, self.slave.timeout_ms
        ));
        self.probe_pause_ms = (self.probe_pause_ms * 2).clamp(MODBUS_PROBE_MS_MIN, MODBUS_PROBE_MS_MAX);
        self.probe_at_ms = now_ms + self.probe_pause_ms;
        for point in &mut self.points {
            if let Some(wish) = &mut point.wish {
                wish.asked = false;
            }
            point.doubt(readings);
        }
    }

    /// The line is gone: nothing that was asked will be answered, and no value is known any more.
    pub fn lost(&mut self, now_ms: u64, readings: &mut Vec<Reading>) {
        self.works.clear();
        self.await_first_answer();
        self.probe_pause_ms = 0;
        for point in &mut self.points {
            point.due_ms = if self.slave.is_broadcast() { NEVER } else { now_ms };
            (point.alone, point.trouble) = (false, None);
            if let Some(wish) = &mut point.wish {
                wish.asked = false;
            }
            if point.last.take().is_some() || !point.stale {
                readings.push(Reading::bad(point.property));
            }
            point.stale = true;
        }
    }

    /// The first thing that is wrong, if something is.
    pub fn complaint(&self) -> Option<String> {
        let refused = self.points.iter().filter_map(|point| point.wish.as_ref()?.refused.as_ref());
        let troubles = self.points.iter().filter_map(|point| point.trouble.as_ref());
        self.silence.iter().chain(refused).chain(troubles).next().cloned()
    }
}

impl Wish {
    fn new(value: String) -> Wish {
        Wish { value, asked: false, refused: None, again_at_ms: None }
    }

    /// When it is to be written.
    fn due_ms(&self) -> Option<u64> {
        match (self.asked, &self.refused) {
            (true, _) => None,
            (false, None) => Some(0),
            (false, Some(_)) => self.again_at_ms,
        }
    }
}

impl Point {
    fn tell(&mut self, text: String, readings: &mut Vec<Reading>) {
        self.trouble = None;
        if self.last.as_ref() != Some(&text) || self.stale {
            readings.push(Reading::good(self.property, text.clone()));
        }
        (self.last, self.stale) = (Some(text), false);
    }

    /// It was not read this time.
    fn doubt(&mut self, readings: &mut Vec<Reading>) {
        if std::mem::replace(&mut self.stale, true) {
            return;
        }
        readings.push(match &self.last {
            Some(last) => Reading::stale(self.property, last.clone()),
            None => Reading::bad(self.property),
        });
    }

    fn mistrust(&mut self, reason: String, readings: &mut Vec<Reading>) {
        self.trouble = Some(reason);
        self.doubt(readings);
    }
}
