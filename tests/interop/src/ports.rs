//! Ports of the loopback that were free a moment ago, for programs that cannot choose one themselves and tell which.

use std::net::TcpListener;

use anyhow::{Context, Result};

/// `N` different ports. Another program may take one before the caller does; a start that fails for it is tried again with others.
pub fn free<const N: usize>() -> Result<[u16; N]> {
    let mut taken = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port on the loopback")?;
        *port = listener.local_addr()?.port();
        // All at once, so that they differ.
        taken.push(listener);
    }
    Ok(ports)
}
