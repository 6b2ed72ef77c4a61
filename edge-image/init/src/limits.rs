//! Bounds of PID 1, and what happens at each.

use std::time::Duration;

/// A provisioning file is a page of text; a larger one is refused.
pub const PROVISION_BYTES_MAX: u64 = 64 << 10;
/// A folder of the boot partition with more or larger files is left out whole, and a line says so.
pub const EXTRA_FILES_MAX: usize = 128;
pub const EXTRA_BYTES_MAX: u64 = 256 << 10;
/// Labels given to the node; more are refused.
pub const LABELS_MAX: usize = 64;
/// A service's log in memory; beyond it the older half is dropped.
pub const LOG_BYTES_MAX: u64 = 256 << 10;
/// First and longest wait before a service is started again.
pub const RESTART_FIRST: Duration = Duration::from_millis(250);
pub const RESTART_MAX: Duration = Duration::from_secs(30);
/// A service that ran this long starts again at once.
pub const RESTART_RESET: Duration = Duration::from_secs(60);
/// edgecore is not started while containerd is starting: how long at most, and how often it is looked for.
pub const CONTAINERD_WITHIN: Duration = Duration::from_secs(30);
pub const CONTAINERD_LOOK: Duration = Duration::from_millis(200);
/// A service that has run this long after a crash is no longer mentioned as a problem.
pub const RECOVERED: Duration = Duration::from_secs(15);
/// First and longest wait between attempts to join.
pub const JOIN_RETRY_FIRST: Duration = Duration::from_secs(2);
pub const JOIN_RETRY_MAX: Duration = Duration::from_secs(60);
/// How often the loop looks at files and feeds the watchdog.
pub const TICK: Duration = Duration::from_secs(1);
/// The watchdog resets a board whose PID 1 has not run for so long.
pub const WATCHDOG_SECONDS: i32 = 15;
/// status.txt lies on flash: a state counts when it has lasted so long, the first pause after a writing, and how often that doubles.
pub const STATUS_STABLE: Duration = Duration::from_secs(2);
pub const STATUS_DOUBLINGS_MAX: u32 = 7;
/// After so long without a writing the pauses begin small again.
pub const STATUS_FORGIVEN: Duration = Duration::from_secs(3600);
pub const STATUS_WRITE_MIN: Duration = Duration::from_secs(10);
/// The first status.txt waits so long after power on for an address to put into it.
pub const STATUS_FIRST: Duration = Duration::from_secs(20);
/// What services get between SIGTERM and SIGKILL at power off.
pub const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How long the initramfs waits for the disk to appear.
pub const DISK_WITHIN: Duration = Duration::from_secs(30);
/// How often the clock is saved; it lies on flash.
pub const CLOCK_SAVE: Duration = Duration::from_secs(600);
/// SNTP: first retry when no server answers, and the pace once one did.
pub const SNTP_RETRY: Duration = Duration::from_secs(15);
pub const SNTP_PACE: Duration = Duration::from_secs(3600);
/// The C library asks no more name servers; further ones are left out.
pub const DNS_SERVERS_MAX: usize = 3;
/// NTP servers asked in turn; more are refused in the provisioning file and left out of a DHCP answer.
pub const NTP_SERVERS_MAX: usize = 8;

const _: () =
    assert!(TICK.as_secs() * 5 <= WATCHDOG_SECONDS as u64, "several ticks must fit between feedings");
