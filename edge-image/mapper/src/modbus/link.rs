//! The wire of a line: a serial port or a TCP connection, never blocking.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, connect, setsockopt, socket, sockopt,
};

use crate::{plan::modbus::Link, serial::port::OpenPort};

pub enum Wire {
    Port(OpenPort),
    Tcp { stream: TcpStream, address: SocketAddr, connected: bool },
}

impl Wire {
    /// A TCP connection is under way when this returns.
    pub fn open(link: &Link) -> Result<Wire, String> {
        match link {
            Link::Serial(port) => Ok(Wire::Port(OpenPort::open(port)?)),
            Link::Tcp { address, .. } => {
                let stream = start_connection(*address)
                    .map_err(|error| format!("cannot connect to {address}: {error}"))?;
                Ok(Wire::Tcp { stream, address: *address, connected: false })
            }
        }
    }

    pub fn fd(&self) -> RawFd {
        match self {
            Wire::Port(port) => port.fd(),
            Wire::Tcp { stream, .. } => stream.as_raw_fd(),
        }
    }

    pub fn is_connected(&self) -> bool {
        !matches!(self, Wire::Tcp { connected: false, .. })
    }

    /// Looks whether the connection is there by now.
    pub fn connect(&mut self) -> Result<bool, String> {
        let Wire::Tcp { stream, address, connected } = self else { return Ok(true) };
        if *connected {
            return Ok(true);
        }
        let failed = |error: std::io::Error| {
            format!("cannot connect to {address}: {error}; check ip, port and that the device is on")
        };
        if let Some(error) = stream.take_error().map_err(failed)? {
            return Err(failed(error));
        }
        *connected = stream.peer_addr().is_ok();
        Ok(*connected)
    }

    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        match self {
            Wire::Port(port) => port.read(buffer),
            Wire::Tcp { stream, address, .. } => match stream.read(buffer) {
                Ok(0) => Err(format!("{address} closed the connection")),
                Ok(len) => Ok(len),
                Err(error) if is_later(&error) => Ok(0),
                Err(error) => Err(format!("{address}: {error}")),
            },
        }
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, String> {
        match self {
            Wire::Port(port) => port.write(bytes),
            Wire::Tcp { stream, address, .. } => match stream.write(bytes) {
                Ok(len) => Ok(len),
                Err(error) if is_later(&error) => Ok(0),
                Err(error) => Err(format!("{address}: {error}")),
            },
        }
    }
}

fn is_later(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn start_connection(address: SocketAddr) -> nix::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket: OwnedFd = socket(family, SockType::Stream, flags, None)?;
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    // A gateway that was switched off says nothing; the kernel asks it.
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    let started = match address {
        SocketAddr::V4(address) => connect(socket.as_raw_fd(), &SockaddrIn::from(address)),
        SocketAddr::V6(address) => connect(socket.as_raw_fd(), &SockaddrIn6::from(address)),
    };
    match started {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error),
    }
}
