//! What the sensor does, without a chip: bytes and time in, bytes out. A counter on channel 1, a heater on channel 2.
#![no_std]

use frames::{Encoded, Frame, FrameValue, Frames, encode};

pub const COUNTER: u8 = 1;
pub const HEATER: u8 = 2;
const REPORT_MS: u64 = 200;

/// Up to two frames: an answer and a report.
pub type Output = heapless::Vec<u8, 512>;

#[derive(Default)]
pub struct Sensor {
    frames: Frames,
    sequence: u16,
    count: i64,
    heater: bool,
    report_at_ms: u64,
}

impl Sensor {
    /// Takes one byte of the line.
    pub fn receive(&mut self, byte: u8) -> Output {
        let mut set = None;
        self.frames.feed(&[byte], |frame| set = Some(frame));
        let mut output = Output::new();
        // A Set that comes twice, because its Done was lost, is applied twice: that does no harm.
        if let Some(Frame::Set { sequence, channel, value }) = set {
            let accepted = match (channel, value) {
                (HEATER, FrameValue::Bool(on)) => {
                    self.heater = on;
                    true
                }
                // A node whose model has no BOOLEAN writes 0 and 1.
                (HEATER, FrameValue::Int(on @ 0..=1)) => {
                    self.heater = on == 1;
                    true
                }
                (COUNTER, FrameValue::Int(count)) => {
                    self.count = count;
                    true
                }
                _ => false,
            };
            put(&mut output, &encode(&Frame::Done { sequence, accepted }));
            let report = self.report(HEATER, FrameValue::Bool(self.heater));
            put(&mut output, &report);
        }
        output
    }

    /// Looks at the clock.
    pub fn tick(&mut self, now_ms: u64) -> Output {
        let mut output = Output::new();
        if now_ms >= self.report_at_ms {
            self.report_at_ms = now_ms + REPORT_MS;
            self.count += 1;
            let report = self.report(COUNTER, FrameValue::Int(self.count));
            put(&mut output, &report);
        }
        output
    }

    fn report(&mut self, channel: u8, value: FrameValue) -> Encoded {
        self.sequence = self.sequence.wrapping_add(1);
        encode(&Frame::Report { sequence: self.sequence, channel, value })
    }
}

/// Two frames fit; what would not is not sent, as if the line had lost it.
fn put(output: &mut Output, frame: &Encoded) {
    let _ = output.extend_from_slice(frame);
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    fn frames_in(bytes: &[u8]) -> Vec<Frame> {
        let mut all = Vec::new();
        Frames::default().feed(bytes, |frame| all.push(frame));
        all
    }

    fn said(sensor: &mut Sensor, frame: &Frame) -> Vec<Frame> {
        let bytes: Vec<u8> = encode(frame).iter().flat_map(|byte| sensor.receive(*byte)).collect();
        frames_in(&bytes)
    }

    #[test]
    fn counts_and_obeys() {
        let mut sensor = Sensor::default();
        let bytes: Vec<u8> = (0..1000).flat_map(|now_ms| sensor.tick(now_ms)).collect();
        let counts = frames_in(&bytes);
        assert_eq!(counts.len(), 5);
        assert_eq!(counts[4], Frame::Report { sequence: 5, channel: COUNTER, value: FrameValue::Int(5) });
        let on = Frame::Set { sequence: 7, channel: HEATER, value: FrameValue::Bool(true) };
        let expected = [
            Frame::Done { sequence: 7, accepted: true },
            Frame::Report { sequence: 6, channel: HEATER, value: FrameValue::Bool(true) },
        ];
        assert_eq!(said(&mut sensor, &on), expected);
        let odd = Frame::Set { sequence: 8, channel: 9, value: FrameValue::Int(1) };
        assert_eq!(said(&mut sensor, &odd)[0], Frame::Done { sequence: 8, accepted: false });
        // Noise, then a whole frame.
        assert!(sensor.receive(0x55).is_empty() && sensor.receive(0).is_empty());
        assert_eq!(said(&mut sensor, &on).len(), 2);
    }
}
