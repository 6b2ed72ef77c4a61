//! What board this is: rppal knows Pis (feature `rppal`), the device tree knows the others.
//!
//! This file is the place of rppal, which will also serve I2C, SPI and hardware PWM. Not GPIO: it needs /dev/gpiomem, and the
//! character device works on every board (design decision 9).

/// For example `Raspberry Pi Zero 2 W`, or `linux,dummy-virt` in QEMU.
pub fn model() -> String {
    pi_model().or_else(device_tree_model).unwrap_or_else(|| "unknown board".into())
}

#[cfg(feature = "rppal")]
fn pi_model() -> Option<String> {
    rppal::system::DeviceInfo::new().ok().map(|info| info.model().to_string())
}

#[cfg(not(feature = "rppal"))]
fn pi_model() -> Option<String> {
    None
}

fn device_tree_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/device-tree/model").ok()?;
    let text = text.trim_end_matches('\0').trim();
    (!text.is_empty()).then(|| text.to_owned())
}
