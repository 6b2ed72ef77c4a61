//! File descriptors: one per node, and a process usually starts with 1,024.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What cloudcore has open beside its nodes, roughly.
const BESIDE: u64 = 256;

/// Takes as many descriptors as the system allows; says so where these are too few for `nodes`.
pub fn raise(nodes: usize) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let raised = soft >= hard || setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let most = if raised { hard } else { soft };
    if let Some(line) = too_few(most, nodes) {
        tracing::warn!("{line}");
    }
}

fn too_few(descriptors: u64, nodes: usize) -> Option<String> {
    let wanted = nodes as u64 + BESIDE;
    (descriptors < wanted).then(|| {
        format!(
            "{descriptors} file descriptors are not enough for {nodes} nodes (cloudHub.nodeLimit): raise the limit to {wanted} \
             (LimitNOFILE of a systemd unit, `ulimit -n`), else nodes beyond it wait until others go"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_are_named_with_the_number_that_is_needed() {
        assert_eq!(too_few(20_000, 1_000), None);
        assert!(too_few(1_024, 1_000).unwrap().contains("1256"));
    }

    #[test]
    fn the_limit_is_raised_to_what_the_system_allows() {
        raise(1);
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
    }
}
