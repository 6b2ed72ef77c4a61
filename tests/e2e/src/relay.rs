//! A way from the node's network to ports of this machine's loopback: the uplink of a node that has a network of its own.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};
use nix::{
    sched::{CloneFlags, setns},
    sys::socket,
};

/// Ends with its value; connections that are open then go on until one side ends them.
pub struct Relay {
    inside: u32,
    listeners: Vec<Arc<TcpListener>>,
}

impl Relay {
    /// Listens on 127.0.0.1 in the network namespace of process `inside`, on the same port numbers.
    pub fn start(inside: u32, ports: &[u16]) -> Result<Relay> {
        let mut listeners = Vec::new();
        for port in ports.iter().copied() {
            let namespace = File::open(format!("/proc/{inside}/ns/net"))?;
            // A thread has its own network namespace until it ends; the socket stays in it.
            let bind = move || -> Result<TcpListener> {
                setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
                TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("bind port {port} inside"))
            };
            let bound =
                thread::spawn(bind).join().map_err(|_| anyhow::anyhow!("the binding thread panicked"))?;
            let listener = Arc::new(bound?);
            listeners.push(listener.clone());
            thread::spawn(move || {
                while let Ok((inner, _)) = listener.accept() {
                    // Nothing listens while the cloud is down: the node sees its connection end.
                    if let Ok(outer) = TcpStream::connect(("127.0.0.1", port)) {
                        pipe(inner, outer);
                    }
                }
            });
        }
        Ok(Relay { inside, listeners })
    }

    /// Whose network it is in.
    pub fn inside(&self) -> u32 {
        self.inside
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // What waits in accept ends with an error.
            let _ = socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Both);
        }
    }
}

fn pipe(inner: TcpStream, outer: TcpStream) {
    // It must not add delays of its own.
    let _ = (inner.set_nodelay(true), outer.set_nodelay(true));
    let (Ok(inner_too), Ok(outer_too)) = (inner.try_clone(), outer.try_clone()) else { return };
    thread::spawn(move || copy(inner, outer));
    thread::spawn(move || copy(outer_too, inner_too));
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    // A killed end must not leave the other waiting for what it has to say.
    let _ = from.shutdown(Shutdown::Read);
}
