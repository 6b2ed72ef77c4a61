//! Which addresses of a Modbus line answer. Each is asked to read its first holding register, which changes nothing; a refusal is an answer,
//! too. Only on a line that somebody named: what is not Modbus does not like to be asked.

use std::{
    ops::RangeInclusive,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Map, Value, json};

use crate::{
    limits::MODBUS_SCAN_TIMEOUT_MS,
    modbus::{
        adu::{self, Found, Framing, Receiver},
        link::Wire,
        pdu::{Request, Table},
    },
    plan::{fields::Fields, modbus},
};

const UNITS: RangeInclusive<u8> = 1..=32;

/// What the words of the command line ask for: keys of `spec.protocol.configData`, and `units=1-247`.
pub struct Order {
    config: Value,
    pub units: RangeInclusive<u8>,
}

impl Order {
    pub fn parse(words: &[&str]) -> Result<Order, String> {
        let (mut config, mut units) = (Map::new(), UNITS);
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                return Err(format!(
                    "{word:?} is no KEY=VALUE; example: scan modbus serialPort=/dev/ttyUSB0 baudRate=9600 parity=none units=1-32"
                ));
            };
            if key != "units" {
                config.insert(key.into(), json!(value));
                continue;
            }
            let (first, last) = value.split_once('-').unwrap_or((value, value));
            units = match (first.parse::<u8>(), last.parse::<u8>()) {
                (Ok(first @ 1..=247), Ok(last @ 1..=247)) if first <= last => first..=last,
                _ => return Err(format!("units={value}: write a range of 1 to 247, such as 1-32")),
            };
        }
        Ok(Order { config: Value::Object(config), units })
    }
}

/// Asks one unit after another. `told` gets each unit before it is asked, and what is found. A slave may answer after its time: what comes
/// then is not taken for the next one's answer, because answers carry the unit.
pub fn scan(order: &Order, mut told: impl FnMut(u8, Option<&str>)) -> Result<usize, String> {
    let mut fields = Fields::new("", Some(&order.config))?;
    let slave = modbus::slave(&mut fields)?;
    fields.done()?;
    let framing = slave.line.link.framing();
    let timeout = Duration::from_millis(MODBUS_SCAN_TIMEOUT_MS);
    let mut wire = Wire::open(&slave.line.link)?;
    let connect_by = Instant::now() + Duration::from_millis(slave.timeout_ms);
    while !wire.connect()? {
        if Instant::now() > connect_by {
            return Err("the device does not accept the connection; check ip, port and that it is on".into());
        }
        wait(&wire, PollFlags::POLLOUT, timeout)?;
    }
    let request = Request::Read { table: Table::Holding, address: 0, count: 1 };
    let mut found = 0;
    for (transaction, unit) in (1..).zip(order.units.clone()) {
        told(unit, None);
        let Some(frame) = adu::encode(framing, transaction, unit, &request) else { continue };
        let mut rest = &frame[..];
        let until = Instant::now() + timeout;
        while !rest.is_empty() && Instant::now() < until {
            let written = wire.write(rest)?;
            rest = &rest[written..];
            if !rest.is_empty() {
                wait(&wire, PollFlags::POLLOUT, until.saturating_duration_since(Instant::now()))?;
            }
        }
        if let Some(pdu) = answer(&mut wire, framing, transaction, unit, &request, until)? {
            found += 1;
            told(unit, Some(&describe(&pdu)));
        }
    }
    Ok(found)
}

fn answer(
    wire: &mut Wire,
    framing: Framing,
    transaction: u16,
    unit: u8,
    request: &Request,
    until: Instant,
) -> Result<Option<Vec<u8>>, String> {
    let (mut receiver, mut buffer) = (Receiver::default(), [0; 256]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || !wait(wire, PollFlags::POLLIN, left)? {
            return Ok(None);
        }
        let len = wire.read(&mut buffer)?;
        match receiver.feed(&buffer[..len], framing, transaction, unit, request) {
            Found::Answer(pdu) => return Ok(Some(pdu)),
            Found::Nothing => {}
            Found::Broken => {
                return Err(
                    "what answers there does not speak Modbus TCP; try transmissionMode=RTUoverTCP".into()
                );
            }
        }
    }
}

fn describe(pdu: &[u8]) -> String {
    match pdu {
        [function, code, ..] if function & 0x80 != 0 => format!("answers (exception {code})"),
        [_, _, high, low, ..] => {
            format!("answers (holding register 0 is {})", u16::from_be_bytes([*high, *low]))
        }
        _ => "answers".into(),
    }
}

#[allow(unsafe_code)]
fn wait(wire: &Wire, flags: PollFlags, timeout: Duration) -> Result<bool, String> {
    // SAFETY: the wire owns the descriptor and is borrowed for the whole call.
    let fd = unsafe { BorrowedFd::borrow_raw(wire.fd()) };
    let mut fds = [PollFd::new(fd, flags)];
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO);
    match poll(&mut fds, timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(format!("cannot wait for the line: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn units_that_answer_are_found_and_the_others_cost_their_time_only() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut request = [0; 12];
            while stream.read_exact(&mut request).is_ok() {
                let unit = request[6];
                asked.push(unit);
                assert_eq!(request[7..], [3, 0, 0, 0, 1], "nothing but a read");
                let pdu: &[u8] = match unit {
                    2 => &[3, 2, 0x12, 0x34],
                    3 => &[0x83, 2],
                    _ => continue,
                };
                let mut frame = vec![request[0], request[1], 0, 0, 0, 1 + pdu.len() as u8, unit];
                frame.extend_from_slice(pdu);
                stream.write_all(&frame).unwrap();
            }
            asked
        });
        let order = Order::parse(&["ip=127.0.0.1", &format!("port={port}"), "units=1-4"]).unwrap();
        let mut seen = Vec::new();
        let found =
            scan(&order, |unit, text| seen.extend(text.map(|text| format!("{unit} {text}")))).unwrap();
        assert_eq!(seen, ["2 answers (holding register 0 is 4660)", "3 answers (exception 2)"]);
        assert_eq!((found, server.join().unwrap()), (2, vec![1, 2, 3, 4]));
    }

    #[test]
    fn what_was_typed_wrong_is_told_with_an_example() {
        for (words, told) in [
            (&["/dev/ttyUSB0"][..], "scan modbus serialPort="),
            (&["units=0-3"], "range of 1 to 247"),
            (&["units=9-3"], "range of 1 to 247"),
        ] {
            assert!(Order::parse(words).err().unwrap().contains(told), "{words:?}");
        }
        for (words, told) in [
            (&[][..], "serialPort is missing"),
            (&["serialPort=/dev/ttyUSB0", "boud=9600"], "unknown field"),
            (&["serialPort=/dev/none"], "/dev/none"),
        ] {
            let error = scan(&Order::parse(words).unwrap(), |_, _| {}).unwrap_err();
            assert!(error.contains(told), "{words:?}: {error}");
        }
    }
}
