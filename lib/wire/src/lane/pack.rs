//! zstd, one shot: who compresses is given from outside (the cloud has the C library, the device none), inflating is here.

use ruzstd::decoding::FrameDecoder;

use crate::limits::{MESSAGE_BYTES_MAX, PACK_WINDOW_MAX};

/// Compresses one buffer. Shared by all links; holds its contexts itself.
pub trait Compress: Send + Sync {
    /// A zstd frame that names its content's length, with a window of at most [`PACK_WINDOW_MAX`]. `None`: it cannot.
    fn compress(&self, bytes: &[u8]) -> Option<Vec<u8>>;
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    #[error("a packed frame of {0} bytes is over the limit of {MESSAGE_BYTES_MAX}")]
    TooLarge(u32),
    #[error("a packed frame's header is not one of version 1 of the lane")]
    Header,
    #[error("a packed frame cannot be inflated to the length that it names")]
    Damaged,
}

/// `inflated_len` is checked before it is allocated, and so is the window that the frame asks for.
pub fn inflate(bytes: &[u8], inflated_len: u32) -> Result<Vec<u8>, PackError> {
    if inflated_len as usize > MESSAGE_BYTES_MAX {
        return Err(PackError::TooLarge(inflated_len));
    }
    let header = Header::read(bytes).ok_or(PackError::Header)?;
    if header.window > PACK_WINDOW_MAX || header.content_len != u64::from(inflated_len) {
        return Err(PackError::Header);
    }
    let mut inflated = vec![0; inflated_len as usize];
    match FrameDecoder::new().decode_all(bytes, &mut inflated) {
        Ok(len) if len == inflated.len() => Ok(inflated),
        _ => Err(PackError::Damaged),
    }
}

struct Header {
    window: u64,
    content_len: u64,
}

impl Header {
    /// RFC 8878, section 3.1.1.1. A frame with a dictionary is none of ours.
    fn read(bytes: &[u8]) -> Option<Header> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (descriptor, rest) = rest.split_first()?;
        if *magic != [0x28, 0xb5, 0x2f, 0xfd] || descriptor & 0b1011 != 0 {
            return None;
        }
        let single = descriptor & 0b10_0000 != 0;
        let (window, rest) = if single {
            (None, rest)
        } else {
            let (window, rest) = rest.split_first()?;
            let base = 1u64 << (10 + (window >> 3));
            (Some(base + base / 8 * u64::from(window & 7)), rest)
        };
        let content_len = match descriptor >> 6 {
            0 if single => u64::from(*rest.first()?),
            0 => return None,
            1 => u64::from(u16::from_le_bytes(*rest.first_chunk()?)) + 256,
            2 => u64::from(u32::from_le_bytes(*rest.first_chunk()?)),
            _ => u64::from_le_bytes(*rest.first_chunk()?),
        };
        Some(Header { window: window.unwrap_or(content_len), content_len })
    }
}
