//! Byte streams beside the messages on one link: many at a time, each with flow control of its own, as values without I/O.
//!
//! Not here: sockets, tasks, wakers (`lib/streams`), and what the bytes mean (a kubelet's API, in both directions).
//!
//! Invariants
//! - The bytes of a stream arrive in order and exactly once, or the stream ends with a reason that both ends learn.
//! - What is kept of a stream that nobody reads is at most the window that was granted for it; all windows of a link together are
//!   at most [`Settings::link_bytes_max`]. What is kept of a stream that the link does not take is at most
//!   [`SEND_BUFFER_LEN`](crate::limits::SEND_BUFFER_LEN).
//! - Streams take turns, a frame each. News for the peer's accounting (windows, ends) goes before data.
//! - A peer that breaks a stream's rules loses that stream; one that breaks the link's rules loses the link ([`Violation`]).
//!
//! Start at [`Mux`]; what travels is [`Frame`].

mod entry;
mod frame;
mod mux;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

pub use entry::{Read, StreamEnd};
pub use frame::{Frame, FrameError, kind};
pub use mux::{Action, Mux, Refused, Settings, Violation};

/// Decodes any bytes and feeds what comes out to both kinds of ends; for fuzzing.
pub fn fuzz_frames(data: &[u8]) {
    let mut ends = [Mux::opener(Settings::default()), Mux::acceptor(Settings::default())];
    drop(ends[0].open());
    let mut rest = data;
    while let Some((len, tail)) = rest.split_first() {
        let (frame, tail) = tail.split_at(tail.len().min(usize::from(*len)));
        rest = tail;
        let Ok(frame) = Frame::decode(frame) else { continue };
        let again = Frame::decode(&frame.encode()).expect("what we encode decodes");
        assert_eq!(again, frame);
        for end in &mut ends {
            drop(end.handle(frame.clone()));
            while end.transmit().is_some() {}
            assert!(end.kept_len() <= Settings::default().link_bytes_max);
        }
    }
}
