//! Removes the control groups of a pod that is gone: the runtime removes those of containers, and leaves the pod's own.

use std::{fs, path::Path};

const ROOT: &str = "/sys/fs/cgroup";

/// Only empty groups can be removed, so this cannot hurt a pod that runs. What stays costs a few kB of kernel memory.
pub fn remove(incarnation: &str) {
    let name = format!("pod{incarnation}");
    let slice = format!("pod{}.slice", incarnation.replace('-', "_"));
    // cgroup v2 has one tree, v1 one per controller.
    let mut trees = vec![Path::new(ROOT).to_path_buf()];
    trees.extend(fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path()));
    for tree in trees {
        for parent in ["kubepods", "kubepods/burstable", "kubepods/besteffort"] {
            let _ = fs::remove_dir(tree.join(parent).join(&name));
        }
        for class in ["", "burstable-", "besteffort-"] {
            let parent = match class {
                "" => "kubepods.slice".to_string(),
                class => format!("kubepods.slice/kubepods-{}.slice", class.trim_end_matches('-')),
            };
            let _ = fs::remove_dir(tree.join(parent).join(format!("kubepods-{class}{slice}")));
        }
    }
}
