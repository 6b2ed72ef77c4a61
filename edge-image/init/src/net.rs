//! The one interface that leads to the cloud: found, brought up, configured by DHCP or by the provisioning file.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::dhcp::{Action, Client};
use crate::provision::{Network, mask};
use crate::status::Problem;
use crate::{clock, say, sys};

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
    has_cable: bool,
    /// Why there is no network, or none any more.
    pub problem: Option<Problem>,
}

/// Interfaces on USB take some seconds to appear; after this time their absence is a problem.
const INTERFACE_WITHIN: Duration = Duration::from_secs(20);

impl Net {
    pub fn new(wanted: Option<Network>, host: &str) -> Net {
        let _ = sys::interface_up("lo");
        let _ = fs::write(RESOLV, "");
        Net {
            wanted,
            host: host.to_owned(),
            interface: None,
            dhcp: None,
            address: None,
            ntp: Vec::new(),
            has_cable: true,
            problem: None,
        }
    }

    /// Something to read from when DHCP is at work.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.dhcp.as_ref().map(|(_, socket)| socket.as_fd())
    }

    /// Looks for an interface until there is one; then keeps its lease.
    pub fn tick(&mut self, now: Instant) {
        match self.interface.clone() {
            None => self.begin(),
            Some(name) => self.watch_cable(&name),
        }
        if let Some((client, _)) = &mut self.dhcp {
            let actions = client.tick(now);
            self.act(actions);
        }
    }

    fn watch_cable(&mut self, name: &str) {
        let has_cable = has_carrier(name);
        if has_cable == std::mem::replace(&mut self.has_cable, has_cable) {
            return;
        }
        if has_cable {
            say!("network {name}: cable plugged in");
            self.problem = None;
            if let Some((client, _)) = &mut self.dhcp {
                client.replugged();
            }
        } else {
            self.failed(format!("network {name}: no cable"), "plug in the network cable");
        }
    }

    fn failed(&mut self, error: String, remedy: &str) {
        let problem = Problem { error, remedy: remedy.to_owned() };
        if self.problem.as_ref() != Some(&problem) {
            say!("{}; {remedy}", problem.error);
            self.problem = Some(problem);
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
        let Some(name) = choose(named.as_deref()) else {
            if clock::uptime() > INTERFACE_WITHIN {
                let there = interfaces().join(", ");
                let error = match &named {
                    Some(name) => format!("network: there is no interface {name}, only: {there}"),
                    None if there.is_empty() => "network: there is no interface".to_owned(),
                    None => format!("network: no cable in {there}"),
                };
                self.failed(
                    error,
                    "plug in the network cable, or correct [network] interface in provision.toml",
                );
            }
            return;
        };
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
                    Err(error) => self.failed(
                        format!("network {name}: cannot set {}/{prefix}: {error}", dotted(address)),
                        "check [network] in provision.toml",
                    ),
                }
            }
            None => match dhcp(&name, &self.host) {
                Ok(dhcp) => self.dhcp = Some(dhcp),
                Err(error) => {
                    self.failed(
                        format!("network {name}: cannot ask for an address: {error}"),
                        "set a static address in provision.toml",
                    );
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
                    say!("network {name}: the DHCP server took the address back");
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
        self.problem = None;
        let servers: String = dns.iter().map(|server| format!("nameserver {}\n", dotted(*server))).collect();
        let _ = fs::write(RESOLV, servers);
    }
}

pub fn dotted(address: [u8; 4]) -> String {
    let [a, b, c, d] = address;
    format!("{a}.{b}.{c}.{d}")
}

/// Real interfaces, by name: no loopback, bridges or ends of containers.
fn interfaces() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    let real = entries.flatten().filter(|entry| entry.path().join("device").exists());
    let mut names: Vec<String> = real.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn has_carrier(name: &str) -> bool {
    fs::read_to_string(format!("/sys/class/net/{name}/carrier")).is_ok_and(|text| text.trim() == "1")
}

/// The interface named, or the first real Ethernet-like one, preferring one that has a link.
fn choose(named: Option<&str>) -> Option<String> {
    let mut names = interfaces();
    names.retain(|name| named.is_none_or(|named| named == name));
    for name in &names {
        // A cable shows only on an interface that is up.
        let _ = sys::interface_up(name);
    }
    names.iter().find(|name| has_carrier(name)).or(names.first().filter(|_| named.is_some())).cloned()
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
    sys::hardware_address(interfaces().first()?).ok()
}
