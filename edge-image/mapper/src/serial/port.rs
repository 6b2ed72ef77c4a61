//! A serial port: raw mode, never blocking.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::PathBuf,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::termios::{self, BaudRate, ControlFlags, FlushArg, InputFlags, SetArg, SpecialCharacterIndices},
};

use super::byid;
use crate::plan::serial::{Flow, Parity, Port, Rs485};

/// The rates that Linux knows by name.
const SPEEDS: [(u32, BaudRate); 26] = [
    (50, BaudRate::B50),
    (75, BaudRate::B75),
    (110, BaudRate::B110),
    (300, BaudRate::B300),
    (600, BaudRate::B600),
    (1200, BaudRate::B1200),
    (1800, BaudRate::B1800),
    (2400, BaudRate::B2400),
    (4800, BaudRate::B4800),
    (9600, BaudRate::B9600),
    (19200, BaudRate::B19200),
    (38400, BaudRate::B38400),
    (57600, BaudRate::B57600),
    (115_200, BaudRate::B115200),
    (230_400, BaudRate::B230400),
    (460_800, BaudRate::B460800),
    (500_000, BaudRate::B500000),
    (576_000, BaudRate::B576000),
    (921_600, BaudRate::B921600),
    (1_000_000, BaudRate::B1000000),
    (1_500_000, BaudRate::B1500000),
    (2_000_000, BaudRate::B2000000),
    (2_500_000, BaudRate::B2500000),
    (3_000_000, BaudRate::B3000000),
    (3_500_000, BaudRate::B3500000),
    (4_000_000, BaudRate::B4000000),
];

pub fn speed(baud_rate: u32) -> Option<BaudRate> {
    SPEEDS.iter().find(|(rate, _)| *rate == baud_rate).map(|(_, speed)| *speed)
}

impl Port {
    /// The device file that the path leads to: two links may lead to one port.
    pub fn device_file(&self) -> PathBuf {
        let path = byid::resolve(&self.path);
        std::fs::canonicalize(&path).unwrap_or(path)
    }

    /// The same settings, by whatever path.
    pub fn is_set_as(&self, other: &Port) -> bool {
        *self == Port { path: self.path.clone(), ..other.clone() }
    }
}

pub struct OpenPort {
    /// Locked: terminal programs look at the lock, too.
    file: Flock<File>,
    path: String,
}

impl OpenPort {
    pub fn open(port: &Port) -> Result<OpenPort, String> {
        let failed = |action: &str, error: io::Error| {
            let remedy = match error.kind() {
                ErrorKind::NotFound => {
                    "; plug the device in, or correct configData.path (mapper scan lists the ports)"
                }
                ErrorKind::PermissionDenied => "; run the mapper as root or in the group of the device file",
                _ => "",
            };
            format!("cannot {action} {}: {error}{remedy}", port.path)
        };
        let flags = libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(port.device_file());
        let file = file.map_err(|error| failed("open", error))?;
        let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
            format!(
                "{} is in use by another program or a device of another protocol; one owner per port",
                port.path
            )
        });
        let file = locked?;
        if let Some(rs485) = &port.rs485 {
            set_rs485(&file, rs485).map_err(|error| {
                format!(
                    "{} cannot switch an RS-485 transmitter: {error}; use an adapter that does it by itself and remove rs485",
                    port.path
                )
            })?;
        }
        configure(&file, port).map_err(|error| failed("set up", error.into()))?;
        Ok(OpenPort { file, path: port.path.clone() })
    }

    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Reads what is there; 0 when there is nothing. A port that is gone is an error.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        match self.file.read(buffer) {
            Ok(0) => Err(format!("{} is gone; plug the device in again", self.path)),
            Ok(len) => Ok(len),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(error) => Err(format!("cannot read {}: {error}; is the device still plugged in?", self.path)),
        }
    }

    /// Writes what fits now.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, String> {
        match self.file.write(bytes) {
            Ok(len) => Ok(len),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(error) => {
                Err(format!("cannot write to {}: {error}; is the device still plugged in?", self.path))
            }
        }
    }
}

fn configure(file: &File, port: &Port) -> nix::Result<()> {
    let mut settings = termios::tcgetattr(file)?;
    termios::cfmakeraw(&mut settings);
    let control = &mut settings.control_flags;
    control.insert(ControlFlags::CLOCAL | ControlFlags::CREAD);
    control.remove(ControlFlags::CSIZE);
    control.insert(if port.data_bits == 7 { ControlFlags::CS7 } else { ControlFlags::CS8 });
    control.set(ControlFlags::CSTOPB, port.stop_bits == 2);
    control.set(ControlFlags::PARENB, port.parity != Parity::None);
    control.set(ControlFlags::PARODD, port.parity == Parity::Odd);
    control.set(ControlFlags::CRTSCTS, port.flow == Flow::RtsCts);
    settings.input_flags.set(InputFlags::IXON | InputFlags::IXOFF, port.flow == Flow::XonXoff);
    settings.input_flags.set(InputFlags::INPCK, port.parity != Parity::None);
    settings.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    settings.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    if let Some(speed) = speed(port.baud_rate) {
        termios::cfsetspeed(&mut settings, speed)?;
    }
    termios::tcsetattr(file, SetArg::TCSANOW, &settings)?;
    // What came before we listened belongs to nobody.
    termios::tcflush(file, FlushArg::TCIFLUSH)
}

/// `struct serial_rs485` of linux/serial.h.
#[repr(C)]
#[derive(Default)]
struct SerialRs485 {
    flags: u32,
    delay_rts_before_send_ms: u32,
    delay_rts_after_send_ms: u32,
    padding: [u32; 5],
}

const ENABLED: u32 = 1;
const RTS_ON_SEND: u32 = 1 << 1;
const RTS_AFTER_SEND: u32 = 1 << 2;

nix::ioctl_write_ptr_bad!(tiocsrs485, libc::TIOCSRS485, SerialRs485);

#[allow(unsafe_code)]
fn set_rs485(file: &File, rs485: &Rs485) -> nix::Result<()> {
    let level = if rs485.active_low { RTS_AFTER_SEND } else { RTS_ON_SEND };
    let settings = SerialRs485 {
        flags: ENABLED | level,
        delay_rts_before_send_ms: rs485.delay_before_ms,
        delay_rts_after_send_ms: rs485.delay_after_ms,
        ..SerialRs485::default()
    };
    // SAFETY: the descriptor is open and the structure has the kernel's layout; the call copies it.
    unsafe { tiocsrs485(file.as_raw_fd(), &settings) }.map(drop)
}
