//! A job's check items: how busy the node is, with KubeEdge's limits (`edge/pkg/taskmanager/actions/pre_check.go`).

use std::{path::Path, time::Duration};

use crate::capacity::{disk, meminfo_kib};

const PERCENT_MAX: u64 = 80;
const PROCESSOR_LOOK: Duration = Duration::from_millis(100);

/// The first item that does not hold.
pub async fn check(items: &[String]) -> Result<(), String> {
    for item in items {
        let (name, percent) = match item.as_str() {
            "cpu" => ("cpu", processor().await),
            "mem" => ("mem", memory()),
            "disk" => ("disk", root_disk()),
            other => return Err(format!("check item {other} is not known; use cpu, mem or disk")),
        };
        if percent > PERCENT_MAX {
            return Err(format!(
                "current {name} usage is {percent} %, which exceeds the maximum allowed usage {PERCENT_MAX} %"
            ));
        }
    }
    Ok(())
}

fn share(used: u64, of: u64) -> u64 {
    used.saturating_mul(100).checked_div(of).unwrap_or(0)
}

fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo_kib(&text, "MemTotal:");
    share(total.saturating_sub(meminfo_kib(&text, "MemAvailable:")), total)
}

fn root_disk() -> u64 {
    let (total, available) = disk(Path::new("/"));
    share(total.saturating_sub(available), total)
}

async fn processor() -> u64 {
    let look = || processor_times(&std::fs::read_to_string("/proc/stat").unwrap_or_default());
    let before = look();
    tokio::time::sleep(PROCESSOR_LOOK).await;
    let now = look();
    share(now.0.saturating_sub(before.0), now.1.saturating_sub(before.1))
}

/// Busy and all ticks of the first line of /proc/stat: idle and iowait are the fourth and fifth number.
fn processor_times(text: &str) -> (u64, u64) {
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    let all: u64 = ticks.iter().fold(0, |sum, n| sum.saturating_add(*n));
    let idle: u64 = ticks.iter().skip(3).take(2).fold(0, |sum, n| sum.saturating_add(*n));
    (all.saturating_sub(idle), all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn items_are_known_or_named() {
        assert_eq!(processor_times("cpu  10 0 10 70 10 0 0 0 5 5\ncpu0 ...\n"), (20, 100));
        assert_eq!(processor_times(""), (0, 0));
        assert_eq!((share(1, 0), share(81, 100)), (0, 81));
        assert!(check(&[]).await.is_ok());
        assert!(check(&["gpu".into()]).await.unwrap_err().contains("cpu, mem or disk"));
        assert!(memory() > 0);
    }
}
