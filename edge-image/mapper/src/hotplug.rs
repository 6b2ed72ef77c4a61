//! Tells when device files come and go, so that an adapter that was plugged in again works at once and not after the next attempt.
//!
//! It only hurries: without it, or when a message is lost, devices are still opened again by their own pauses.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

pub struct HotPlug {
    inotify: Inotify,
}

impl HotPlug {
    /// Watches folders; those that are not there are left out. `None` when the kernel refuses.
    pub fn new(folders: &[&Path]) -> Option<HotPlug> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
        // IN_ATTRIB: udev gives the file to a group after it is there.
        let what = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ATTRIB;
        for folder in folders {
            let _ = inotify.add_watch(*folder, what);
        }
        Some(HotPlug { inotify })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Whether something came since it was asked last.
    pub fn has_news(&self) -> bool {
        let mut news = false;
        while self.inotify.read_events().is_ok_and(|events| !events.is_empty()) {
            news = true;
        }
        news
    }
}
