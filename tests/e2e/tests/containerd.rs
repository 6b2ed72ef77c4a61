//! The harness itself: a containerd of one's own starts, survives its own restart, and ends without a trace.

use e2e::containerd::{Containerd, missing, not_run};

#[test]
fn a_private_containerd_starts_restarts_and_ends() {
    if let Some(why) = missing() {
        return not_run("a_private_containerd_starts_restarts_and_ends", &why);
    }
    let mut containerd = Containerd::start().unwrap();
    let first = containerd.processes("containerd").unwrap();
    assert_eq!(first.len(), 1);
    containerd.restart_daemon().unwrap();
    let second = containerd.processes("containerd").unwrap();
    assert_ne!(first, second);
    containerd.power_cut().unwrap();
    assert!(
        !std::path::Path::new(&format!("/proc/{}", second[0])).exists(),
        "PID 1's death takes all with it"
    );
    let dir = containerd.dir().to_owned();
    drop(containerd);
    assert!(!dir.exists(), "nothing is left mounted in {}", dir.display());
}
