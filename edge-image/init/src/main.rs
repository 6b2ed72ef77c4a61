//! PID 1 of the device, and the initramfs's `/init`.

fn main() {
    init::run();
}
