//! `provision.toml` on the boot partition: how a device joins, written by a person or a flashing tool on any computer.
//!
//! Whatever is wrong with the file ends in one line that names the place and the remedy. The join token in it is a secret that lies
//! on a FAT partition anybody can read; once used, it is overwritten in place ([`blank_token`]).

mod token;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

pub use token::blank_token;

use crate::limits::{DNS_SERVERS_MAX, LABELS_MAX, NTP_SERVERS_MAX};

pub const FILE: &str = "provision.toml";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provision {
    pub cloud: String,
    pub join_port: Option<u16>,
    pub token: String,
    pub node_name: String,
    pub labels: BTreeMap<String, String>,
    pub ntp: Vec<String>,
    pub network: Option<Network>,
    /// Home Assistant's discovery prefix.
    pub discovery_prefix: Option<String>,
    /// Pins come before pods: the programs between an edge and a message run at real-time priority.
    pub realtime: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub interface: Option<String>,
    /// Address and prefix length; without them, DHCP.
    pub address: Option<([u8; 4], u8)>,
    pub gateway: Option<[u8; 4]>,
    pub dns: Vec<[u8; 4]>,
}

type Text = Spanned<String>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawFile {
    cloud: Option<Text>,
    join_port: Option<Spanned<i64>>,
    token: Option<Text>,
    /// SHA-256 of the cloud's CA certificate, as its join tokens begin with.
    ca_hash: Option<Text>,
    node_name: String,
    labels: BTreeMap<String, Text>,
    ntp: Vec<Text>,
    network: Option<RawNetwork>,
    discovery_prefix: Option<Text>,
    realtime: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawNetwork {
    interface: Option<String>,
    address: Option<Text>,
    gateway: Option<Text>,
    dns: Vec<Text>,
}

/// A mistake in the file, as a person can mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("provision.toml{}: {what}; {remedy}", place(*.line))]
pub struct Mistake {
    pub line: Option<usize>,
    pub what: String,
    pub remedy: String,
}

fn place(line: Option<usize>) -> String {
    line.map(|line| format!(" line {line}")).unwrap_or_default()
}

impl Mistake {
    /// Without the remedy, for where that stands on a line of its own.
    pub fn text(&self) -> String {
        format!("{FILE}{}: {}", place(self.line), self.what)
    }
}

/// The text being read, for places in it.
#[derive(Clone, Copy)]
struct Source<'a>(&'a str);

impl Source<'_> {
    fn line(self, at: usize) -> usize {
        self.0.as_bytes()[..at.min(self.0.len())].iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn mistake(self, span: Range<usize>, what: impl Into<String>, remedy: impl Into<String>) -> Mistake {
        Mistake { line: Some(self.line(span.start)), what: what.into(), remedy: remedy.into() }
    }
}

/// Reads the file's bytes. Never panics, whatever is in them. An empty file says nothing, and that is no mistake.
pub fn parse(bytes: &[u8]) -> Result<Provision, Mistake> {
    let text = decode(bytes)?;
    let source = Source(text);
    let raw: RawFile = toml::from_str(text).map_err(|error| syntax(source, &error))?;
    let token = raw.token.as_ref().map(|token| token.get_ref().trim().to_owned()).unwrap_or_default();
    if let Some(place) = &raw.token
        && token.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        let remedy = "copy the whole token from `cloudcore token` again, on one line";
        return Err(source.mistake(place.span(), "the token has a space in it", remedy));
    }
    let token = with_ca_hash(source, token, raw.ca_hash.as_ref())?;
    let cloud = raw.cloud.as_ref().map(|cloud| cloud.get_ref().clone()).unwrap_or_default();
    match &raw.cloud {
        Some(place) if !cloud.is_empty() => check_cloud(&cloud).map_err(|what| {
            source.mistake(place.span(), what, "write it as \"HOST:10000\", as in \"192.168.1.10:10000\"")
        })?,
        _ if !token.is_empty() => {
            let remedy = "add cloud = \"HOST:10000\", the address of cloudcore".to_owned();
            return Err(Mistake { line: None, what: "there is a token but no cloud".to_owned(), remedy });
        }
        _ => {}
    }
    Ok(Provision {
        cloud,
        join_port: raw.join_port.map(|port| check_port(source, &port)).transpose()?,
        token,
        node_name: raw.node_name.trim().to_owned(),
        labels: check_labels(source, raw.labels)?,
        ntp: check_ntp(source, raw.ntp)?,
        network: raw.network.map(|network| check_network(source, network)).transpose()?,
        discovery_prefix: raw.discovery_prefix.map(|prefix| check_prefix(source, prefix)).transpose()?,
        realtime: raw.realtime,
    })
}

/// A fleet's cards may carry the cloud's CA hash for good and get only the rest of the token: then both are joined. Where the token has
/// a hash of its own, they must be the same.
fn with_ca_hash(source: Source<'_>, token: String, hash: Option<&Text>) -> Result<String, Mistake> {
    let Some(text) = hash.filter(|text| !text.get_ref().is_empty()) else { return Ok(token) };
    let hash = text.get_ref().to_ascii_lowercase();
    if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let remedy = "copy the 64 letters and digits before the first dot of a join token";
        return Err(source.mistake(text.span(), "ca_hash is not a SHA-256 in hex", remedy));
    }
    match token.split_once('.') {
        Some((own, _)) if token.matches('.').count() == 3 && own != hash => {
            let remedy = "make a token on the cloud that you mean, or correct ca_hash";
            Err(source.mistake(
                text.span(),
                "the token is of a cloud whose CA has another hash than ca_hash",
                remedy,
            ))
        }
        Some(_) if token.matches('.').count() == 2 => Ok(format!("{hash}.{token}")),
        _ => Ok(token),
    }
}

/// A byte order mark and Windows line ends are what editors there leave; zeros are what a card leaves that was pulled out too early.
fn decode(bytes: &[u8]) -> Result<&str, Mistake> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let remedy = "write it again from provision-example.toml, as plain text (UTF-8)";
    let mistake = |line, what: &str| Mistake { line, what: what.to_owned(), remedy: remedy.to_owned() };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        mistake(Some(line), "not a text file (it is cut off or damaged)")
    })?;
    if text.contains('\0') {
        return Err(mistake(None, "not a text file (it holds zero bytes)"));
    }
    Ok(text)
}

fn syntax(source: Source<'_>, error: &toml::de::Error) -> Mistake {
    let at = error.span().map_or(0, |span| span.start);
    let message = error.message().lines().collect::<Vec<_>>().join(", ");
    // An error at the very end is what a file looks like that was cut off.
    let remedy = if at >= source.0.trim_end().len() && !source.0.ends_with('\n') {
        "the file seems to be cut off: copy it to the boot partition again and eject that before unplugging"
    } else if message.contains("unknown field") {
        "correct or remove this key; provision-example.toml shows every key"
    } else {
        "correct that line; provision-example.toml shows every key, and texts stand in double quotes"
    };
    let what = message.replace("unknown field", "unknown key");
    source.mistake(at..at, what, remedy)
}

fn check_cloud(cloud: &str) -> Result<(), String> {
    if cloud.contains('/') {
        return Err(format!("cloud = {cloud:?} is a URL, not an address"));
    }
    let (host, port) = cloud.rsplit_once(':').ok_or_else(|| format!("cloud = {cloud:?} has no port"))?;
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_name = |host: &str| host.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
    let is_host = inner.map_or_else(|| is_name(host), |host| host.parse::<Ipv6Addr>().is_ok());
    if host.is_empty() || !is_host {
        return Err(format!("cloud = {cloud:?} does not begin with a host name or address"));
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(()),
        _ => Err(format!("cloud = {cloud:?} has no port that is a number up to 65535")),
    }
}

fn check_port(source: Source<'_>, port: &Spanned<i64>) -> Result<u16, Mistake> {
    u16::try_from(*port.get_ref()).ok().filter(|port| *port > 0).ok_or_else(|| {
        let what = format!("join_port = {} is not a port", port.get_ref());
        source.mistake(port.span(), what, "write a number from 1 to 65535; cloudcore's default is 10002")
    })
}

fn check_labels(
    source: Source<'_>,
    raw: BTreeMap<String, Text>,
) -> Result<BTreeMap<String, String>, Mistake> {
    let is_word = |word: &str| {
        word.len() <= 63
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let mut labels = BTreeMap::new();
    for (key, value) in raw {
        let (prefix, name) = key.split_once('/').unwrap_or(("x", &key));
        let key_is_good = is_word(name) && prefix.len() <= 253 && prefix.split('.').all(is_word);
        if !key_is_good || !(value.get_ref().is_empty() || is_word(value.get_ref())) {
            let what = format!("label {key:?} = {:?}", value.get_ref());
            let remedy =
                "labels are letters, digits, '-', '_' and '.', at most 63 characters, as in Kubernetes";
            return Err(source.mistake(value.span(), what, remedy));
        }
        if labels.len() == LABELS_MAX {
            return Err(source.mistake(
                value.span(),
                "too many labels",
                format!("at most {LABELS_MAX} are taken"),
            ));
        }
        labels.insert(key, value.into_inner());
    }
    Ok(labels)
}

fn check_prefix(source: Source<'_>, prefix: Text) -> Result<String, Mistake> {
    let text = prefix.get_ref();
    let is_good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '/';
    if text.chars().all(is_good) && !text.starts_with('/') && !text.ends_with('/') {
        return Ok(prefix.into_inner());
    }
    let what = format!("discovery_prefix = {text:?} is not the begin of a topic");
    Err(source.mistake(prefix.span(), what, "write \"homeassistant\", which is Home Assistant's own"))
}

fn check_ntp(source: Source<'_>, raw: Vec<Text>) -> Result<Vec<String>, Mistake> {
    let mut servers = Vec::new();
    for server in raw {
        let name = server.get_ref();
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-.:[]".contains(c)) {
            let what = format!("ntp server {name:?} is not a name or address");
            return Err(source.mistake(server.span(), what, "write host names or addresses"));
        }
        if servers.len() == NTP_SERVERS_MAX {
            let remedy = format!("at most {NTP_SERVERS_MAX} are taken");
            return Err(source.mistake(server.span(), "too many ntp servers", remedy));
        }
        servers.push(server.into_inner());
    }
    Ok(servers)
}

fn check_network(source: Source<'_>, raw: RawNetwork) -> Result<Network, Mistake> {
    let interface = raw.interface.filter(|name| !name.is_empty());
    let one = |key: &str, text: &Text| match text.get_ref().parse::<Ipv4Addr>() {
        Ok(ip) => Ok(ip.octets()),
        Err(_) => {
            let what = format!("network.{key} = {:?} is not an IPv4 address", text.get_ref());
            Err(source.mistake(text.span(), what, "write it as \"192.168.1.1\""))
        }
    };
    let gateway = raw.gateway.as_ref().map(|text| one("gateway", text)).transpose()?;
    let dns: Vec<[u8; 4]> =
        raw.dns.iter().take(DNS_SERVERS_MAX).map(|text| one("dns", text)).collect::<Result<_, _>>()?;
    let Some(text) = &raw.address else {
        return match raw.gateway.as_ref().or(raw.dns.first()) {
            Some(stray) => {
                let remedy = "add address = \"192.168.1.20/24\", or remove them to use DHCP";
                Err(source.mistake(stray.span(), "network.gateway and dns need an address", remedy))
            }
            None => Ok(Network { interface, address: None, gateway: None, dns: Vec::new() }),
        };
    };
    let (address, prefix) = parse_cidr(text.get_ref()).ok_or_else(|| {
        let what = format!("network.address = {:?} is not an address with a prefix", text.get_ref());
        source.mistake(text.span(), what, "write it as \"192.168.1.20/24\"")
    })?;
    let net = |ip: [u8; 4]| u32::from_be_bytes(ip) & mask(prefix);
    if let (Some(ip), Some(text)) = (gateway, &raw.gateway)
        && net(ip) != net(address)
    {
        let what = format!(
            "network.gateway {} is not in the network of {}/{prefix}",
            text.get_ref(),
            Ipv4Addr::from(address)
        );
        return Err(source.mistake(text.span(), what, "correct the gateway or the prefix"));
    }
    Ok(Network { interface, address: Some((address, prefix)), gateway, dns })
}

fn parse_cidr(text: &str) -> Option<([u8; 4], u8)> {
    let (ip, prefix) = text.split_once('/')?;
    let ip = ip.parse::<Ipv4Addr>().ok().filter(|ip| !ip.is_unspecified() && !ip.is_multicast())?;
    let prefix = prefix.parse::<u8>().ok().filter(|prefix| (1..=32).contains(prefix))?;
    Some((ip.octets(), prefix))
}

/// The network mask of a prefix length, as a number.
pub fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

/// Total for any input: what the fuzz test drives.
pub fn fuzz_provision(data: &[u8]) {
    let before = parse(data);
    if let Some((span, blank)) = blank_token(data) {
        let mut bytes = data.to_vec();
        bytes[span].copy_from_slice(&blank);
        let after = parse(&bytes);
        assert!(after.as_ref().map_or("", |read| &read.token).is_empty(), "the token is gone");
        assert!(before.is_err() || after.is_ok(), "blanking breaks no file");
    }
}

#[cfg(test)]
mod tests;
