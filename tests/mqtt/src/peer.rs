//! A client on a raw socket. It does what a row of the suite tells it, right or wrong, and waits with a deadline.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::wire::{self, Connect, Packet, Prop, Publish};

/// How long an answer may take. Long for a loopback: the machine may be busy.
pub const ANSWER: Duration = Duration::from_secs(4);
/// How long is listened, after an answer to a ping, for what must not come.
const QUIET: Duration = Duration::from_millis(60);

pub struct Peer {
    socket: TcpStream,
    pub version: u8,
    input: Vec<u8>,
    /// Packets that came while another was waited for.
    waiting: VecDeque<Packet>,
    next_id: u16,
    /// The CONNACK's properties and session present.
    pub props: Vec<Prop>,
    pub session_present: bool,
}

impl Peer {
    /// A socket on which nothing was said yet.
    pub fn raw(address: SocketAddr, version: u8) -> Result<Peer> {
        let socket = TcpStream::connect_timeout(&address, ANSWER).context("connect")?;
        socket.set_nodelay(true)?;
        Ok(Peer::new(socket, version))
    }

    fn new(socket: TcpStream, version: u8) -> Peer {
        Peer {
            socket,
            version,
            input: Vec::new(),
            waiting: VecDeque::new(),
            next_id: 0,
            props: Vec::new(),
            session_present: false,
        }
    }

    /// Connects and is accepted.
    pub fn connect(address: SocketAddr, connect: &Connect) -> Result<Peer> {
        Peer::raw(address, connect.version)?.accepted(connect)
    }

    /// The same over a unix socket.
    pub fn unix(path: &Path, connect: &Connect) -> Result<Peer> {
        let socket = UnixStream::connect(path).with_context(|| format!("connect to {}", path.display()))?;
        // Reading, writing and time limits are the same system calls for both kinds.
        Peer::new(TcpStream::from(OwnedFd::from(socket)), connect.version).accepted(connect)
    }

    fn accepted(self, connect: &Connect) -> Result<Peer> {
        let mut peer = self;
        peer.send(&connect.packet())?;
        let code = peer.connack()?;
        ensure!(code == 0, "CONNECT was refused with {code:#04x}");
        Ok(peer)
    }

    /// Reads a CONNACK and gives its code.
    pub fn connack(&mut self) -> Result<u8> {
        let packet = self.packet().context("CONNACK")?;
        ensure!(packet.kind == wire::CONNACK, "{packet:?} came instead of CONNACK");
        ensure!(packet.flags == 0, "CONNACK has flags {:#x}", packet.flags);
        let mut body = wire::Reader(&packet.body);
        let flags = body.byte()?;
        ensure!(flags & 0xfe == 0, "reserved bits of CONNACK: {flags:#x}");
        self.session_present = flags == 1;
        let code = body.byte()?;
        // A server that speaks no 5 may answer in 3.1.1's form.
        self.props = if self.version == wire::V5 && !body.0.is_empty() { body.props()? } else { Vec::new() };
        ensure!(body.0.is_empty(), "CONNACK is too long: {:02x?}", packet.body);
        Ok(code)
    }

    pub fn prop(&self, id: u8) -> Option<&Prop> {
        self.props.iter().find(|prop| prop.id() == id)
    }

    pub fn prop_number(&self, id: u8) -> Option<u32> {
        self.prop(id).and_then(Prop::number)
    }

    pub fn send(&mut self, packet: &Packet) -> Result<()> {
        self.send_bytes(&packet.bytes())
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.socket.write_all(bytes).context("write")
    }

    pub fn id(&mut self) -> u16 {
        self.next_id += 1;
        self.next_id
    }

    /// The next packet.
    pub fn packet(&mut self) -> Result<Packet> {
        if let Some(packet) = self.waiting.pop_front() {
            return Ok(packet);
        }
        self.read(ANSWER)?.with_context(|| format!("nothing came within {} s", ANSWER.as_secs()))
    }

    /// The next packet of this kind; others wait.
    pub fn wait(&mut self, kind: u8) -> Result<Packet> {
        self.wait_within(kind, ANSWER)
    }

    pub fn wait_within(&mut self, kind: u8, within: Duration) -> Result<Packet> {
        if let Some(at) = self.waiting.iter().position(|packet| packet.kind == kind) {
            return Ok(self.waiting.remove(at).expect("the position was just found"));
        }
        let until = Instant::now() + within;
        loop {
            let Some(packet) = self.read(until.saturating_duration_since(Instant::now()))? else {
                bail!("no packet of kind {kind} within {} s; what came: {:?}", within.as_secs(), self.waiting)
            };
            if packet.kind == kind {
                return Ok(packet);
            }
            self.waiting.push_back(packet);
        }
    }

    /// Something that answers this packet id.
    pub fn wait_ack(&mut self, kind: u8, id: u16) -> Result<Packet> {
        let packet = self.wait(kind)?;
        ensure!(
            packet.body.get(..2) == Some(&id.to_be_bytes()),
            "kind {kind} for {id}: {:02x?}",
            packet.body
        );
        Ok(packet)
    }

    /// From the socket: `None` when the time is over.
    fn read(&mut self, within: Duration) -> Result<Option<Packet>> {
        let until = Instant::now() + within;
        loop {
            if let Some((packet, len)) = Packet::parse(&self.input)? {
                self.input.drain(..len);
                return Ok(Some(packet));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let mut buffer = [0; 65536];
            match self.socket.read(&mut buffer) {
                Ok(0) => bail!("the broker closed the connection"),
                Ok(len) => self.input.extend(&buffer[..len]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => bail!("the broker closed the connection ({error})"),
            }
        }
    }

    /// The broker must close the connection; what it says before is given back.
    pub fn closed(&mut self) -> Result<Vec<Packet>> {
        self.closed_within(ANSWER)
    }

    pub fn closed_within(&mut self, within: Duration) -> Result<Vec<Packet>> {
        let until = Instant::now() + within;
        let mut said: Vec<Packet> = self.waiting.drain(..).collect();
        loop {
            match self.read(until.saturating_duration_since(Instant::now())) {
                Ok(Some(packet)) => said.push(packet),
                Ok(None) => bail!("the connection is still open; what came: {said:?}"),
                Err(_) => return Ok(said),
            }
        }
    }

    /// Closed, and before it at most a DISCONNECT (or CONNACK) that says `reason` or another error: MQTT 5 lets a server choose.
    pub fn closed_with_error(&mut self) -> Result<()> {
        for packet in self.closed()? {
            let code = match packet.kind {
                wire::DISCONNECT => packet.body.first().copied().unwrap_or(0),
                wire::CONNACK => packet.body.get(1).copied().unwrap_or(0),
                _ => bail!("{packet:?} before the connection was closed"),
            };
            let least = if self.version == wire::V5 { 0x80 } else { 1 };
            ensure!(code >= least, "closed with {packet:?}, which is no error");
            ensure!(self.version == wire::V5 || packet.kind != wire::DISCONNECT, "a DISCONNECT in 3.1.1");
        }
        Ok(())
    }

    /// Nothing has come and nothing comes: the next thing is the answer to a ping.
    pub fn quiet(&mut self) -> Result<()> {
        self.send(&wire::empty(wire::PINGREQ))?;
        let packet = self.packet()?;
        ensure!(packet == wire::empty(wire::PINGRESP), "{packet:?} came where nothing should");
        match self.read(QUIET)? {
            None => Ok(()),
            Some(packet) => bail!("{packet:?} came where nothing should"),
        }
    }

    /// Still there: a ping is answered, whatever else comes.
    pub fn alive(&mut self) -> Result<()> {
        self.send(&wire::empty(wire::PINGREQ))?;
        self.wait(wire::PINGRESP).map(drop)
    }

    /// Subscribes and gives the codes.
    pub fn subscribe_all(&mut self, list: &[Prop], filters: &[(&str, u8)]) -> Result<Vec<u8>> {
        let id = self.id();
        self.send(&wire::subscribe(self.version, id, list, filters))?;
        let packet = self.wait_ack(wire::SUBACK, id)?;
        let mut body = wire::Reader(&packet.body[2..]);
        if self.version == wire::V5 {
            body.props()?;
        }
        Ok(body.0.to_vec())
    }

    /// Subscribes; it must be granted as asked.
    pub fn subscribe(&mut self, filter: &str, options: u8) -> Result<()> {
        let codes = self.subscribe_all(&[], &[(filter, options)])?;
        ensure!(codes == [options & 3], "subscription to {filter} with {options:#x} got {codes:02x?}");
        Ok(())
    }

    /// Unsubscribes and gives the codes (none in 3.1.1).
    pub fn unsubscribe(&mut self, filters: &[&str]) -> Result<Vec<u8>> {
        let id = self.id();
        self.send(&wire::unsubscribe(self.version, id, filters))?;
        let packet = self.wait_ack(wire::UNSUBACK, id)?;
        let mut body = wire::Reader(&packet.body[2..]);
        if self.version == wire::V5 {
            body.props()?;
        }
        Ok(body.0.to_vec())
    }

    /// Publishes and finishes the handshake of its QoS.
    pub fn publish(&mut self, topic: &str, payload: &str, qos: u8, retain: bool) -> Result<()> {
        let publish =
            Publish { topic: topic.into(), payload: payload.into(), qos, retain, ..Publish::default() };
        self.publish_with(publish)
    }

    pub fn publish_with(&mut self, mut publish: Publish) -> Result<()> {
        if publish.qos > 0 {
            publish.id = self.id();
        }
        self.send(&publish.packet(self.version))?;
        match publish.qos {
            1 => self.acked(wire::PUBACK, publish.id)?,
            2 => {
                self.acked(wire::PUBREC, publish.id)?;
                self.send(&wire::ack(wire::PUBREL, publish.id))?;
                self.acked(wire::PUBCOMP, publish.id)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// QoS 1 with another bound for the answer: a broker may make a publisher wait.
    pub fn publish_patiently(&mut self, topic: &str, payload: &str, within: Duration) -> Result<()> {
        let publish = Publish {
            topic: topic.into(),
            payload: payload.into(),
            qos: 1,
            id: self.id(),
            ..Publish::default()
        };
        self.send(&publish.packet(self.version))?;
        let packet = self.read(within)?.context("no PUBACK")?;
        ensure!(packet.kind == wire::PUBACK, "{packet:?} instead of PUBACK");
        Ok(())
    }

    /// Whether somebody subscribes to the topic: MQTT 5 tells the publisher when nobody does (0x10).
    pub fn has_reader(&mut self, topic: &str) -> Result<bool> {
        let publish = Publish { topic: topic.into(), qos: 1, id: self.id(), ..Publish::default() };
        self.send(&publish.packet(self.version))?;
        let packet = self.wait_ack(wire::PUBACK, publish.id)?;
        Ok(packet.body.get(2).copied().unwrap_or(0) == 0)
    }

    fn acked(&mut self, kind: u8, id: u16) -> Result<()> {
        let packet = self.wait_ack(kind, id)?;
        let reason = packet.body.get(2).copied().unwrap_or(0);
        ensure!(reason < 0x80, "packet {id} was refused with {reason:#04x}");
        Ok(())
    }

    /// The next message, not acknowledged.
    pub fn take(&mut self) -> Result<Publish> {
        let packet = self.wait(wire::PUBLISH)?;
        Publish::parse(&packet, self.version)
    }

    /// The next message, acknowledged to the end.
    pub fn message(&mut self) -> Result<Publish> {
        let publish = self.take()?;
        self.acknowledge(&publish)?;
        Ok(publish)
    }

    /// A message that has come already while something else was waited for, acknowledged.
    pub fn waiting_message(&mut self) -> Result<Option<Publish>> {
        let there = self.waiting.iter().any(|packet| packet.kind == wire::PUBLISH);
        if there { self.message().map(Some) } else { Ok(None) }
    }

    pub fn acknowledge(&mut self, publish: &Publish) -> Result<()> {
        match publish.qos {
            1 => self.send(&wire::ack(wire::PUBACK, publish.id)),
            2 => {
                self.send(&wire::ack(wire::PUBREC, publish.id))?;
                self.wait_ack(wire::PUBREL, publish.id)?;
                self.send(&wire::ack(wire::PUBCOMP, publish.id))
            }
            _ => Ok(()),
        }
    }

    /// A message that must be this one.
    pub fn expect(&mut self, topic: &str, payload: &str) -> Result<Publish> {
        let publish = self.message()?;
        ensure!(
            publish.topic == topic && publish.text() == payload,
            "{topic} {payload:?} was expected, {} {:?} came",
            publish.topic,
            publish.text()
        );
        Ok(publish)
    }

    /// Says good-bye and waits until the broker has closed.
    pub fn disconnect(mut self) -> Result<()> {
        self.send(&wire::empty(wire::DISCONNECT))?;
        self.closed().map(drop)
    }

    pub fn into_socket(self) -> TcpStream {
        self.socket
    }

    /// As a cable that is pulled: the broker learns it by a reset.
    pub fn cut(self) {
        let _ = nix::sys::socket::setsockopt(
            &self.socket,
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger { l_onoff: 1, l_linger: 0 },
        );
    }
}
