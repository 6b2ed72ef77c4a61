//! A Modbus device of the engine: its [`Device`] on a line that it shares with the others of the same port.

use std::{cell::RefCell, rc::Rc};

use super::{
    device::Device,
    shared::{Lines, Shared},
};
use crate::{
    driver::{Driver, Reading, Wait},
    plan::{Property, modbus::Slave},
};

pub struct ModbusDriver {
    shared: Rc<RefCell<Shared>>,
    client: u32,
    device: Device,
    losses_seen: u32,
}

impl ModbusDriver {
    pub fn open(
        now_ms: u64,
        name: &str,
        slave: &Slave,
        properties: &[Property],
        lines: &mut Lines,
    ) -> Result<ModbusDriver, String> {
        let shared = lines.open(now_ms, name, &slave.line)?;
        let client = shared.borrow_mut().line.join();
        let place = format!("unit {} on {}", slave.unit, slave.line.link.name());
        let losses_seen = shared.borrow().losses;
        Ok(ModbusDriver {
            shared,
            client,
            device: Device::new(now_ms, slave, place, properties),
            losses_seen,
        })
    }

    fn work(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        let shared = &mut *self.shared.borrow_mut();
        shared.work(now_ms)?;
        while let Some(done) = shared.line.take_done(self.client) {
            self.device.done(now_ms, done, &mut shared.line, self.client, readings);
        }
        if std::mem::replace(&mut self.losses_seen, shared.losses) != shared.losses {
            self.device.lost(now_ms, readings);
        }
        if shared.outage().is_none() {
            self.device.tick(now_ms, &mut shared.line, self.client);
        }
        // What was just asked may go out at once.
        shared.work(now_ms)
    }
}

impl Driver for ModbusDriver {
    fn waits(&self, waits: &mut Vec<Wait>) {
        waits.extend(self.shared.borrow().wait());
    }

    fn ready(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        self.work(now_ms, readings)
    }

    fn tick(&mut self, now_ms: u64, readings: &mut Vec<Reading>) -> Result<(), String> {
        self.work(now_ms, readings)
    }

    fn deadline_ms(&self) -> Option<u64> {
        let shared = self.shared.borrow();
        // What another device's turn brought: a result, or the end of the wire.
        if shared.is_gone() || shared.losses != self.losses_seen || shared.line.has_done(self.client) {
            return Some(0);
        }
        let own = if shared.outage().is_some() { None } else { self.device.deadline_ms() };
        [shared.deadline_ms(), own].into_iter().flatten().min()
    }

    fn set(
        &mut self,
        now_ms: u64,
        property: usize,
        value: &str,
        readings: &mut Vec<Reading>,
    ) -> Result<(), String> {
        self.device.wish(property, value);
        self.work(now_ms, readings)
    }

    fn complaint(&self) -> Option<String> {
        self.shared.borrow().outage().cloned().or_else(|| self.device.complaint())
    }
}

impl Drop for ModbusDriver {
    fn drop(&mut self) {
        self.shared.borrow_mut().line.leave(self.client);
    }
}
