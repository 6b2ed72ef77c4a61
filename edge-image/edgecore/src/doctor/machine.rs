//! The kernel, the memory, the disks and the clock.

use super::{Finding, Host};
use crate::credentials::Credentials;

const MIB: u64 = 1024 * 1024;
const DISK_ERROR_BYTES: u64 = 100 * MIB;
const DISK_WARNING_BYTES: u64 = 1024 * MIB;
/// No program of ours is older (2026-11-01).
const RELEASED_S: u64 = 1_793_491_200;
const CLOCK_ERROR_S: u64 = 300;
const CLOCK_WARNING_S: u64 = 30;

pub fn memory_cgroup(host: &Host) -> Vec<Finding> {
    const CHECK: &str = "memory-cgroup";
    let v2 = host.exists("sys/fs/cgroup/cgroup.controllers");
    let text = if v2 { host.read("sys/fs/cgroup/cgroup.controllers") } else { host.read("proc/cgroups") };
    let has = |name: &str| {
        let v1 = |line: &str| {
            let mut fields = line.split_whitespace();
            fields.next() == Some(name) && fields.last() == Some("1")
        };
        if v2 { text.split_whitespace().any(|word| word == name) } else { text.lines().any(v1) }
    };
    if text.is_empty() {
        let finding = Finding::error(CHECK, "this kernel has no control groups, or they are not mounted")
            .why("containers cannot be made")
            .remedy("mount -t cgroup2 none /sys/fs/cgroup (a system with systemd does it itself)");
        return vec![finding];
    }
    let mut findings = Vec::new();
    if !has("memory") {
        findings.push(
            Finding::error(CHECK, "the memory control group is off")
                .why("containers with a memory limit cannot start, and one pod can take all memory")
                .remedy(switch_on(host)),
        );
    }
    let missing: Vec<&str> = ["cpu", "pids"].into_iter().filter(|name| !has(name)).collect();
    if !missing.is_empty() {
        let what = format!("the control groups {} are off", missing.join(" and "));
        findings.push(
            Finding::warning(CHECK, what)
                .why("limits of that kind are not held")
                .remedy("use a kernel with CONFIG_CFS_BANDWIDTH and CONFIG_CGROUP_PIDS"),
        );
    }
    findings
}

/// Where the kernel's command line is written on this machine.
fn switch_on(host: &Host) -> String {
    const WORDS: &str = "cgroup_enable=memory cgroup_memory=1";
    let files = ["boot/firmware/cmdline.txt", "boot/cmdline.txt"];
    match files.into_iter().find(|file| host.exists(file)) {
        Some(file) if host.read(file).contains("cgroup_enable=memory") => {
            format!(
                "/{file} has {WORDS} already: reboot (it must be one line; cgroup_disable=memory must not follow)"
            )
        }
        Some(file) => format!("add {WORDS} at the end of the one line in /{file}, then reboot"),
        None => {
            format!("add {WORDS} to GRUB_CMDLINE_LINUX in /etc/default/grub, run update-grub, then reboot")
        }
    }
}

pub fn modules(host: &Host) -> Vec<Finding> {
    const CHECK: &str = "kernel-modules";
    let release = host.read("proc/sys/kernel/osrelease").trim().to_owned();
    let dir = format!("lib/modules/{release}");
    let known = host.exists(&dir) && !release.is_empty();
    let lists = [host.read(&format!("{dir}/modules.builtin")), host.read(&format!("{dir}/modules.dep"))];
    let on_disk = |name: &str| {
        let file = format!("/{name}.ko");
        lists.iter().any(|list| list.lines().any(|line| line.split(':').next().unwrap_or("").contains(&file)))
    };
    let has = |name: &str| host.exists(&format!("sys/module/{name}")) || on_disk(name);
    let mut findings = Vec::new();
    let overlay = host.read("proc/filesystems").split_whitespace().any(|word| word == "overlay");
    if !overlay && !has("overlay") {
        findings.push(
            Finding::error(CHECK, format!("kernel {release} has no overlayfs"))
                .why("containerd's usual snapshotter cannot unpack an image")
                .remedy("modprobe overlay; a kernel without it: snapshotter = \"native\" in /etc/containerd/config.toml (slow, large)"),
        );
    }
    let missing: Vec<&str> = ["bridge", "veth"].into_iter().filter(|name| known && !has(name)).collect();
    if !missing.is_empty() {
        let missing = missing.join(" and ");
        findings.push(
            Finding::warning(CHECK, format!("kernel {release} has no {missing}"))
                .why("pods can only use the host's network (hostNetwork: true)")
                .remedy(format!("install the kernel's modules package, then: modprobe {missing}")),
        );
    }
    findings
}

pub fn swap(host: &Host) -> Vec<Finding> {
    let table = host.read("proc/swaps");
    let areas: Vec<&str> = table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    // Compressed memory is not a slow disk.
    let on_disk: Vec<&str> = areas.into_iter().filter(|area| !area.contains("/zram")).collect();
    if on_disk.is_empty() {
        return Vec::new();
    }
    let service = match host.exists("etc/dphys-swapfile") {
        true => "systemctl disable --now dphys-swapfile",
        false => "swapoff -a, and take the swap lines out of /etc/fstab",
    };
    let finding = Finding::warning("swap", format!("swap is on ({})", on_disk.join(", ")))
        .why("a pod that swaps is slow instead of ended, wears an SD card out, and memory pressure is seen late")
        .remedy(service);
    vec![finding]
}

pub fn disks(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    for disk in &host.asked.disks {
        let mb = disk.free / MIB;
        let what = format!("{mb} MiB free for {} ({})", disk.holds, disk.path.display());
        let low = DISK_WARNING_BYTES.min(disk.total / 10);
        let level = match disk.free {
            free if free < DISK_ERROR_BYTES => Finding::error("disk-space", what),
            free if free < low => Finding::warning("disk-space", what),
            _ => continue,
        };
        findings.push(
            level
                .why("images are removed and pods evicted until there is room again")
                .remedy("make room (journalctl --vacuum-size=50M; apt clean; ctr -n k8s.io images ls), or use a larger disk"),
        );
    }
    findings
}

pub fn clock(host: &Host) -> Vec<Finding> {
    const CHECK: &str = "clock";
    const WHY: &str = "certificates look expired or not yet valid, and the cloud refuses the node";
    let now = host.asked.now_s;
    let remedy = |to: u64| format!("timedatectl set-ntp true; by hand: date -u -s '{}'", pki::format_utc(to));
    let told = host.asked.reached.iter().find_map(|reach| reach.result.as_ref().ok().copied().flatten());
    if let Some(cloud) = told {
        let off = now.abs_diff(cloud);
        let side = if now < cloud { "behind" } else { "ahead of" };
        let what = format!("the clock is {off} s {side} the cloud's ({})", pki::format_utc(now));
        return match off {
            off if off > CLOCK_ERROR_S => vec![Finding::error(CHECK, what).why(WHY).remedy(remedy(cloud))],
            off if off > CLOCK_WARNING_S => {
                vec![Finding::warning(CHECK, what).why(WHY).remedy(remedy(cloud))]
            }
            _ => Vec::new(),
        };
    }
    if now < RELEASED_S {
        let what = format!("the clock says {}, before this program was made", pki::format_utc(now));
        return vec![Finding::error(CHECK, what).why(WHY).remedy(remedy(RELEASED_S))];
    }
    let bundle = Credentials::new(&host.cfg.modules.edge_hub).load().ok();
    let Some(validity) =
        bundle.and_then(|b| pki::CertInfo::parse(&b.cert_der).ok()).map(|cert| cert.validity)
    else {
        return Vec::new();
    };
    if now < validity.not_before {
        let what = format!("the clock says {}, before the node's certificate begins", pki::format_utc(now));
        return vec![Finding::error(CHECK, what).why(WHY).remedy(remedy(validity.not_before))];
    }
    if now > validity.not_after {
        let what = format!("the node's certificate ended {}", pki::format_utc(validity.not_after));
        let finding = Finding::error("certificate", what)
            .why("the cloud refuses the node")
            .remedy("if the clock is right: edgecore join again with a new token (cloudcore token)");
        return vec![finding];
    }
    Vec::new()
}
