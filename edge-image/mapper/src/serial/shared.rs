//! One port, the devices on it. Each gets every byte that comes; what they send goes out one after the other.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::{Rc, Weak},
};

use super::port::OpenPort;
use crate::{
    limits::{SERIAL_INBOX_BYTES_MAX, SERIAL_OUTPUT_BYTES_MAX, SERIAL_READ_BYTES},
    plan::serial::Port,
};

/// The ports that are open, each once, whoever asked first.
#[derive(Default)]
pub struct Ports {
    ports: Vec<Weak<RefCell<SharedPort>>>,
}

/// When the port fails, every device on it is told, and the next that opens gets a new one.
pub struct SharedPort {
    settings: Port,
    /// The device that opened it, for messages.
    owner: String,
    port: Result<OpenPort, String>,
    inboxes: BTreeMap<u32, Vec<u8>>,
    client_last: u32,
    output: heapless::Vec<u8, SERIAL_OUTPUT_BYTES_MAX>,
    sequence: u16,
}

impl Ports {
    pub(super) fn open(&mut self, device: &str, settings: &Port) -> Result<Rc<RefCell<SharedPort>>, String> {
        self.ports.retain(|port| port.upgrade().is_some_and(|port| port.borrow().port.is_ok()));
        for port in self.ports.iter().filter_map(Weak::upgrade) {
            let shared = port.borrow();
            if shared.settings.device_file() != settings.device_file() {
                continue;
            }
            if !shared.settings.is_set_as(settings) {
                return Err(format!(
                    "{} is open for {} with other settings; devices on one port must have the same baudRate, dataBits, parity, stopBits and framing",
                    settings.path, shared.owner
                ));
            }
            drop(shared);
            return Ok(port);
        }
        let shared = SharedPort {
            settings: settings.clone(),
            owner: device.to_owned(),
            port: Ok(OpenPort::open(settings)?),
            inboxes: BTreeMap::new(),
            client_last: 0,
            output: heapless::Vec::new(),
            sequence: 0,
        };
        let shared = Rc::new(RefCell::new(shared));
        self.ports.push(Rc::downgrade(&shared));
        Ok(shared)
    }
}

impl SharedPort {
    pub(super) fn join(&mut self) -> u32 {
        self.client_last += 1;
        self.inboxes.insert(self.client_last, Vec::new());
        self.client_last
    }

    pub(super) fn leave(&mut self, client: u32) {
        self.inboxes.remove(&client);
    }

    /// The descriptor to wait for, and whether room to write is waited for.
    pub(super) fn wait(&self) -> Option<(std::os::fd::RawFd, bool)> {
        self.port.as_ref().ok().map(|port| (port.fd(), !self.output.is_empty()))
    }

    /// Another device's turn brought something, or found the port gone.
    pub(super) fn has_news(&self, client: u32) -> bool {
        self.port.is_err() || self.inboxes.get(&client).is_some_and(|inbox| !inbox.is_empty())
    }

    /// Moves bytes; returns those that came for this client.
    pub(super) fn pump(&mut self, client: u32) -> Result<Vec<u8>, String> {
        let result = self.try_pump();
        if let Err(error) = &result {
            self.port = Err(error.clone());
        }
        result?;
        Ok(self.inboxes.get_mut(&client).map(std::mem::take).unwrap_or_default())
    }

    fn try_pump(&mut self) -> Result<(), String> {
        let port = self.port.as_mut().map_err(|error| error.clone())?;
        while !self.output.is_empty() {
            let written = port.write(&self.output)?;
            if written == 0 {
                break;
            }
            self.output.rotate_left(written);
            self.output.truncate(self.output.len() - written);
        }
        let mut buffer = [0; SERIAL_READ_BYTES];
        let len = port.read(&mut buffer)?;
        for inbox in self.inboxes.values_mut() {
            inbox.extend_from_slice(&buffer[..len]);
            let over = inbox.len().saturating_sub(SERIAL_INBOX_BYTES_MAX);
            inbox.drain(..over);
        }
        Ok(())
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.output.extend_from_slice(bytes).is_err() {
            return Err(format!(
                "the port takes no output: {SERIAL_OUTPUT_BYTES_MAX} bytes wait; check the cable and flowControl"
            ));
        }
        Ok(())
    }

    /// Numbers of Set frames, so that a Done is one device's only.
    pub(super) fn next_sequence(&mut self) -> u16 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }
}
