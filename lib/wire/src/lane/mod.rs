//! How messages stand on the link: KubeEdge's JSON with a stock peer, the compact lane between our own two ends.
//!
//! The lane is a codec below [`Message`](crate::Message): the same messages, the same state machines ([`crate::link`],
//! [`crate::delivery`]) on both. The compact lane is offered with the request header `Kinglet-Lane: 1` and accepted with the same
//! response header. It numbers messages instead of naming them, acknowledges many with one frame, puts what waits into one WebSocket
//! message, and has short forms for what an idle node repeats. docs/wire.md has the kinds.
//!
//! Invariants
//! - An answer names a message of this very link: numbers of another link are never taken for ours.
//! - The body of a released kind never changes; samples of each stay in `tests/vectors/lane-v1.txt`.
//! - Nothing is allocated for a length that was not checked; what is kept for answers to come has a bound.
//!
//! Start at [`Lane`]; one value lives as long as one connection.

mod codec;
mod frame;
mod idle;
mod pack;
#[cfg(test)]
mod tests;

pub use codec::{End, Frames, Lane, LaneError, Out, Received};
pub use frame::{Envelope, Frame, FrameError, kind};
pub use idle::{BEAT, RENEW};
pub use pack::{Compress, PackError};

/// Decodes any bytes as both ends do, and encodes what comes out; for fuzzing.
pub fn fuzz_lane(data: &[u8]) {
    let cloud = || End::Cloud { node: "a".into(), compress: None };
    for end in [|| End::Edge, cloud] {
        let mut lane = Lane::compact(7, end());
        let push = crate::Message::new(1, crate::source::EDGED, "meta", "query", "null/node/a");
        lane.push(&push);
        drop(lane.take());
        let Ok(received) = lane.receive(Frames::Binary(data)) else { continue };
        for received in received {
            let Received::Message(message) = received else { continue };
            lane.push(&message);
            lane.push(&message.ack(1));
        }
        while let Some(Out::Binary(bytes)) = lane.take() {
            // An answer to what the other never asked is no message for it, but it is well-formed.
            Lane::compact(7, end()).receive(Frames::Binary(&bytes)).expect("what we encode decodes");
        }
    }
}
