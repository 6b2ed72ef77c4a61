//! What each kind of boot chain needs on the boot partition.

use std::collections::BTreeMap;

use board_spec::{Board, Boot};
use pins::PowerOn;

/// The kernel's command line: the board's words, and which disk and slot the initramfs shall take.
pub fn cmdline(board: &Board, disk_id: u32, slot: &str) -> String {
    format!("{} kinglet.disk={disk_id:08x} kinglet.slot={slot}", board.own.cmdline.join(" "))
}

/// The slot record: which slot to start, and whether it has proved itself. Two copies, the higher `seq` wins, and one is written at a time.
pub fn slot_record(seq: u32) -> String {
    format!("seq={seq}\nslot=a\ngood=a\ntries=0\n")
}

/// Files made from text alone. `power_on`: levels of GPIO lines that a Pi's firmware sets.
pub fn files(board: &Board, disk_id: u32, power_on: &BTreeMap<u32, PowerOn>) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![
        ("slot0.env".to_owned(), slot_record(1).into_bytes()),
        ("slot1.env".to_owned(), slot_record(0).into_bytes()),
    ];
    match &board.own.boot {
        Boot::UBoot { kernel_address, initramfs_address, device_tree } => {
            let script = u_boot_script(
                &cmdline(board, disk_id, "${slot}"),
                *kernel_address,
                *initramfs_address,
                device_tree,
            );
            files.push(("boot.scr".to_owned(), u_boot_image(script.as_bytes())));
        }
        Boot::RaspberryPi { config, .. } => {
            let config = format!(
                "# Written by mkimage. Kernel, initramfs and command line of the slot in use.\n{}\nos_prefix=a/\nkernel=kernel8.img\ncmdline=cmdline.txt\ninitramfs initrd followkernel\n",
                config.join("\n")
            );
            files.push(("config.txt".to_owned(), pins::with_block(&config, power_on)));
            files.push((
                "a/cmdline.txt".to_owned(),
                format!("{}\n", cmdline(board, disk_id, "a")).into_bytes(),
            ));
        }
    }
    files
}

/// The kernel's name inside a slot's folder.
pub fn kernel_name(board: &Board) -> &'static str {
    match board.own.boot {
        Boot::UBoot { .. } => "Image",
        Boot::RaspberryPi { .. } => "kernel8.img",
    }
}

fn u_boot_script(cmdline: &str, kernel: u64, initramfs: u64, device_tree: &str) -> String {
    format!(
        r#"setenv slot a
setenv best -1
for copy in 0 1; do
  setenv seq
  setenv other
  if load ${{devtype}} ${{devnum}}:1 {kernel:#x} slot${{copy}}.env; then
    setenv keep ${{slot}}
    env import -t {kernel:#x} ${{filesize}} seq slot
    if test -n "${{seq}}" && test ${{seq}} -gt ${{best}}; then setenv best ${{seq}}; else setenv slot ${{keep}}; fi
  fi
done
if test "${{slot}}" != a && test "${{slot}}" != b; then setenv slot a; fi
setenv bootargs "{cmdline}"
echo "kinglet: slot ${{slot}}"
load ${{devtype}} ${{devnum}}:1 {kernel:#x} ${{slot}}/Image
load ${{devtype}} ${{devnum}}:1 {initramfs:#x} ${{slot}}/initrd
booti {kernel:#x} {initramfs:#x}:${{filesize}} {device_tree}
"#
    )
}

/// Wraps a script as U-Boot's `source` wants it: the legacy image header with its two checksums.
fn u_boot_image(script: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&(script.len() as u32).to_be_bytes());
    body.extend_from_slice(&[0; 4]);
    body.extend_from_slice(script);
    let mut header = [0; 64];
    let words = [(0, 0x2705_1956), (12, body.len() as u32), (24, crc32(&body))];
    for (at, word) in words {
        header[at..at + 4].copy_from_slice(&u32::to_be_bytes(word));
    }
    // Linux, arm64, script, not compressed.
    header[28..32].copy_from_slice(&[5, 22, 6, 0]);
    header[32..39].copy_from_slice(b"kinglet");
    let sum = crc32(&header);
    header[4..8].copy_from_slice(&sum.to_be_bytes());
    [header.as_slice(), &body].concat()
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_script_has_the_header_that_u_boot_checks() {
        let image = u_boot_image(b"echo hi\n");
        assert_eq!(&image[..4], &[0x27, 0x05, 0x19, 0x56]);
        let mut header = image[..64].to_vec();
        let sum = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        header[4..8].fill(0);
        assert_eq!(sum, crc32(&header));
        assert_eq!(u32::from_be_bytes([image[24], image[25], image[26], image[27]]), crc32(&image[64..]));
        assert_eq!(&image[72..], b"echo hi\n");
    }

    #[test]
    fn a_pis_config_ends_with_the_block_that_the_node_rewrites() {
        let boards = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../board");
        let board = Board::load(&boards, "rpi").expect("valid");
        let relay = std::fs::read(boards.join("../devices/relay-board-4.yaml")).expect("there");
        let power_on = crate::extras::power_on(&[("devices/relay.yaml".to_owned(), relay)]).expect("valid");
        let files = files(&board, 1, &power_on);
        let (_, config) = files.iter().find(|(name, _)| name == "config.txt").expect("there");
        let at = pins::find_block(config).expect("the block");
        let (own, block) = config.split_at(at);
        assert!(String::from_utf8_lossy(own).contains("\ninitramfs initrd followkernel\n"));
        assert!(String::from_utf8_lossy(block).contains("\ngpio=5=op,dh\n"));
        let sections = String::from_utf8_lossy(own)
            .lines()
            .filter(|line| line.starts_with('['))
            .map(str::to_owned)
            .collect::<Vec<_>>();
        assert_eq!(sections.last().map(String::as_str), Some("[all]"), "the levels are for every board");
    }
}
