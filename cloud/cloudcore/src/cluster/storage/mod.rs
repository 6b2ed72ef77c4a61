//! Binds claims to volumes, as Kubernetes' persistent volume controller does for volumes that an administrator made.
//!
//! Not here: provisioning (nothing makes or deletes storage), expansion. Values only: all objects in, writes out. The plan is
//! made anew after every change, so each step can be lost or repeated, and a restart goes on where things stand.
//!
//! Invariants
//! - A volume is given to one claim: its `claimRef` is written first and under its resourceVersion.
//! - A claim or volume that is in use is not removed: a finalizer holds it.
//! - Data is never deleted. A volume with policy Delete that loses its claim becomes Failed, with a message that says what to do.
//!
//! Start at [`plan`]; for the scheduler's part at [`schedule`].

mod bind;
mod quantity;
pub mod schedule;
pub mod view;

#[cfg(test)]
mod tests;

pub use bind::{Action, Issued, plan};
pub use view::{Claim, Class, Volume};
