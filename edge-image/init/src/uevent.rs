//! News of the kernel about devices that come and go: what tells init to load a driver for a USB stick plugged in later.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// The kernel's own messages, not those that udev would send on.
const KERNEL_GROUP: u32 = 1;

#[derive(Debug)]
pub struct Uevents {
    socket: OwnedFd,
}

impl Uevents {
    pub fn open() -> nix::Result<Uevents> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket =
            socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkKObjectUEvent)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(Uevents { socket })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The module aliases of devices that appeared since the last call.
    pub fn take(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut message = [0; 4096];
        while let Ok(n) = recv(self.socket.as_raw_fd(), &mut message, MsgFlags::empty()) {
            found.extend(modalias(&message[..n]));
        }
        found
    }
}

/// `add@/devices/...` followed by `KEY=value` strings, each ended by a zero.
fn modalias(message: &[u8]) -> Option<String> {
    let mut words = message.split(|byte| *byte == 0);
    if !words.next()?.starts_with(b"add@") {
        return None;
    }
    let alias = words.find_map(|word| word.strip_prefix(b"MODALIAS="))?;
    std::str::from_utf8(alias).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_devices_with_an_alias_count() {
        let added = b"add@/devices/x\0ACTION=add\0MODALIAS=usb:v0403p6001\0SEQNUM=1\0";
        assert_eq!(modalias(added).as_deref(), Some("usb:v0403p6001"));
        assert_eq!(modalias(b"remove@/devices/x\0MODALIAS=usb:v1\0"), None);
        assert_eq!(modalias(b"add@/devices/x\0ACTION=add\0"), None);
        assert_eq!(modalias(b"\xff\0\0"), None);
    }
}
