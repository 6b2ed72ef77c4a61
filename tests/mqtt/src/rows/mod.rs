//! The rows of the suite: a statement of the specifications, in our words, and what a broker must do over a socket.
//!
//! `v4` and `v5` are the numbers of the normative statements of MQTT 3.1.1 and 5.0 (`MQTT-` left out), or a section (`§`) where the
//! text has no number; empty: not in that version. A row runs once for each version that it names.

pub mod connect;
pub mod flow;
pub mod format;
pub mod properties;
pub mod qos;
pub mod retained;
pub mod session;
pub mod subscribe;
pub mod topics;
pub mod wills;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, bail, ensure};

use crate::{
    brokers::Broker,
    peer::Peer,
    wire::{Connect, Prop, SESSION_EXPIRY, V4, V5},
};

pub struct Row {
    pub v4: &'static str,
    pub v5: &'static str,
    pub says: &'static str,
    pub run: fn(&Case<'_>) -> Result<()>,
}

/// In the order of the specification, roughly.
pub fn all() -> Vec<&'static Row> {
    let chapters = [
        format::ROWS,
        connect::ROWS,
        session::ROWS,
        wills::ROWS,
        retained::ROWS,
        qos::ROWS,
        subscribe::ROWS,
        topics::ROWS,
        properties::ROWS,
        flow::ROWS,
    ];
    chapters.into_iter().flatten().collect()
}

/// One run of a row: its broker, version, and names of its own, for rows run side by side.
pub struct Case<'a> {
    pub broker: &'a Broker,
    /// The same program, but it wants a user name.
    pub locked: &'a Broker,
    pub version: u8,
    pub tag: String,
}

impl Case<'_> {
    pub fn is_v5(&self) -> bool {
        self.version == V5
    }

    pub fn address(&self) -> SocketAddr {
        self.broker.address(self.version)
    }

    pub fn topic(&self, tail: &str) -> String {
        format!("{}/{tail}", self.tag)
    }

    /// A CONNECT with a clean session.
    pub fn clean(&self, name: &str) -> Connect {
        Connect::new(self.version, &format!("{}{name}", self.tag))
    }

    /// A CONNECT that keeps its session.
    pub fn kept(&self, name: &str) -> Connect {
        let mut connect = Connect { clean: false, ..self.clean(name) };
        if self.is_v5() {
            connect.props.push(Prop::Four(SESSION_EXPIRY, 600));
        }
        connect
    }

    pub fn open(&self, connect: &Connect) -> Result<Peer> {
        Peer::connect(self.address(), connect)
    }

    /// Connected, with a clean session.
    pub fn peer(&self, name: &str) -> Result<Peer> {
        self.open(&self.clean(name))
    }

    /// Connected and subscribed.
    pub fn reader(&self, name: &str, filter: &str, options: u8) -> Result<Peer> {
        let mut peer = self.peer(name)?;
        peer.subscribe(filter, options)?;
        Ok(peer)
    }

    pub fn raw(&self) -> Result<Peer> {
        Peer::raw(self.address(), self.version)
    }

    /// These bytes, sent on an accepted connection, must end it.
    pub fn is_fatal(&self, bytes: &[u8]) -> Result<()> {
        let mut peer = self.peer("bad")?;
        // A broker may close before all is written.
        let _ = peer.send_bytes(bytes);
        peer.closed_with_error()
    }

    /// A CONNECT that must not be accepted; the connection ends.
    pub fn is_refused(&self, connect: &Connect) -> Result<()> {
        let mut peer = self.raw()?;
        let _ = peer.send(&connect.packet());
        peer.closed_with_error()
    }

    /// Cut, and known to be cut by the broker: another connection of the same client has been opened and gone since.
    pub fn gone(&self, peer: Peer) {
        peer.cut();
        // The reset is on its way through the loopback; nothing tells when the broker has read it.
        std::thread::sleep(Duration::from_millis(150));
    }
}

pub fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, wanted: T) -> Result<()> {
    ensure!(got == wanted, "{what}: {got:?} instead of {wanted:?}");
    Ok(())
}

/// The number of a version as people write it.
pub fn version_name(version: u8) -> &'static str {
    if version == V4 { "3.1.1" } else { "5" }
}

/// Runs each and names the one that failed.
pub fn each<T: std::fmt::Debug>(
    list: impl IntoIterator<Item = T>,
    mut run: impl FnMut(&T) -> Result<()>,
) -> Result<()> {
    for item in list {
        if let Err(error) = run(&item) {
            bail!("{item:?}: {error:#}");
        }
    }
    Ok(())
}
