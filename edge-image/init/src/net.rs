//! The one interface that leads to the cloud: found, brought up, configured by DHCP or by the provisioning file.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::sys::socket::{setsockopt, sockopt};

use crate::dhcp::{Action, Client};
use crate::provision::{Network, mask};
use crate::{say, sys};

const RESOLV: &str = "/run/resolv.conf";

#[derive(Debug)]
pub struct Net {
    wanted: Option<Network>,
    host: String,
    interface: Option<String>,
    dhcp: Option<(Client, UdpSocket)>,
    /// What the device is reached by, as `10.0.2.15/24`.
    pub address: Option<String>,
    /// Time servers that DHCP named.
    pub ntp: Vec<String>,
}

impl Net {
    pub fn new(wanted: Option<Network>, host: &str) -> Net {
        let _ = sys::interface_up("lo");
        let _ = fs::write(RESOLV, "");
        Net { wanted, host: host.to_owned(), interface: None, dhcp: None, address: None, ntp: Vec::new() }
    }

    /// Something to read from when DHCP is at work.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.dhcp.as_ref().map(|(_, socket)| socket.as_fd())
    }

    /// Looks for an interface until there is one; then keeps its lease.
    pub fn tick(&mut self, now: Instant) {
        if self.interface.is_none() {
            self.begin();
        }
        if let Some((client, _)) = &mut self.dhcp {
            let actions = client.tick(now);
            self.act(actions);
        }
    }

    /// Reads what came for the DHCP client.
    pub fn receive(&mut self, now: Instant) {
        let mut packet = [0; 1500];
        while let Some((client, socket)) = &mut self.dhcp {
            let Ok(n) = socket.recv(&mut packet) else { return };
            let actions = client.receive(now, &packet[..n]);
            self.act(actions);
        }
    }

    fn begin(&mut self) {
        let named = self.wanted.as_ref().and_then(|network| network.interface.clone());
        let Some(name) = choose(named.as_deref()) else { return };
        let fixed = self
            .wanted
            .as_ref()
            .and_then(|network| network.address.map(|address| (address, network.clone())));
        match fixed {
            Some(((address, prefix), network)) => {
                let done = sys::set_address(&name, address, mask(prefix).to_be_bytes())
                    .and_then(|()| network.gateway.map_or(Ok(()), sys::add_default_route));
                match done {
                    Ok(()) => self.configured(&name, address, mask(prefix).to_be_bytes(), &network.dns),
                    Err(error) => say!(
                        "network {name}: cannot set {}/{prefix}: {error}; check [network] in provision.toml",
                        dotted(address)
                    ),
                }
            }
            None => match dhcp(&name, &self.host) {
                Ok(dhcp) => self.dhcp = Some(dhcp),
                Err(error) => {
                    say!("network {name}: cannot ask for an address: {error}");
                    return;
                }
            },
        }
        self.interface = Some(name);
    }

    fn act(&mut self, actions: Vec<Action>) {
        let Some(name) = self.interface.clone() else { return };
        for action in actions {
            match action {
                Action::Send(packet) => {
                    if let Some((_, socket)) = &self.dhcp {
                        // A cable that is out is no error; the next try comes.
                        let _ = socket.send_to(&packet, "255.255.255.255:67");
                    }
                }
                Action::Configure(lease) => {
                    let done = sys::set_address(&name, lease.address, lease.mask)
                        .and_then(|()| lease.gateway.map_or(Ok(()), sys::add_default_route));
                    if let Err(error) = done {
                        say!("network {name}: cannot use the address {}: {error}", dotted(lease.address));
                        continue;
                    }
                    self.ntp = lease.ntp.iter().map(|server| dotted(*server)).collect();
                    self.configured(&name, lease.address, lease.mask, &lease.dns);
                }
                Action::Deconfigure => {
                    say!("network {name}: the DHCP lease ended");
                    let _ = sys::set_address(&name, [0; 4], [0; 4]);
                    self.address = None;
                }
            }
        }
    }

    fn configured(&mut self, name: &str, address: [u8; 4], mask: [u8; 4], dns: &[[u8; 4]]) {
        let text = format!("{}/{}", dotted(address), u32::from_be_bytes(mask).count_ones());
        if self.address.as_ref() != Some(&text) {
            say!("network {name}: {text}");
        }
        self.address = Some(text);
        let servers: String = dns.iter().map(|server| format!("nameserver {}\n", dotted(*server))).collect();
        let _ = fs::write(RESOLV, servers);
    }
}

pub fn dotted(address: [u8; 4]) -> String {
    let [a, b, c, d] = address;
    format!("{a}.{b}.{c}.{d}")
}

/// The interface named, or the first real Ethernet-like one, preferring one that has a link.
fn choose(named: Option<&str>) -> Option<String> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")
        .ok()?
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| named.is_none_or(|named| named == name))
        .collect();
    names.sort();
    for name in &names {
        let _ = sys::interface_up(name);
    }
    let with_link = |name: &&String| {
        fs::read_to_string(format!("/sys/class/net/{name}/carrier")).is_ok_and(|text| text.trim() == "1")
    };
    names.iter().find(with_link).or(names.first().filter(|_| named.is_some())).cloned()
}

fn dhcp(name: &str, host: &str) -> io::Result<(Client, UdpSocket)> {
    let mac = sys::hardware_address(name)?;
    let socket = UdpSocket::bind("0.0.0.0:68")?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::BindToDevice, &name.into())?;
    let xid = u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]]) ^ (crate::clock::now() as u32);
    Ok((Client::new(mac, xid, host), socket))
}

/// The address of the first real interface, for names.
pub fn first_mac() -> Option<[u8; 6]> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")
        .ok()?
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    sys::hardware_address(names.first()?).ok()
}
