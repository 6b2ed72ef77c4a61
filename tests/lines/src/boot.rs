//! As PID 1 of a machine that has nothing else: the suite, and off.

use nix::{
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};

pub fn run() -> ! {
    for (kind, path) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let _ = std::fs::create_dir_all(path);
        if let Err(error) = mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>) {
            println!("lines: cannot mount {path}: {error}");
        }
    }
    if let Err(error) = super::on_sim(Some("/modules")) {
        println!("lines: {error}");
    }
    println!("lines: done");
    let _ = reboot(RebootMode::RB_POWER_OFF);
    loop {
        std::thread::park();
    }
}
