//! The disk this system was started from: found by the id in its partition table, its data partition checked, grown and mounted.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::sys;

const SECTOR: u64 = 512;
/// Partitions begin and end on this boundary, in sectors.
const ALIGN: u64 = 2048;
const DATA: usize = 3;
/// Less is not worth a rewrite of the table: 16 MiB.
const GROW_MIN: u64 = 32_768;
/// MBR entries hold 32 bits of sectors.
const SECTORS_MAX: u64 = u32::MAX as u64;

/// Words of the kernel's command line that begin with `kinglet.`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Boot {
    pub disk: Option<u32>,
    pub slot_b: bool,
    /// The watchdog stays unused: for finding out why a board resets, and for emulators whose watchdog resets at once.
    pub no_watchdog: bool,
}

impl Boot {
    pub fn from_cmdline(text: &str) -> Boot {
        let mut boot = Boot::default();
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some(("kinglet.disk", id)) => boot.disk = u32::from_str_radix(id, 16).ok(),
                Some(("kinglet.slot", slot)) => boot.slot_b = slot == "b",
                Some(("kinglet.watchdog", how)) => boot.no_watchdog = how == "off",
                _ => {}
            }
        }
        boot
    }

    pub fn load() -> Boot {
        Boot::from_cmdline(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }
}

/// The first sector of a disk: id and four partitions in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    pub id: u32,
    pub partitions: [(u64, u64); 4],
}

impl Table {
    pub fn parse(sector: &[u8; 512]) -> Option<Table> {
        if sector[510..] != [0x55, 0xaa] {
            return None;
        }
        let word =
            |at: usize| u32::from_le_bytes([sector[at], sector[at + 1], sector[at + 2], sector[at + 3]]);
        let mut partitions = [(0, 0); 4];
        for (index, partition) in partitions.iter_mut().enumerate() {
            let at = 446 + 16 * index;
            *partition = (u64::from(word(at + 8)), u64::from(word(at + 12)));
        }
        Some(Table { id: word(440), partitions })
    }

    /// The length the data partition should have on a disk of so many sectors, if that is worth doing.
    pub fn grown_data(&self, disk_sectors: u64) -> Option<u64> {
        let (start, length) = self.partitions[DATA];
        let end = disk_sectors.min(start + SECTORS_MAX) / ALIGN * ALIGN;
        let wanted = end.checked_sub(start)?;
        (start > 0 && wanted >= length + GROW_MIN).then_some(wanted)
    }
}

/// A disk with our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub device: PathBuf,
}

impl Disk {
    /// Looks at every block device once.
    pub fn find(id: u32) -> Option<Disk> {
        let mut names: Vec<String> = fs::read_dir("/sys/block")
            .ok()?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names.into_iter().filter(|name| !name.starts_with("loop") && !name.starts_with("ram")).find_map(
            |name| {
                let device = Path::new("/dev").join(name);
                let table = read_table(&device).ok()??;
                (table.id == id).then_some(Disk { device })
            },
        )
    }

    /// `/dev/vda` + 2 is `/dev/vda2`, `/dev/mmcblk0` + 2 is `/dev/mmcblk0p2`.
    pub fn partition(&self, number: usize) -> PathBuf {
        let device = self.device.display().to_string();
        let between = if device.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
        PathBuf::from(format!("{device}{between}{number}"))
    }

    /// Gives the data partition the rest of the disk: in the table first, then in the running kernel. Returns megabytes, if it grew.
    pub fn grow_data_partition(&self) -> std::io::Result<Option<u64>> {
        let mut disk = OpenOptions::new().read(true).write(true).open(&self.device)?;
        let mut sector = [0; SECTOR as usize];
        disk.read_exact(&mut sector)?;
        let Some(table) = Table::parse(&sector) else { return Ok(None) };
        let Some(length) = table.grown_data(sys::block_device_bytes(&disk)? / SECTOR) else {
            return Ok(None);
        };
        let at = 446 + 16 * DATA + 12;
        // `grown_data` bounds the length to what an entry holds.
        sector[at..at + 4].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        disk.seek(SeekFrom::Start(0))?;
        // One sector: the disk writes it whole or not at all.
        disk.write_all(&sector)?;
        disk.sync_all()?;
        sys::resize_partition(&disk, DATA as i32 + 1, table.partitions[DATA].0 * SECTOR, length * SECTOR)?;
        Ok(Some((length * SECTOR) >> 20))
    }
}

fn read_table(device: &Path) -> std::io::Result<Option<Table>> {
    let mut sector = [0; SECTOR as usize];
    File::open(device)?.read_exact(&mut sector)?;
    Ok(Table::parse(&sector))
}

/// `init grow PARTITION`: a child process, because on a large and slow card this takes longer than the watchdog waits.
pub fn grow(args: &[String]) {
    let Some(partition) = args.first() else { return };
    if let Err(error) = grow_file_system(Path::new(partition), "/var") {
        println!("data partition: the file system did not grow: {error}");
        std::process::exit(1);
    }
}

/// Grows the mounted ext4 to its partition. Doing it again changes nothing.
fn grow_file_system(partition: &Path, mounted_at: &str) -> std::io::Result<()> {
    const BLOCK: u64 = 4096;
    let blocks = sys::block_device_bytes(&File::open(partition)?)? / BLOCK;
    sys::resize_ext4(&File::open(mounted_at)?, blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(data: (u32, u32)) -> [u8; 512] {
        let mut sector = [0; 512];
        sector[440..444].copy_from_slice(&0xabcd_0123u32.to_le_bytes());
        sector[446 + 48 + 8..446 + 48 + 12].copy_from_slice(&data.0.to_le_bytes());
        sector[446 + 48 + 12..446 + 48 + 16].copy_from_slice(&data.1.to_le_bytes());
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    #[test]
    fn the_data_partition_takes_the_rest_of_the_disk_and_only_when_worth_it() {
        let table = Table::parse(&table((1_574_912, 522_240))).expect("a table");
        assert_eq!(table.id, 0xabcd_0123);
        assert_eq!(table.grown_data(2_097_152), None, "nothing to gain");
        assert_eq!(table.grown_data(4_194_304), Some(4_194_304 - 1_574_912));
        assert_eq!(table.grown_data(4_194_304 + 100), Some(4_194_304 - 1_574_912), "aligned");
        assert_eq!(table.grown_data(100), None, "a disk smaller than its table");
        let huge = table.grown_data(u64::MAX / 2).expect("bounded");
        assert!(huge <= SECTORS_MAX);
        assert!(Table::parse(&[0; 512]).is_none());
    }

    #[test]
    fn the_command_line_names_disk_and_slot() {
        let boot = Boot::from_cmdline("console=ttyAMA0 kinglet.disk=0a1b2c3d kinglet.slot=b quiet");
        assert_eq!(boot, Boot { disk: Some(0x0a1b_2c3d), slot_b: true, no_watchdog: false });
        assert!(Boot::from_cmdline("kinglet.watchdog=off").no_watchdog);
        assert!(!Boot::from_cmdline("kinglet.watchdog=on").no_watchdog);
        assert_eq!(Boot::from_cmdline("kinglet.disk=zz kinglet.slot="), Boot::default());
    }

    #[test]
    fn partitions_are_named_as_the_kernel_does() {
        let name = |device: &str| Disk { device: device.into() }.partition(2).display().to_string();
        assert_eq!(name("/dev/vda"), "/dev/vda2");
        assert_eq!(name("/dev/mmcblk0"), "/dev/mmcblk0p2");
    }
}
