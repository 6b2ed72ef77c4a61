//! The root's PID 1: boot once, then one loop.
//!
//! Start at [`run`]: `boot` makes the system usable, `Supervisor` keeps it so.

mod boot;
mod buttons;
mod join;
mod joining;
mod logs;
mod power;
mod report;
mod spawn;
mod supervisor;

use crate::say;

/// Does not return.
pub fn run() {
    let started = boot::boot();
    let mut supervisor = supervisor::Supervisor::new(started);
    let end = supervisor.run();
    say!("{end}");
    power::end(supervisor.into_parts(), end)
}
