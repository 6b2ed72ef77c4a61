//! Kernel modules from the lists that mkimage wrote; no modprobe, no udev.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// What can be loaded.
#[derive(Debug, Default)]
pub struct Modules {
    dir: PathBuf,
    /// Name to path and dependencies.
    map: HashMap<String, (String, Vec<String>)>,
    /// Pattern and module, in the file's order.
    aliases: Vec<(String, String)>,
    loaded: HashSet<String>,
}

/// Loads one module file. Being loaded already is fine.
pub fn load_file(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|error| format!("module {}: {error}", path.display()))?;
    const NO_ARGUMENTS: &CStr = c"";
    match finit_module(&file, NO_ARGUMENTS, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(format!("module {}: {}", path.display(), error.desc())),
    }
}

impl Modules {
    pub fn open(dir: &Path) -> Modules {
        let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        Modules {
            dir: dir.to_owned(),
            map: parse_map(&text("modules.map")),
            aliases: parse_aliases(&text("modules.alias")),
            loaded: HashSet::new(),
        }
    }

    /// The list that every boot loads. Returns what went wrong, a line each.
    pub fn load_listed(&mut self) -> Vec<String> {
        let list = fs::read_to_string(self.dir.join("modules.load")).unwrap_or_default();
        list.lines().filter_map(|name| self.load(name).err()).collect()
    }

    pub fn load(&mut self, name: &str) -> Result<(), String> {
        if !self.loaded.insert(name.to_owned()) {
            return Ok(());
        }
        // Built into the kernel, or not in the image: nothing to do.
        let Some((path, needs)) = self.map.get(name).cloned() else { return Ok(()) };
        for needed in needs {
            self.load(&needed)?;
        }
        load_file(&self.dir.join(path))
    }

    /// Loads what the devices present ask for. Returns what went wrong.
    pub fn load_for_devices(&mut self) -> Vec<String> {
        let mut wanted = Vec::new();
        collect_modaliases(Path::new("/sys/devices"), 0, &mut wanted);
        wanted.iter().flat_map(|alias| self.load_for(alias)).collect()
    }

    /// Loads what one device asks for.
    pub fn load_for(&mut self, modalias: &str) -> Vec<String> {
        let names: Vec<String> = self
            .aliases
            .iter()
            .filter(|(pattern, _)| matches(pattern.as_bytes(), modalias.as_bytes()))
            .map(|(_, name)| name.clone())
            .collect();
        names.iter().filter_map(|name| self.load(name).err()).collect()
    }
}

fn parse_map(text: &str) -> HashMap<String, (String, Vec<String>)> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (name, path) = (words.next()?, words.next()?);
            let needs = words
                .next()
                .unwrap_or_default()
                .split(',')
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect();
            Some((name.to_owned(), (path.to_owned(), needs)))
        })
        .collect()
}

fn parse_aliases(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(pattern, name)| (pattern.to_owned(), name.to_owned()))
        .collect()
}

/// Device directories nest; a link loop is cut by not following links and by this depth.
const DEPTH_MAX: u32 = 16;

fn collect_modaliases(dir: &Path, depth: u32, found: &mut Vec<String>) {
    if depth > DEPTH_MAX {
        return;
    }
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            collect_modaliases(&entry.path(), depth + 1, found);
        } else if entry.file_name() == "modalias"
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            let alias = text.trim();
            if !alias.is_empty() && !found.iter().any(|have| have == alias) {
                found.push(alias.to_owned());
            }
        }
    }
}

/// Shell patterns as module aliases use them: `*`, `?` and `[a-f0]`. Iterative, so no pattern can make it slow.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match step(pattern, p, text[t]) {
            Some(next) => {
                p = next;
                t += 1;
            }
            None if pattern.get(p) == Some(&b'*') => {
                star = Some((p, t));
                p += 1;
            }
            None => match star {
                Some((at, from)) => {
                    p = at + 1;
                    t = from + 1;
                    star = Some((at, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Matches one byte at `p`; returns where the pattern goes on.
fn step(pattern: &[u8], p: usize, byte: u8) -> Option<usize> {
    match *pattern.get(p)? {
        b'*' => None,
        b'?' => Some(p + 1),
        b'[' => {
            let end = p + pattern[p..].iter().position(|byte| *byte == b']')?;
            let set = &pattern[p + 1..end];
            let mut at = 0;
            while at < set.len() {
                let (low, high) = if at + 2 < set.len() && set[at + 1] == b'-' {
                    (set[at], set[at + 2])
                } else {
                    (set[at], set[at])
                };
                if (low..=high).contains(&byte) {
                    return Some(end + 1);
                }
                at += if low == high { 1 } else { 3 };
            }
            None
        }
        literal => (literal == byte).then_some(p + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_match_as_the_kernel_writes_them() {
        let cases = [
            (
                "usb:v0403p6001d*dc*dsc*dp*ic*isc*ip*in*",
                "usb:v0403p6001d0600dc00dsc00dp00icFFiscFFipFFin00",
                true,
            ),
            ("of:N*T*Cbrcm,bcm2835-sdhostC*", "of:NmmcT(null)Cbrcm,bcm2835-sdhostCx", true),
            ("of:N*T*Cbrcm,bcm2835-sdhost", "of:NmmcT(null)Cbrcm,bcm2835-sdhost", true),
            ("pci:v00008086d000025ABsv*", "pci:v00008086d000025ACsv00", false),
            ("usb:v*p*d[0-9]*x", "usb:v1p2d7x", true),
            ("a[xyz]c", "adc", false),
            ("a?c", "abc", true),
            ("a", "ab", false),
            ("[", "[", false),
            ("", "", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} against {text}");
        }
    }

    #[test]
    fn lists_are_read() {
        let map = parse_map("ext4 fs/ext4/ext4.ko jbd2,mbcache\njbd2 fs/jbd2/jbd2.ko \nbroken\n");
        assert_eq!(map["ext4"].1, ["jbd2", "mbcache"]);
        assert!(map["jbd2"].1.is_empty());
        assert_eq!(map.len(), 2);
        assert_eq!(parse_aliases("of:N*T*Cx foo\n"), [("of:N*T*Cx".to_owned(), "foo".to_owned())]);
    }
}
