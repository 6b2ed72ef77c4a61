//! From bytes to events.

use bytes::{Buf, Bytes, BytesMut};

use super::{CONTROL, FLAG_FIN, kind};
use crate::limits::SPDY_CONTROL_BYTES_MAX;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The peer took a stream that we opened. Data that is sent before is lost.
    Accepted(u32),
    /// A piece of a data frame.
    Data {
        stream: u32,
        bytes: Bytes,
    },
    /// The peer sends nothing more on it.
    Ended(u32),
    Reset {
        stream: u32,
        status: u32,
    },
    /// To be answered with the same number.
    Ping(u32),
    /// The peer ends the connection.
    GoAway,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpdyError {
    #[error("a frame of SPDY version {0}; version 3 is spoken here")]
    Version(u16),
    #[error("a control frame of type {kind} with {length} bytes; its type has other lengths")]
    Length { kind: u16, length: usize },
    #[error("the node opened a stream ({0}); only the client opens streams")]
    Unasked(u32),
}

#[derive(Debug, Default)]
pub(crate) struct Decoder {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Head,
    Data {
        stream: u32,
        left: usize,
        fin: bool,
    },
    /// The rest of a control frame, and whether its stream ends with it.
    Skip {
        left: usize,
        ends: Option<u32>,
    },
}

impl Decoder {
    /// Takes what it needs from `input`. `None`: more is needed.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, SpdyError> {
        loop {
            match self.state {
                State::Head => {
                    if input.len() < 8 {
                        return Ok(None);
                    }
                    if input[0] & 0x80 == 0 {
                        self.state = data(input);
                    } else {
                        match self.control(input)? {
                            Some(Some(event)) => return Ok(Some(event)),
                            Some(None) => {}
                            None => return Ok(None),
                        }
                    }
                }
                State::Data { stream, left: 0, fin } => {
                    self.state = State::Head;
                    if fin {
                        return Ok(Some(Event::Ended(stream)));
                    }
                }
                State::Data { stream, left, fin } => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let bytes = input.split_to(left.min(input.len())).freeze();
                    self.state = State::Data { stream, left: left - bytes.len(), fin };
                    return Ok(Some(Event::Data { stream, bytes }));
                }
                State::Skip { left: 0, ends } => {
                    self.state = State::Head;
                    if let Some(stream) = ends {
                        return Ok(Some(Event::Ended(stream)));
                    }
                }
                State::Skip { left, ends } => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let skipped = left.min(input.len());
                    input.advance(skipped);
                    self.state = State::Skip { left: left - skipped, ends };
                }
            }
        }
    }

    /// `None`: more input is needed. `Some(None)`: a frame that tells us nothing.
    fn control(&mut self, input: &mut BytesMut) -> Result<Option<Option<Event>>, SpdyError> {
        let version = u16::from_be_bytes([input[0], input[1]]);
        if version != CONTROL {
            return Err(SpdyError::Version(version & 0x7fff));
        }
        let kind = u16::from_be_bytes([input[2], input[3]]);
        let flags = input[4];
        let length = usize::from(input[5]) << 16 | usize::from(input[6]) << 8 | usize::from(input[7]);
        let exact = match kind {
            kind::RST_STREAM | kind::GOAWAY | kind::WINDOW_UPDATE => length == 8,
            kind::PING => length == 4,
            _ => (4..=SPDY_CONTROL_BYTES_MAX).contains(&length),
        };
        if !exact {
            return Err(SpdyError::Length { kind, length });
        }
        let words = if matches!(kind, kind::RST_STREAM | kind::GOAWAY | kind::WINDOW_UPDATE) { 2 } else { 1 };
        if input.len() < 8 + 4 * words {
            return Ok(None);
        }
        input.advance(8);
        let first = input.get_u32();
        let stream = first & 0x7fff_ffff;
        let second = if words == 2 { input.get_u32() } else { 0 };
        let ends =
            (flags & FLAG_FIN != 0 && matches!(kind, kind::SYN_REPLY | kind::HEADERS)).then_some(stream);
        self.state = State::Skip { left: length - 4 * words, ends };
        Ok(Some(match kind {
            kind::SYN_STREAM => return Err(SpdyError::Unasked(stream)),
            kind::SYN_REPLY => Some(Event::Accepted(stream)),
            kind::RST_STREAM => Some(Event::Reset { stream, status: second }),
            // Odd numbers are answers to pings of our own, which we do not send.
            kind::PING if first.is_multiple_of(2) => Some(Event::Ping(first)),
            kind::GOAWAY => Some(Event::GoAway),
            // SETTINGS, HEADERS, WINDOW_UPDATE, and what later versions may bring.
            _ => None,
        }))
    }
}

fn data(input: &mut BytesMut) -> State {
    let stream = input.get_u32();
    let rest = input.get_u32();
    let fin = (rest >> 24) as u8 & FLAG_FIN != 0;
    State::Data { stream, left: (rest & 0x00ff_ffff) as usize, fin }
}
