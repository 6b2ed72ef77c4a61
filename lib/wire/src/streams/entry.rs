//! One stream at one end.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Frame;
use crate::limits::{SEND_BUFFER_LEN, STREAM_CHUNK_LEN, STREAM_CREDIT_MAX};

/// Above this a buffer that became empty gives its memory back.
const IDLE_CAPACITY_MAX: usize = SEND_BUFFER_LEN;

/// What reading gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Bytes(usize),
    /// Nothing yet; the next `Action::Ready` of the stream tells.
    Wait,
    /// The peer has finished, and all that it sent was read.
    End,
}

/// The stream is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream was ended: {0}")]
pub struct StreamEnd(pub String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Open,
    /// No more data comes from here; the rest and the `Finish` are still to be sent.
    Finishing,
    Finished,
}

#[derive(Debug)]
pub struct Entry {
    /// False: the peer has not answered our `Open`.
    pub accepted: bool,
    /// Nobody at this end reads or writes any more.
    pub dropped: bool,
    ended: Option<String>,

    out: VecDeque<u8>,
    /// What the peer still takes.
    credit: u32,
    sending: Half,
    /// The peer reads no more.
    stopped: bool,

    incoming: VecDeque<u8>,
    pub window: u32,
    /// What the peer may still send of the window.
    left: u32,
    /// Read here and not yet granted anew.
    read: u32,
    peer_finished: bool,
}

impl Entry {
    pub fn new(window: u32, credit: u32, accepted: bool) -> Entry {
        Entry {
            accepted,
            dropped: false,
            ended: None,
            out: VecDeque::new(),
            credit: credit.min(STREAM_CREDIT_MAX),
            sending: Half::Open,
            stopped: false,
            incoming: VecDeque::new(),
            window,
            left: window,
            read: 0,
            peer_finished: false,
        }
    }

    /// How many bytes were taken; 0: wait.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, StreamEnd> {
        if let Some(reason) = &self.ended {
            return Err(StreamEnd(reason.clone()));
        }
        if self.stopped {
            return Err(StreamEnd("the other end reads no more".into()));
        }
        if self.sending != Half::Open {
            return Err(StreamEnd("it was finished by this end".into()));
        }
        let room = SEND_BUFFER_LEN.saturating_sub(self.out.len()).min(bytes.len());
        self.out.extend(&bytes[..room]);
        Ok(room)
    }

    pub fn finish(&mut self) {
        if self.sending == Half::Open {
            self.sending = Half::Finishing;
        }
    }

    /// The peer reads no more: what waits for it is dropped, and the data ends here.
    pub fn stop(&mut self) {
        self.stopped = true;
        self.out = VecDeque::new();
        self.finish();
    }

    pub fn is_finishing(&self) -> bool {
        self.sending != Half::Open
    }

    pub fn read(&mut self, into: &mut [u8]) -> Result<Read, StreamEnd> {
        // What the peer finished in order stays readable, whatever came after.
        if let (Some(reason), false) = (&self.ended, self.peer_finished) {
            return Err(StreamEnd(reason.clone()));
        }
        if self.incoming.is_empty() {
            return Ok(if self.peer_finished { Read::End } else { Read::Wait });
        }
        let len = copy(&self.incoming, into);
        self.incoming.drain(..len);
        self.read += len as u32;
        if self.incoming.is_empty() && self.incoming.capacity() > IDLE_CAPACITY_MAX {
            self.incoming = VecDeque::new();
        }
        Ok(Read::Bytes(len))
    }

    /// A half of the window was read: worth a frame.
    pub fn grant_is_due(&self) -> bool {
        self.read >= self.window.div_ceil(2) && !self.peer_finished && self.ended.is_none() && !self.dropped
    }

    pub fn grant(&mut self) -> u32 {
        self.left += self.read;
        std::mem::take(&mut self.read)
    }

    /// `Err`: the peer breaks the stream's rules.
    pub fn data(&mut self, bytes: &Bytes) -> Result<(), String> {
        if self.peer_finished {
            return Err("data came after the end of the data".into());
        }
        if bytes.len() > self.left as usize {
            return Err(format!("{} bytes came, {} were granted", bytes.len(), self.left));
        }
        self.left -= bytes.len() as u32;
        if !self.dropped && self.ended.is_none() {
            self.incoming.extend(bytes.iter());
        }
        Ok(())
    }

    pub fn peer_finished(&mut self) {
        self.peer_finished = true;
    }

    pub fn has_peer_finished(&self) -> bool {
        self.peer_finished
    }

    pub fn credit(&mut self, add: u32) -> Result<(), String> {
        match self.credit.checked_add(add) {
            Some(credit) if credit <= STREAM_CREDIT_MAX => {
                self.credit = credit;
                Ok(())
            }
            _ => Err(format!("a window above {STREAM_CREDIT_MAX} bytes was granted")),
        }
    }

    /// Over in both directions, for this reason.
    pub fn end(&mut self, reason: &str) {
        if self.ended.is_none() {
            self.ended = Some(reason.to_owned());
        }
        self.out = VecDeque::new();
        self.sending = Half::Finished;
        if !self.peer_finished {
            self.incoming = VecDeque::new();
        }
    }

    pub fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }

    /// Is there something to send, and does the peer take it?
    pub fn is_ready(&self) -> bool {
        self.accepted
            && match self.out.is_empty() {
                true => self.sending == Half::Finishing,
                false => self.credit > 0,
            }
    }

    /// The next frame of a stream that is ready; true: writing may go on.
    pub fn transmit(&mut self, id: u32) -> (Frame, bool) {
        if self.out.is_empty() {
            self.sending = Half::Finished;
            return (Frame::Finish { id }, false);
        }
        let len = self.out.len().min(STREAM_CHUNK_LEN).min(self.credit as usize);
        self.credit -= len as u32;
        let mut bytes = vec![0; len];
        copy(&self.out, &mut bytes);
        self.out.drain(..len);
        (Frame::Data { id, bytes: bytes.into() }, self.sending == Half::Open)
    }

    pub fn has_finished(&self) -> bool {
        self.sending == Half::Finished
    }

    /// Bytes kept here.
    pub fn kept_len(&self) -> usize {
        self.incoming.len()
    }

    pub fn queued_len(&self) -> usize {
        self.out.len()
    }
}

/// Copies from the front as much as there is room for.
fn copy(from: &VecDeque<u8>, into: &mut [u8]) -> usize {
    let (front, back) = from.as_slices();
    let first = front.len().min(into.len());
    into[..first].copy_from_slice(&front[..first]);
    let second = back.len().min(into.len() - first);
    into[first..first + second].copy_from_slice(&back[..second]);
    first + second
}
