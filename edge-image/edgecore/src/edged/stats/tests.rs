use std::{fs, path::Path};

use super::{cgroup::*, disk, network, node, *};
use crate::edged::cgroup::{CgroupConfig, Driver};

const ID: &str = "4f1c4ed1d8c6b4b0a3b7d8e9f0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3";

fn groups(mount: &Path, driver: Driver, root: &str) -> Cgroups {
    Cgroups::new(&CgroupConfig { mount: mount.into(), driver, root: root.into(), ..CgroupConfig::default() })
}

fn write(root: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

#[test]
fn figures_of_a_v1_group() {
    let dir = tempfile::tempdir().unwrap();
    let pod = "kubepods/burstable/pod0a1b-22";
    let at = |controller: &str, file: &str| format!("{controller}/{pod}/{ID}/{file}");
    let stat = "cache 1\nrss 2\ntotal_cache 4096000\ntotal_rss 1024000\ntotal_mapped_file 8192\ntotal_swap 512\n\
                total_pgfault 900\ntotal_pgmajfault 9\ntotal_inactive_file 2048000\n";
    write(
        dir.path(),
        &[
            (&at("memory", "memory.usage_in_bytes"), "6000000\n"),
            (&at("memory", "memory.stat"), stat),
            (&at("memory", "memory.limit_in_bytes"), "9223372036854771712\n"),
            (&at("memory", "memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            (&at("memory", "cgroup.procs"), "4242\n4243\n"),
            (&at("cpuacct", "cpuacct.usage"), "123456789\n"),
            (&at("cpu", "cpu.stat"), "nr_periods 10\nnr_throttled 3\nthrottled_time 77\n"),
            (&at("pids", "pids.current"), "2\n"),
            (
                &at("blkio", "blkio.throttle.io_service_bytes"),
                "8:0 Read 10\n8:0 Write 20\n8:16 Read 5\nTotal 35\n",
            ),
            (&format!("memory/{pod}/memory.limit_in_bytes"), "67108864\n"),
        ],
    );
    let groups = groups(dir.path(), Driver::Cgroupfs, "");
    assert_eq!(groups.version(), Version::V1);
    let pods = groups.pods();
    let found = &pods["0a1b-22"];
    assert_eq!(found.path, Path::new(pod));
    let container = &found.containers[ID];
    let usage = groups.usage(container);
    let expected = Usage {
        cpu_ns: Some(123_456_789),
        cpu_periods: Some(10),
        cpu_throttled_periods: Some(3),
        cpu_throttled_ns: Some(77),
        memory: Some(6_000_000),
        working_set: Some(3_952_000),
        rss: Some(1_024_000),
        cache: Some(4_096_000),
        mapped_file: Some(8192),
        swap: Some(512),
        page_faults: Some(900),
        major_page_faults: Some(9),
        oom_kills: Some(3),
        processes: Some(2),
        read_bytes: Some(15),
        written_bytes: Some(20),
        ..Usage::default()
    };
    assert_eq!(usage, expected);
    assert_eq!(groups.process(container), Some(4242));
    assert_eq!(groups.usage(&found.path).memory_limit, Some(67_108_864));
    assert_eq!(groups.usage(Path::new("not/there")), Usage::default(), "unknown is not zero");
}

#[test]
fn figures_of_a_v2_group_made_by_systemd() {
    let dir = tempfile::tempdir().unwrap();
    let pod = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a1b_22.slice";
    let at = |file: &str| format!("{pod}/cri-containerd-{ID}.scope/{file}");
    write(
        dir.path(),
        &[
            ("cgroup.controllers", "cpu memory pids\n"),
            (&at("memory.current"), "6000000\n"),
            (&at("memory.max"), "max\n"),
            (&at("memory.events"), "low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n"),
            (&at("memory.swap.current"), "512\n"),
            (
                &at("memory.stat"),
                "anon 1024000\nfile 4096000\nfile_mapped 8192\ninactive_file 2048000\npgfault 900\npgmajfault 9\n",
            ),
            (
                &at("cpu.stat"),
                "usage_usec 123\nuser_usec 100\nsystem_usec 23\nnr_periods 10\nnr_throttled 3\nthrottled_usec 7\n",
            ),
            (&at("pids.current"), "2\n"),
            (
                &at("io.stat"),
                "8:0 rbytes=10 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=5 wbytes=0\n",
            ),
            ("kubepods.slice/kubepods-pod77.slice/memory.max", "67108864\n"),
        ],
    );
    let groups = groups(dir.path(), Driver::Systemd, "");
    assert_eq!(groups.version(), Version::V2);
    let pods = groups.pods();
    assert_eq!(pods.keys().collect::<Vec<_>>(), ["0a1b-22", "77"]);
    let usage = groups.usage(&pods["0a1b-22"].containers[ID]);
    assert_eq!((usage.cpu_ns, usage.cpu_user_ns), (Some(123_000), Some(100_000)));
    assert_eq!((usage.working_set, usage.rss, usage.swap), (Some(3_952_000), Some(1_024_000), Some(512)));
    assert_eq!((usage.memory_limit, usage.processes, usage.oom_kills), (None, Some(2), Some(1)));
    assert_eq!((usage.read_bytes, usage.written_bytes), (Some(15), Some(20)));
    assert_eq!(usage.cpu_throttled_ns, Some(7000));
    assert_eq!(groups.usage(&pods["77"].path).memory_limit, Some(67_108_864));
}

#[test]
fn groups_are_where_the_configuration_says() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        &[
            ("memory/kubepods/podother/memory.usage_in_bytes", "1\n"),
            ("memory/ours/kubepods/besteffort/pod7/memory.usage_in_bytes", "2\n"),
            (&format!("memory/flat/{ID}/memory.usage_in_bytes"), "3\n"),
        ],
    );
    let ours = groups(dir.path(), Driver::Cgroupfs, "/ours");
    assert_eq!(ours.pods().keys().collect::<Vec<_>>(), ["7"], "another agent's are not ours");
    let (top, _) = ours.all_pods().unwrap();
    assert_eq!(top, Path::new("ours/kubepods"));
    let flat = CgroupConfig {
        mount: dir.path().into(),
        root: "flat".into(),
        per_qos: false,
        ..CgroupConfig::default()
    };
    let pods = Cgroups::new(&flat).pods();
    assert_eq!(pods[""].containers[ID], Path::new("flat").join(ID));
}

#[test]
fn the_machine() {
    let memory = node::Memory::parse(
        "MemTotal:         436216 kB\nMemFree:  100000 kB\nInactive(file):    36216 kB\nAnonPages: 50 kB\n",
    )
    .unwrap();
    assert_eq!((memory.usage, memory.working_set), (336_216 * 1024, 300_000 * 1024));
    assert_eq!(memory.available(), 136_216 * 1024);
    assert_eq!(node::Memory::parse("MemTotal: x kB\n"), None);
    assert_eq!(node::parse_stat_cpu("cpu  100 1 20 5000 7 3 4 9 0 0\ncpu0 1\n"), Some(128 * 10_000_000));
    assert!(node::Memory::read().unwrap().working_set > 0);
    let before = node::cpu_ns().unwrap();
    assert!(node::cpu_ns().unwrap() >= before && before > 0);
    let (current, max) = node::processes().unwrap();
    assert!(0 < current && current < max);
    assert!(node::boot_time().unwrap() > 0);
}

#[test]
fn interfaces_without_loopback() {
    let text = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
        lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0\n  \
        eth0: 1234567    1000    1    2    0     0          0         0   765432     900    3    4    0     0       0          0\n";
    let all = network::parse_net_dev(text);
    assert_eq!(all.len(), 1);
    let eth0 = network::main_of(&all).unwrap();
    assert_eq!((eth0.rx_bytes, eth0.rx_errors, eth0.rx_dropped), (1_234_567, 1, 2));
    assert_eq!((eth0.tx_bytes, eth0.tx_packets, eth0.tx_dropped), (765_432, 900, 4));
}

#[test]
fn folders_are_counted_once_and_within_bounds() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("a/one", &"x".repeat(10_000)), ("b/two", "y")]);
    let before = disk::folder(dir.path(), 100);
    assert!(before.complete && before.bytes >= 10_000, "{before:?}");
    assert_eq!(before.inodes, 5, "two files and three folders");
    fs::hard_link(dir.path().join("a/one"), dir.path().join("b/same")).unwrap();
    std::os::unix::fs::symlink("/usr", dir.path().join("b/link")).unwrap();
    let after = disk::folder(dir.path(), 100);
    assert_eq!(after.inodes, 6, "a second name is no second file, a link is not followed");
    assert!(!disk::folder(dir.path(), 2).complete);
    assert_eq!(disk::folder(Path::new("/surely/not/there"), 9).bytes, 0);
    let system = disk::file_system(&dir.path().join("to/be/made")).unwrap();
    assert!(system.capacity >= system.available && system.capacity > 0);
}

#[test]
fn damaged_texts_are_no_figures() {
    let mut random = wire::link::Backoff::new(u64::MAX / 2, u64::MAX / 2, 21);
    let whole = "cpu  1 2 3 4\nMemTotal: 5 kB\nMemFree: 6 kB\neth0: 1 2 3 4 5 6 7 8 9 10 11 12\n8:0 Read 7\n8:0 rbytes=8 wbytes=9\ncache 1\n";
    for _ in 0..5_000 {
        let mut bytes = whole.as_bytes().to_vec();
        for _ in 0..=random.next_ms() % 4 {
            let at = random.next_ms() as usize % bytes.len();
            match random.next_ms() % 3 {
                0 => bytes[at] = random.next_ms() as u8,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, b'9'),
            }
        }
        fuzz_stats(&bytes);
    }
}
