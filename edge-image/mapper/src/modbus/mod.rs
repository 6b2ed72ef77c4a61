//! Modbus RTU and TCP: a client that reads and writes the registers that a Device describes (docs/modbus.md).
//!
//! Is not: a server, and not Modbus ASCII.
//! Invariants: one [`line::Line`] per port, shared by the devices on it; one request is out at a time; a request has an end
//! (answer, exception or time-out) however the slave behaves; what was not asked for is never taken for an answer.
//! Start at [`pdu`] (what is said), [`adu`] (how it is framed), [`line`] (whose turn it is), [`device`] (what one slave is asked).

pub mod adu;
pub mod device;
mod driver;
pub mod line;
pub(crate) mod link;
pub mod merge;
pub mod pdu;
mod shared;
pub mod value;

pub use driver::ModbusDriver;
pub use shared::Lines;

#[cfg(test)]
pub(crate) mod tests;

/// Total on any bytes: whatever a line brings, at whatever moment, a request ends and nothing panics.
pub fn fuzz_modbus(data: &[u8]) {
    use line::{Job, Line, Timing};
    use pdu::{Request, Table};
    let [kind, count, data @ ..] = data else { return };
    let framings = [adu::Framing::Rtu, adu::Framing::Tcp, adu::Framing::Ascii];
    let framing = framings[usize::from(kind >> 4) % 3];
    let timing = Timing { gap_ms: 2, pause_ms: 0, after_connect_ms: 0, byte_us: 100 };
    let mut line = Line::new(framing, timing);
    let client = line.join();
    let tables = [Table::Coils, Table::DiscreteInputs, Table::Holding, Table::Input];
    let count = u16::from(*count);
    let request = match kind & 7 {
        0 => Request::WriteCoils { address: count, values: vec![true; usize::from(count)] },
        1 => Request::WriteRegisters { address: count, values: vec![7; usize::from(count)], multiple: false },
        at => Request::Read { table: tables[usize::from(at) % 4], address: 0, count },
    };
    let job = Job { unit: 1, request, timeout_ms: 100, retries: 1, busy_retries: 1, busy_pause_ms: 5 };
    line.submit(client, job, false);
    line.opened(0);
    let mut now_ms = 0;
    for piece in data.chunks(9) {
        line.output().clear();
        if line.received(now_ms, piece).is_err() {
            return;
        }
        now_ms += 3;
        line.tick(now_ms);
    }
    for _ in 0..16 {
        line.output().clear();
        now_ms += 200;
        line.tick(now_ms);
    }
    assert!(line.take_done(client).is_some(), "every request ends");
}
