//! Network time: a child process that asks the servers in turn, sets the clock when it is off, and exits 0 once it knows the time.
//! A process of its own, because names are looked up on the way and PID 1 must not wait for a network.

use std::net::{ToSocketAddrs, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock;
use crate::limits::NTP_SERVERS_MAX;

/// Seconds between 1900 and 1970.
const ERA: u64 = 2_208_988_800;
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Less is left alone; the kernel's clock drifts less than this in an hour.
const STEP_MIN: f64 = 0.128;

/// `init sntp FLOOR SERVER...`
pub fn run(args: &[String]) {
    let floor: u64 = args.first().and_then(|text| text.parse().ok()).unwrap_or(0);
    for server in args.iter().skip(1).take(NTP_SERVERS_MAX) {
        match ask(server) {
            Ok(offset) => {
                if apply(server, offset, floor) {
                    return;
                }
            }
            Err(error) => println!("time server {server}: {error}"),
        }
    }
    std::process::exit(1);
}

fn since_epoch() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn apply(server: &str, offset: f64, floor: u64) -> bool {
    let target = since_epoch() + offset;
    if target < floor as f64 {
        println!(
            "time server {server} says {}, which is before this image was built: not believed",
            clock::render(target.max(0.0) as u64)
        );
        return false;
    }
    if offset.abs() >= STEP_MIN {
        if let Err(error) = clock::set(Duration::from_secs_f64(target)) {
            println!("cannot set the clock: {}", error.desc());
            return false;
        }
        println!("clock set from {server}: {offset:+.1} s, now {}", clock::render(clock::now()));
    }
    true
}

fn ask(server: &str) -> Result<f64, String> {
    let address = if server.contains(':') { server.to_owned() } else { format!("{server}:123") };
    let address = address
        .to_socket_addrs()
        .map_err(|error| format!("name not found ({error})"))?
        .next()
        .ok_or("name not found")?;
    let local = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let talk = || -> std::io::Result<(f64, [u8; 48], f64)> {
        let socket = UdpSocket::bind(local)?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        socket.connect(address)?;
        let sent = since_epoch();
        socket.send(&request(sent))?;
        let mut answer = [0; 48];
        let n = socket.recv(&mut answer)?;
        if n < answer.len() {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        }
        Ok((sent, answer, since_epoch()))
    };
    let (sent, answer, received) = talk().map_err(|error| format!("no answer ({error})"))?;
    offset(&answer, sent, received).ok_or_else(|| "its answer is not usable".to_owned())
}

fn request(sent: f64) -> [u8; 48] {
    let mut packet = [0; 48];
    // Version 4, client. The time of sending comes back as the origin, which is how an answer is known to be ours.
    packet[0] = 0x23;
    packet[40..48].copy_from_slice(&stamp(sent).to_be_bytes());
    packet
}

fn stamp(seconds: f64) -> u64 {
    let whole = seconds as u64;
    let fraction = ((seconds - whole as f64) * 4_294_967_296.0) as u64;
    (whole + ERA) << 32 | fraction
}

fn seconds(stamp: u64) -> f64 {
    let whole = stamp >> 32;
    // Times before 1970 belong to the era that begins in 2036.
    let whole = if whole < ERA { whole + (1 << 32) } else { whole };
    (whole - ERA) as f64 + (stamp & 0xffff_ffff) as f64 / 4_294_967_296.0
}

/// How far the clock is behind the server's.
fn offset(answer: &[u8; 48], sent: f64, received: f64) -> Option<f64> {
    let field =
        |at: usize| answer.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    let (mode, leap, stratum) = (answer[0] & 7, answer[0] >> 6, answer[1]);
    if mode != 4 || leap == 3 || stratum == 0 || stratum > 15 || field(24)? != stamp(sent) || field(40)? == 0
    {
        return None;
    }
    Some(((seconds(field(32)?) - sent) + (seconds(field(40)?) - received)) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(sent: f64, server: f64) -> [u8; 48] {
        let mut packet = [0; 48];
        packet[0] = 0x24;
        packet[1] = 2;
        packet[24..32].copy_from_slice(&stamp(sent).to_be_bytes());
        packet[32..40].copy_from_slice(&stamp(server).to_be_bytes());
        packet[40..48].copy_from_slice(&stamp(server).to_be_bytes());
        packet
    }

    #[test]
    fn the_offset_is_the_mean_of_both_ways() {
        let got = offset(&answer(1_000_000.0, 1_000_500.05), 1_000_000.0, 1_000_000.1).expect("usable");
        assert!((got - 500.0).abs() < 0.001, "{got}");
    }

    #[test]
    fn answers_that_are_not_ours_or_not_synchronised_are_refused() {
        let good = answer(1_000_000.0, 1_000_500.0);
        let cases: [fn(&mut [u8; 48]); 4] =
            [|p| p[0] = 0xe4, |p| p[1] = 0, |p| p[31] ^= 1, |p| p[40..48].fill(0)];
        for (number, damage) in cases.into_iter().enumerate() {
            let mut packet = good;
            damage(&mut packet);
            assert!(offset(&packet, 1_000_000.0, 1_000_000.1).is_none(), "case {number}");
        }
    }

    #[test]
    fn times_after_2036_are_understood() {
        assert!((seconds(stamp(2_200_000_000.0)) - 2_200_000_000.0).abs() < 0.001);
    }
}
