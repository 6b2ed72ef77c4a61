//! `/dev/serial/by-id/...` where no udev makes such links: the names are made from sysfs by udev's rules (60-serial.rules, usb_id),
//! so that a Device written on a desktop works on the image, too.

use std::{
    fs,
    path::{Path, PathBuf},
};

pub const FOLDER: &str = "/dev/serial/by-id/";

/// The device file that a path leads to: what is there, or the USB port that udev would have linked to it.
pub fn resolve(path: &str) -> PathBuf {
    resolve_in(path, Path::new("/sys/class/tty"))
}

pub(super) fn resolve_in(path: &str, tty: &Path) -> PathBuf {
    let plain = PathBuf::from(path);
    let Some(name) = path.strip_prefix(FOLDER).filter(|_| !plain.exists()) else { return plain };
    let found = names(tty).into_iter().find(|(have, _)| have == name);
    found.map_or(plain, |(_, port)| Path::new("/dev").join(port))
}

/// Every USB serial port: its name below [`FOLDER`], and its device file's name.
pub fn names(tty: &Path) -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(tty) else { return Vec::new() };
    let named = |entry: fs::DirEntry| {
        let port = entry.file_name().to_string_lossy().into_owned();
        Some((name(&entry.path().join("device").canonicalize().ok()?)?, port))
    };
    let mut names: Vec<(String, String)> = entries.flatten().filter_map(named).collect();
    names.sort();
    names
}

/// The name of a port from its place in sysfs; `None` when it is no USB port.
fn name(device: &Path) -> Option<String> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let interface = device.ancestors().find(|dir| dir.join("bInterfaceNumber").exists())?;
    let usb = interface.ancestors().find(|dir| dir.join("idVendor").exists())?;
    let number = read(&interface.join("bInterfaceNumber"))?;
    let text = |attribute: &str, otherwise: &str| {
        let text = read(&usb.join(attribute)).map(|text| clean(&text)).filter(|text| !text.is_empty());
        text.or_else(|| Some(clean(&read(&usb.join(otherwise))?)))
    };
    let mut name = format!("usb-{}_{}", text("manufacturer", "idVendor")?, text("product", "idProduct")?);
    // A serial number with unprintable bytes is no serial number (usb_id).
    let serial = read(&usb.join("serial"))
        .filter(|serial| serial.trim_end().bytes().all(|byte| (0x20..0x80).contains(&byte) && byte != b','));
    if let Some(serial) = serial.map(|serial| clean(&serial)).filter(|serial| !serial.is_empty()) {
        name += &format!("_{serial}");
    }
    name += &format!("-if{}", number.trim());
    if let Some(port) = read(&device.join("port_number")) {
        name += &format!("-port{}", port.trim());
    }
    Some(name)
}

/// Runs of spaces as one `_`, and what a file name should not have as `_`.
fn clean(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || "#+-.:=@_".contains(letter);
    words.join("_").chars().map(|letter| if allowed(letter) { letter } else { '_' }).collect()
}
