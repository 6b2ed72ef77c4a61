//! Programs that tests talk to.

use std::path::{Path, PathBuf};

/// `KINGLET_KUBECTL`, or the kubectl among the tools that `cargo xtask` fetched.
pub fn kubectl() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("KINGLET_KUBECTL").map(PathBuf::from) {
        return path.is_file().then_some(path);
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let mut folders = vec![tools];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.ends_with("bin/kubectl") && path.is_file() {
                return Some(path);
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            }
        }
    }
    None
}
