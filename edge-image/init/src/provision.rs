//! `provision.toml` on the boot partition: how a device joins, written by a person or a flashing tool on any computer.
//!
//! The join token in it is a secret that lies on a FAT partition anybody can read. Once used, it is overwritten in place: same length,
//! same clusters, so that neither an old copy nor a half-written file is left behind.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::limits::{LABELS_MAX, NTP_SERVERS_MAX};

pub const FILE: &str = "provision.toml";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provision {
    pub cloud: String,
    pub join_port: Option<u16>,
    pub token: String,
    pub node_name: String,
    pub labels: BTreeMap<String, String>,
    pub ntp: Vec<String>,
    pub network: Option<Network>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub interface: Option<String>,
    /// Address and prefix length; without them, DHCP.
    pub address: Option<([u8; 4], u8)>,
    pub gateway: Option<[u8; 4]>,
    pub dns: Vec<[u8; 4]>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawFile {
    cloud: String,
    join_port: Option<u16>,
    token: String,
    node_name: String,
    labels: BTreeMap<String, String>,
    ntp: Vec<String>,
    network: Option<RawNetwork>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawNetwork {
    interface: Option<String>,
    address: Option<String>,
    gateway: Option<String>,
    dns: Vec<String>,
}

/// A mistake in the file, as a person can mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("provision.toml: {what}; {remedy}")]
pub struct Mistake {
    pub what: String,
    pub remedy: String,
}

fn mistake<T>(what: impl Into<String>, remedy: impl Into<String>) -> Result<T, Mistake> {
    Err(Mistake { what: what.into(), remedy: remedy.into() })
}

/// Reads the file's bytes. Never panics, whatever is in them.
pub fn parse(bytes: &[u8]) -> Result<Provision, Mistake> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return mistake(
            "not a text file (it is cut off or damaged)",
            "write it again from provision-example.toml",
        );
    };
    // A byte order mark and Windows line ends are what editors there leave.
    let text = text.trim_start_matches('\u{feff}');
    let raw: RawFile = match toml::from_str(text) {
        Ok(raw) => raw,
        Err(error) => {
            let line =
                error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            return mistake(
                format!("line {line}: {}", error.message().trim().replace('\n', " ")),
                "correct that line; provision-example.toml shows every key",
            );
        }
    };
    check(raw)
}

fn check(raw: RawFile) -> Result<Provision, Mistake> {
    if !raw.cloud.is_empty() {
        let port = raw
            .cloud
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none() {
            return mistake(format!("cloud = {:?} has no port", raw.cloud), "write it as \"HOST:10000\"");
        }
    } else if !raw.token.is_empty() {
        return mistake("there is a token but no cloud", "add cloud = \"HOST:10000\"");
    }
    if raw.labels.len() > LABELS_MAX {
        return mistake(format!("{} labels", raw.labels.len()), format!("at most {LABELS_MAX} are taken"));
    }
    if let Some((key, value)) = raw
        .labels
        .iter()
        .find(|(key, value)| key.is_empty() || key.contains([',', '=']) || value.contains([',', '=']))
    {
        return mistake(format!("label {key:?} = {value:?}"), "labels have no comma or equals sign");
    }
    if raw.ntp.len() > NTP_SERVERS_MAX {
        return mistake(
            format!("{} NTP servers", raw.ntp.len()),
            format!("at most {NTP_SERVERS_MAX} are taken"),
        );
    }
    let network = raw.network.map(check_network).transpose()?;
    Ok(Provision {
        cloud: raw.cloud,
        join_port: raw.join_port,
        token: raw.token,
        node_name: raw.node_name,
        labels: raw.labels,
        ntp: raw.ntp,
        network,
    })
}

fn check_network(raw: RawNetwork) -> Result<Network, Mistake> {
    let address = match &raw.address {
        None => None,
        Some(text) => {
            let parts = text.split_once('/').and_then(|(ip, prefix)| {
                Some((four(ip)?, prefix.parse::<u8>().ok().filter(|prefix| *prefix <= 32)?))
            });
            match parts {
                Some(parts) => Some(parts),
                None => {
                    return mistake(
                        format!("network.address = {text:?} is not an address with a prefix"),
                        "write it as \"192.168.1.20/24\"",
                    );
                }
            }
        }
    };
    let one = |key: &str, text: &str| match four(text) {
        Some(ip) => Ok(ip),
        None => {
            mistake(format!("network.{key} = {text:?} is not an IPv4 address"), "write it as \"192.168.1.1\"")
        }
    };
    let gateway = raw.gateway.as_deref().map(|text| one("gateway", text)).transpose()?;
    let dns = raw.dns.iter().map(|text| one("dns", text)).collect::<Result<_, _>>()?;
    Ok(Network { interface: raw.interface, address, gateway, dns })
}

fn four(text: &str) -> Option<[u8; 4]> {
    text.parse::<std::net::Ipv4Addr>().ok().map(|ip| ip.octets())
}

/// The file with every character of the token overwritten, at the same length; `None` when there is no token in it.
pub fn blank_token(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = bytes.to_vec();
    let mut start = 0;
    let mut found = false;
    while start < out.len() {
        let end = out[start..].iter().position(|byte| *byte == b'\n').map_or(out.len(), |at| start + at);
        found |= blank_line(&mut out[start..end]);
        start = end + 1;
    }
    found.then_some(out)
}

/// `token = "abc"  # x` becomes `token = ""     # x`.
fn blank_line(line: &mut [u8]) -> bool {
    let Some(first) = line.iter().position(|byte| !byte.is_ascii_whitespace()) else { return false };
    if !line[first..].starts_with(b"token") {
        return false;
    }
    let quote =
        |from: usize| line[from..].iter().position(|byte| matches!(byte, b'"' | b'\'')).map(|at| from + at);
    let Some(open) = quote(first) else { return false };
    let mark = line[open];
    let Some(close) = line[open + 1..].iter().position(|byte| *byte == mark).map(|at| open + 1 + at) else {
        return false;
    };
    if close == open + 1 {
        return false;
    }
    line[open + 1] = mark;
    line[open + 2..=close].fill(b' ');
    true
}

/// Node name from the template, or `kinglet-` and the serial. `serial`: at least its last eight hex digits.
pub fn node_name(template: &str, serial: &str) -> Result<String, Mistake> {
    let digits: String =
        serial.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_ascii_lowercase();
    let tail = &digits[digits.len().saturating_sub(8)..];
    let template = if template.is_empty() { "kinglet-{serial}" } else { template };
    let name = template.replace("{serial}", tail);
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label_ok) {
        return mistake(
            format!("node_name {name:?} is not a valid node name"),
            "use lower-case letters, digits, '-' and '.'; {serial} is replaced",
        );
    }
    Ok(name)
}

/// Total for any input: what the fuzz test drives.
pub fn fuzz_provision(data: &[u8]) {
    let _ = parse(data);
    if let Some(blanked) = blank_token(data) {
        assert_eq!(blanked.len(), data.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "cloud = \"10.0.2.2:10000\"\ntoken = \"abc.def\" # once\nnode_name = \"line3-{serial}\"\nntp = [\"10.0.2.2:1123\"]\n[labels]\nsite = \"hall3\"\n[network]\naddress = \"10.0.2.15/24\"\ngateway = \"10.0.2.2\"\n";

    #[test]
    fn a_file_is_read() {
        let read = parse(GOOD.as_bytes()).expect("valid");
        assert_eq!(
            (read.cloud.as_str(), read.token.as_str(), read.labels["site"].as_str()),
            ("10.0.2.2:10000", "abc.def", "hall3")
        );
        assert_eq!(read.network.expect("network").address, Some(([10, 0, 2, 15], 24)));
        assert!(
            parse(format!("\u{feff}{}", GOOD.replace('\n', "\r\n")).as_bytes()).is_ok(),
            "as Windows saves it"
        );
        assert!(parse(b"").is_ok(), "an empty file says nothing, and that is no mistake");
    }

    #[test]
    fn the_example_on_the_card_is_valid() {
        let text = include_str!("../../mkimage/src/provision-example.toml");
        assert_eq!(parse(text.as_bytes()).expect("valid").join_port, Some(10_002));
        let all: String = text
            .lines()
            .map(|line| {
                line.strip_prefix("# ")
                    .filter(|rest| rest.contains(" = ") || rest.starts_with('['))
                    .unwrap_or(line)
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let read = parse(all.as_bytes()).expect("valid with every key");
        assert!(read.network.is_some() && !read.ntp.is_empty() && !read.labels.is_empty());
    }

    #[test]
    fn mistakes_name_the_line_or_key_and_the_remedy() {
        let cases = [
            ("cloud = \"10.0.2.2\"", "cloud = \"10.0.2.2\" has no port", "HOST:10000"),
            ("token = \"x\"", "no cloud", "add cloud"),
            ("cloud = \"a:1\"\ncolour = 1", "line 2", "provision-example.toml"),
            ("cloud = \"a:1\"\ntoken = \"unterm", "line 2", "correct that line"),
            ("[network]\naddress = \"10.0.0.1\"", "network.address", "/24"),
            ("[network]\ndns = [\"x\"]", "network.dns", "192.168.1.1"),
            ("[labels]\na = \"b,c\"", "label \"a\"", "comma"),
        ];
        for (text, what, remedy) in cases {
            let mistake = parse(text.as_bytes()).expect_err(text);
            assert!(mistake.what.contains(what) && mistake.remedy.contains(remedy), "{text}: {mistake}");
        }
        let cut = parse(&[b'c', 0xff, 0xfe]).expect_err("not text").to_string();
        assert!(cut.contains("not a text file") && cut.contains("write it again"), "{cut}");
    }

    #[test]
    fn a_truncated_file_is_a_mistake_or_says_less_but_never_panics() {
        for end in 0..GOOD.len() {
            fuzz_provision(&GOOD.as_bytes()[..end]);
        }
        let mut seed = 0x1234_5678_9abc_def1_u64;
        for _ in 0..3000 {
            let mut bytes = GOOD.as_bytes().to_vec();
            for _ in 0..4 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let at = usize::try_from(seed % bytes.len() as u64).expect("small");
                bytes[at] = (seed >> 24) as u8;
            }
            fuzz_provision(&bytes);
        }
    }

    #[test]
    fn the_token_is_blanked_in_place_and_the_rest_stays() {
        let blanked = blank_token(GOOD.as_bytes()).expect("had a token");
        let text = String::from_utf8(blanked.clone()).expect("text");
        assert_eq!(text.len(), GOOD.len());
        assert!(
            !text.contains("abc.def") && text.contains("token = \"\"") && text.contains("# once"),
            "{text}"
        );
        assert_eq!(parse(&blanked).expect("valid").token, "");
        assert_eq!(blank_token(&blanked), None, "nothing left to blank");
    }

    #[test]
    fn node_names() {
        assert_eq!(node_name("", "10000000ABCD1234").expect("valid"), "kinglet-abcd1234");
        assert_eq!(node_name("line3-{serial}", "52:54:00:12:34:56").expect("valid"), "line3-00123456");
        let error = node_name("Line 3", "1").expect_err("upper case and space").to_string();
        assert!(error.contains("Line 3") && error.contains("lower-case"), "{error}");
    }
}
