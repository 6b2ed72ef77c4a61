//! Which Debian archive to use: the host's own, or the one named on the command line. No host name is written in this repository.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::Suite;

const CODE_NAMES: [&str; 10] =
    ["bullseye", "bookworm", "trixie", "forky", "duke", "sid", "stable", "oldstable", "testing", "unstable"];
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// The archive, its security archive and the keyring that signs both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    pub debian: String,
    pub security: String,
    pub keyring: PathBuf,
}

impl Mirror {
    /// `named`: the URL given with --debian-mirror, which wins over what `/etc/apt` says.
    pub fn find(etc_apt: &Path, named: Option<&str>) -> Result<Mirror> {
        let Some(keyring) = KEYRINGS.iter().map(PathBuf::from).find(|path| path.exists()) else {
            bail!("Debian's keyring is missing on this machine: apt-get install debian-archive-keyring");
        };
        let entries = entries(etc_apt);
        let of_host = |security: bool| {
            entries
                .iter()
                .find(|(_, suite)| is_debian(suite) && suite.contains("-security") == security)
                .map(|(uri, _)| uri.clone())
        };
        let debian = match named {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => match of_host(false) {
                Some(uri) => uri,
                None => bail!(
                    "no Debian source in {}: name an archive with --debian-mirror URL",
                    etc_apt.display()
                ),
            },
        };
        let beside = match debian.strip_suffix("/debian") {
            Some(base) => format!("{base}/debian-security"),
            None => format!("{debian}-security"),
        };
        let security = if named.is_some() { beside } else { of_host(true).unwrap_or(beside) };
        Ok(Mirror { debian, security, keyring })
    }

    pub(super) fn line(&self, suite: &Suite) -> String {
        let uri = if suite.name.ends_with("-security") { &self.security } else { &self.debian };
        let expired = if suite.may_be_expired { " check-valid-until=no" } else { "" };
        format!(
            "deb [signed-by={}{expired}] {uri} {} {}\n",
            self.keyring.display(),
            suite.name,
            suite.components
        )
    }
}

fn is_debian(suite: &str) -> bool {
    CODE_NAMES.contains(&suite.split(['-', '/']).next().unwrap_or_default())
}

/// Every (URI, suite) of the host's sources, both formats.
fn entries(etc_apt: &Path) -> Vec<(String, String)> {
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(dir) = fs::read_dir(etc_apt.join("sources.list.d")) {
        let mut more: Vec<PathBuf> = dir.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    let mut found = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|ext| ext.to_str()) {
            Some("list") => text.lines().for_each(|line| one_line(line, &mut found)),
            Some("sources") => text.split("\n\n").for_each(|block| deb822(block, &mut found)),
            _ => {}
        }
    }
    found
}

fn one_line(line: &str, found: &mut Vec<(String, String)>) {
    let Some(rest) = line.trim().strip_prefix("deb ") else { return };
    let rest = rest.trim_start();
    let rest = if rest.starts_with('[') { rest.split_once(']').map_or("", |(_, after)| after) } else { rest };
    let mut words = rest.split_whitespace();
    if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
        push(uri, suite, found);
    }
}

fn deb822(block: &str, found: &mut Vec<(String, String)>) {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in block.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((key, value)) = line.split_once(':') {
            fields.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let field =
        |key: &str| fields.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value.as_str());
    if !field("types").split_whitespace().any(|kind| kind == "deb") || field("enabled") == "no" {
        return;
    }
    for uri in field("uris").split_whitespace() {
        for suite in field("suites").split_whitespace() {
            push(uri, suite, found);
        }
    }
}

fn push(uri: &str, suite: &str, found: &mut Vec<(String, String)>) {
    found.push((uri.trim_end_matches('/').to_owned(), suite.to_owned()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read_and_other_archives_are_not_taken() {
        let dir = tempfile::tempdir().expect("temp dir");
        let list_d = dir.path().join("sources.list.d");
        fs::create_dir(&list_d).expect("dir");
        fs::write(list_d.join("a.list"), "# deb http://no/debian trixie main\ndeb [arch=amd64 signed-by=/k] https://tool.example/apt nodistro main\n")
            .expect("write");
        fs::write(
            list_d.join("debian.sources"),
            "Types: deb deb-src\nURIs: http://one/debian/\nSuites: bookworm\n bookworm-updates\nComponents: main\n\nTypes: deb\nURIs: http://one/sec\nSuites: bookworm-security\nComponents: main\n",
        )
        .expect("write");
        let found = entries(dir.path());
        assert_eq!(found.len(), 4);
        if KEYRINGS.iter().any(|path| Path::new(path).exists()) {
            let mirror = Mirror::find(dir.path(), None).expect("found");
            assert_eq!(
                (mirror.debian.as_str(), mirror.security.as_str()),
                ("http://one/debian", "http://one/sec")
            );
            let named = Mirror::find(dir.path(), Some("http://two/debian/")).expect("found");
            assert_eq!(
                (named.debian.as_str(), named.security.as_str()),
                ("http://two/debian", "http://two/debian-security")
            );
        }
    }
}
