//! The few system calls without a safe wrapper. Everything else in this crate is safe code.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `WDIOC_SETTIMEOUT`. Returns the timeout the hardware took.
pub fn set_watchdog_timeout(file: &File, seconds: i32) -> io::Result<i32> {
    const WDIOC_SETTIMEOUT: u32 = 0xc004_5706;
    let mut value: libc::c_int = seconds;
    // SAFETY: the request reads and writes one int, and `value` lives through the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), WDIOC_SETTIMEOUT as libc::Ioctl, &raw mut value) })?;
    Ok(value)
}

/// Bytes of a block device.
pub fn block_device_bytes(file: &File) -> io::Result<u64> {
    const BLKGETSIZE64: u32 = 0x8008_1272;
    let mut value: u64 = 0;
    // SAFETY: the request writes one u64, and `value` lives through the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64 as libc::Ioctl, &raw mut value) })?;
    Ok(value)
}

#[repr(C)]
struct BlkpgPartition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    number: libc::c_int,
    names: [libc::c_char; 128],
}

#[repr(C)]
struct BlkpgArgument {
    operation: libc::c_int,
    flags: libc::c_int,
    length: libc::c_int,
    data: *mut BlkpgPartition,
}

/// Tells the kernel that a partition, which may be in use, is larger now.
pub fn resize_partition(disk: &File, number: i32, start: u64, length: u64) -> io::Result<()> {
    const BLKPG: u32 = 0x1269;
    const BLKPG_RESIZE_PARTITION: libc::c_int = 3;
    let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut partition = BlkpgPartition {
        start: start.try_into().map_err(too_large)?,
        length: length.try_into().map_err(too_large)?,
        number,
        names: [0; 128],
    };
    let mut argument = BlkpgArgument {
        operation: BLKPG_RESIZE_PARTITION,
        flags: 0,
        length: libc::c_int::try_from(size_of::<BlkpgPartition>()).map_err(too_large)?,
        data: &raw mut partition,
    };
    // SAFETY: both structures have the kernel's layout and live through the call, which only reads them.
    check(unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG as libc::Ioctl, &raw mut argument) })?;
    Ok(())
}

/// `EXT4_IOC_RESIZE_FS` on a directory of the mounted file system.
pub fn resize_ext4(dir: &File, blocks: u64) -> io::Result<()> {
    const EXT4_IOC_RESIZE_FS: u32 = 0x4008_6610;
    let mut blocks = blocks;
    // SAFETY: the request reads one u64, and `blocks` lives through the call.
    check(unsafe { libc::ioctl(dir.as_raw_fd(), EXT4_IOC_RESIZE_FS as libc::Ioctl, &raw mut blocks) })?;
    Ok(())
}

/// Lets a process run before all that has no real-time priority; what it forks, and threads that it starts, do not inherit it.
/// The system call itself: musl's function says that it is not there.
pub fn set_realtime(pid: i32, priority: i32) -> io::Result<()> {
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the kernel reads one `struct sched_param`, an int on Linux, which lives through the call.
    let done = unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, libc::c_long::from(pid), policy, &raw const priority)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a service a session of its own inside its cgroup, open to all signals, with its own chance to be spared when memory is short.
pub fn before_exec(command: &mut std::process::Command, cgroup: Option<OwnedFd>, oom_score_adj: i16) {
    use std::os::unix::process::CommandExt;
    let score = oom_score_adj.to_string();
    // SAFETY: the closure runs between fork and exec and makes only async-signal-safe calls: setsid, sigprocmask, open, write, close.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            if let Some(cgroup) = &cgroup {
                let zero = b"0";
                libc::write(cgroup.as_raw_fd(), zero.as_ptr().cast(), 1);
            }
            let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file >= 0 {
                libc::write(file, score.as_ptr().cast(), score.len());
                libc::close(file);
            }
            Ok(())
        });
    }
}

/// An interface request: name and sixteen bytes whose meaning depends on the request.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    data: [u8; 24],
}

/// What is asked of an interface.
#[derive(Debug, Clone, Copy)]
pub enum Interface {
    Flags,
    SetFlags,
    SetAddress,
    SetMask,
    HardwareAddress,
}

fn interface_call(name: &str, what: Interface, data: [u8; 24]) -> io::Result<[u8; 24]> {
    let request = match what {
        Interface::Flags => libc::SIOCGIFFLAGS,
        Interface::SetFlags => libc::SIOCSIFFLAGS,
        Interface::SetAddress => libc::SIOCSIFADDR,
        Interface::SetMask => libc::SIOCSIFNETMASK,
        Interface::HardwareAddress => libc::SIOCGIFHWADDR,
    };
    let mut argument = InterfaceRequest { name: [0; libc::IFNAMSIZ], data };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    argument.name[..name.len()].copy_from_slice(name.as_bytes());
    let socket = datagram_socket()?;
    // SAFETY: the structure has the size and layout of `struct ifreq` on 64-bit Linux and lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), request as libc::Ioctl, &raw mut argument) })?;
    Ok(argument.data)
}

fn datagram_socket() -> io::Result<OwnedFd> {
    // SAFETY: a plain socket call; a non-negative result is a descriptor that nobody else owns.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `struct sockaddr_in` as bytes: family in host order, port 0, address.
fn address_bytes(address: [u8; 4]) -> [u8; 24] {
    let mut data = [0; 24];
    data[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    data[4..8].copy_from_slice(&address);
    data
}

pub fn interface_up(name: &str) -> io::Result<()> {
    let mut data = interface_call(name, Interface::Flags, [0; 24])?;
    let flags = u16::from_ne_bytes([data[0], data[1]]) | libc::IFF_UP as u16;
    data[..2].copy_from_slice(&flags.to_ne_bytes());
    interface_call(name, Interface::SetFlags, data).map(drop)
}

pub fn hardware_address(name: &str) -> io::Result<[u8; 6]> {
    let data = interface_call(name, Interface::HardwareAddress, [0; 24])?;
    Ok([data[2], data[3], data[4], data[5], data[6], data[7]])
}

/// Sets address and mask; an address of zeros removes it.
pub fn set_address(name: &str, address: [u8; 4], mask: [u8; 4]) -> io::Result<()> {
    interface_call(name, Interface::SetAddress, address_bytes(address))?;
    if address != [0; 4] {
        interface_call(name, Interface::SetMask, address_bytes(mask))?;
    }
    Ok(())
}

/// The default route through `gateway`.
pub fn add_default_route(gateway: [u8; 4]) -> io::Result<()> {
    let socket = datagram_socket()?;
    // SAFETY: `rtentry` is plain data for which zeros are valid.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    let family = libc::AF_INET as libc::sa_family_t;
    route.rt_dst.sa_family = family;
    route.rt_genmask.sa_family = family;
    route.rt_gateway.sa_family = family;
    for (to, byte) in route.rt_gateway.sa_data[2..6].iter_mut().zip(gateway) {
        *to = byte as _;
    }
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the structure is the kernel's own and lives through the call, which only reads it.
    match check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as libc::Ioctl, &raw mut route) }) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map(drop),
    }
}
