//! Faults that a test builds into a program, to see that the end-to-end test notices them.
//!
//! They exist at compile time only: `KINGLET_FAULT=drop-ack cargo build -p edgecore`. Every other build has none, and the
//! compiler removes the branches. Known: `drop-ack` (edgecore acknowledges no pushed object), `no-fsync` (the store never syncs).

const BUILT_IN: Option<&str> = option_env!("KINGLET_FAULT");

/// Was this fault built in?
pub const fn is(name: &str) -> bool {
    match BUILT_IN {
        Some(fault) => equal(fault.as_bytes(), name.as_bytes()),
        None => false,
    }
}

/// `==` of strings is not const.
const fn equal(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normal_build_has_no_fault() {
        assert_eq!(BUILT_IN, None, "KINGLET_FAULT is set: unset it and build again");
        assert!(!is("drop-ack") && !is("no-fsync") && !is(""));
    }

    #[test]
    fn a_fault_is_known_by_its_whole_name() {
        assert!(equal(b"no-fsync", b"no-fsync"));
        assert!(!equal(b"no-fsync", b"no-fsynd") && !equal(b"no-fsync", b"no-fsyn"));
    }
}
