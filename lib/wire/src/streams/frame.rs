//! Frames of the byte streams ([`crate::frames`] has their form). One frame fills one WebSocket message.
//!
//! The body of a released kind never changes; a new field is a new kind.

use bytes::Bytes;

use crate::{
    frames::{ReadError, put, take_bytes as tail, take_u32 as take},
    limits::{STREAM_CHUNK_LEN_MAX, STREAM_REASON_LEN_MAX},
};

/// Numbers of the frames' kinds.
pub mod kind {
    pub use crate::frames::UNKNOWN;
    pub const OPEN: u16 = 0x0010;
    pub const ACCEPT: u16 = 0x0011;
    pub const DATA: u16 = 0x0012;
    pub const WINDOW: u16 = 0x0013;
    pub const FINISH: u16 = 0x0014;
    pub const RESET: u16 = 0x0015;
    pub const STOP: u16 = 0x0016;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The sender does not know this kind and has skipped the frame.
    Unknown {
        kind: u16,
    },
    /// A new stream. Ids are the opener's and rise. `window`: so many bytes the peer may send on it.
    Open {
        id: u32,
        window: u32,
    },
    /// The stream is taken. `window` as in `Open`.
    Accept {
        id: u32,
        window: u32,
    },
    Data {
        id: u32,
        bytes: Bytes,
    },
    /// So many bytes more may be sent.
    Window {
        id: u32,
        add: u32,
    },
    /// The sender sends no more data on it; it still reads.
    Finish {
        id: u32,
    },
    /// The sender reads no more; it still sends. Answered by `Finish`.
    Stop {
        id: u32,
    },
    /// The stream is over in both directions, what was not read is lost. Also the refusal of an `Open`.
    Reset {
        id: u32,
        reason: String,
    },
    /// A kind that this version does not know; never sent.
    Skipped {
        kind: u16,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the frame ends too early")]
    Short,
    #[error("a number in the frame is too large")]
    Number,
    #[error("the frame says {said} bytes and has {found}")]
    Length { said: usize, found: usize },
    #[error("a frame with {0} bytes of data is over the limit of {STREAM_CHUNK_LEN_MAX}")]
    Chunk(usize),
    #[error("the reason is longer than {STREAM_REASON_LEN_MAX} bytes or not text")]
    Reason,
}

impl From<ReadError> for FrameError {
    fn from(error: ReadError) -> FrameError {
        match error {
            ReadError::Short => FrameError::Short,
            ReadError::Number => FrameError::Number,
        }
    }
}

impl Frame {
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(16);
        let mut tail: &[u8] = &[];
        let kind = match self {
            Frame::Unknown { kind } => {
                put(&mut body, u64::from(*kind));
                kind::UNKNOWN
            }
            Frame::Open { id, window } => pair(&mut body, *id, *window, kind::OPEN),
            Frame::Accept { id, window } => pair(&mut body, *id, *window, kind::ACCEPT),
            Frame::Window { id, add } => pair(&mut body, *id, *add, kind::WINDOW),
            Frame::Data { id, bytes } => {
                tail = bytes;
                pair(&mut body, *id, bytes.len() as u32, kind::DATA)
            }
            Frame::Finish { id } => {
                put(&mut body, u64::from(*id));
                kind::FINISH
            }
            Frame::Stop { id } => {
                put(&mut body, u64::from(*id));
                kind::STOP
            }
            Frame::Reset { id, reason } => {
                tail = cut(reason).as_bytes();
                pair(&mut body, *id, tail.len() as u32, kind::RESET)
            }
            Frame::Skipped { kind } => *kind,
        };
        let mut frame = Vec::with_capacity(8 + body.len() + tail.len());
        frame.extend_from_slice(&kind.to_le_bytes());
        put(&mut frame, (body.len() + tail.len()) as u64);
        frame.extend_from_slice(&body);
        frame.extend_from_slice(tail);
        frame
    }

    /// `message`: one whole WebSocket message.
    pub fn decode(message: &[u8]) -> Result<Frame, FrameError> {
        let (kind, mut rest) = message.split_first_chunk::<2>().ok_or(FrameError::Short)?;
        let kind = u16::from_le_bytes(*kind);
        let said = take(&mut rest)? as usize;
        if said != rest.len() {
            return Err(FrameError::Length { said, found: rest.len() });
        }
        let frame = match kind {
            kind::UNKNOWN => {
                Frame::Unknown { kind: u16::try_from(take(&mut rest)?).map_err(|_| FrameError::Number)? }
            }
            kind::OPEN => Frame::Open { id: take(&mut rest)?, window: take(&mut rest)? },
            kind::ACCEPT => Frame::Accept { id: take(&mut rest)?, window: take(&mut rest)? },
            kind::WINDOW => Frame::Window { id: take(&mut rest)?, add: take(&mut rest)? },
            kind::DATA => {
                let id = take(&mut rest)?;
                let bytes = tail(&mut rest)?;
                if bytes.len() > STREAM_CHUNK_LEN_MAX {
                    return Err(FrameError::Chunk(bytes.len()));
                }
                // A slice of the message would keep alive the whole buffer it was read into.
                Frame::Data { id, bytes: Bytes::copy_from_slice(bytes) }
            }
            kind::FINISH => Frame::Finish { id: take(&mut rest)? },
            kind::STOP => Frame::Stop { id: take(&mut rest)? },
            kind::RESET => {
                let id = take(&mut rest)?;
                let reason = tail(&mut rest)?;
                let text = std::str::from_utf8(reason).map_err(|_| FrameError::Reason)?;
                if text.len() > STREAM_REASON_LEN_MAX {
                    return Err(FrameError::Reason);
                }
                Frame::Reset { id, reason: text.to_owned() }
            }
            kind => return Ok(Frame::Skipped { kind }),
        };
        match rest.len() {
            0 => Ok(frame),
            more => Err(FrameError::Length { said: said - more, found: said }),
        }
    }
}

/// At most [`STREAM_REASON_LEN_MAX`] bytes of a text.
fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(STREAM_REASON_LEN_MAX)]
}

fn pair(body: &mut Vec<u8>, first: u32, second: u32, kind: u16) -> u16 {
    put(body, u64::from(first));
    put(body, u64::from(second));
    kind
}
