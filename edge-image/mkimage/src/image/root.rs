//! What lies in the root and in the initramfs.

use anyhow::{Context, Result, bail, ensure};
use board_spec::Board;

use super::{Options, Unpacked, libraries, module_index};
use crate::apt::lock::Lock;
use crate::elf;
use crate::modules::Module;
use crate::tools::Tools;
use crate::tree::{Node, Tree};

/// The directories that are one with those under usr/.
const MERGED: [(&str, &str); 3] = [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib")];
/// Where init looks for modules and their lists.
const MODULES: &str = "usr/lib/modules";

/// What a person at the console of a --dev image may call.
const APPLETS: [&str; 36] = [
    "sh", "cat", "ls", "ps", "ip", "mount", "umount", "dmesg", "df", "du", "free", "top", "grep", "head",
    "tail", "less", "vi", "sed", "awk", "find", "cp", "mv", "rm", "mkdir", "ln", "echo", "sleep", "kill",
    "date", "hexdump", "nc", "wget", "ping", "unshare", "nsenter", "uptime",
];

pub(super) fn gather(
    options: &Options,
    board: &Board,
    lock: &Lock,
    packages: &[Unpacked],
    tools: &Tools,
    epoch: u64,
) -> Result<(Tree, Tree)> {
    let mut root = Tree::default();
    for (link, target) in MERGED {
        root.add(target, Node::Dir, "layout");
        root.add(link, Node::Link(target.to_owned()), "layout");
    }
    for dir in &board.base.dirs {
        root.add(dir, Node::Dir, "layout");
    }
    root.add_dir(&options.source_dir.join("edge-image/rootfs"), "edge-image/rootfs")?;
    for (package, spec) in packages.iter().zip(board.packages(options.dev)) {
        ensure!(
            lock.resolve_name(&spec.name) == package.chosen.deb.name,
            "packages and their descriptions are out of step"
        );
        for file in &spec.files {
            let from = package.dir.join(file);
            ensure!(
                from.exists(),
                "{} {} has no {file}: correct board/*.toml",
                package.chosen.deb.name,
                package.chosen.deb.version
            );
            root.add(file, Node::Copy(from, 0o755), &package.origin());
        }
    }
    if options.dev {
        for applet in APPLETS {
            root.add(&format!("usr/bin/{applet}"), Node::Link("busybox".to_owned()), "layout");
        }
    }
    programs(options, &mut root)?;
    let sources: Vec<&Unpacked> = packages
        .iter()
        .zip(board.packages(options.dev))
        .filter(|(_, spec)| spec.libraries)
        .map(|(package, _)| package)
        .collect();
    libraries::add(&mut root, &sources)?;

    let (index, origin) = module_index(options, lock, packages, tools)?;
    let early = index.closure(&board.modules(|modules| &modules.initramfs))?;
    let load = index.closure(&board.modules(|modules| &modules.load))?;
    let on_demand = index.closure(&board.modules(|modules| &modules.on_demand))?;
    add_root_modules(&mut root, &load, &on_demand, &origin);
    root.add(
        "etc/kinglet/release.toml",
        Node::Bytes(release(options, board, lock, epoch).into_bytes(), 0o644),
        "mkimage",
    );
    // What `kubectl get nodes -o wide` shows as the OS image.
    let version = env!("CARGO_PKG_VERSION");
    let about =
        format!("NAME=Kinglet\nID=kinglet\nVERSION_ID={version}\nPRETTY_NAME=\"Kinglet {version}\"\n");
    root.add("etc/os-release", Node::Bytes(about.into_bytes(), 0o644), "mkimage");

    Ok((root, initramfs(options, &early, &origin)))
}

fn release(options: &Options, board: &Board, lock: &Lock, epoch: u64) -> String {
    format!(
        "name = \"kinglet\"\nversion = \"{}\"\nboard = \"{}\"\nkernel = \"{}\"\nepoch = {epoch}\ndev = {}\n",
        env!("CARGO_PKG_VERSION"),
        board.own.name,
        lock.kernel,
        options.dev
    )
}

fn programs(options: &Options, root: &mut Tree) -> Result<()> {
    let origin = concat!("kinglet ", env!("CARGO_PKG_VERSION"));
    let own = [
        ("usr/sbin/init", Some(&options.programs.init)),
        ("usr/bin/edgecore", options.programs.edgecore.as_ref()),
        ("usr/bin/mapper", options.programs.mapper.as_ref()),
    ];
    for (to, from) in own {
        let Some(from) = from else {
            eprintln!("note: no /{to} in this image");
            continue;
        };
        let found =
            elf::linkage(&std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?)
                .with_context(|| from.display().to_string())?;
        if found.interpreter.is_some() || !found.needed.is_empty() {
            bail!("{} is not static: build it with --target aarch64-unknown-linux-musl", from.display());
        }
        root.add(to, Node::Copy(from.clone(), 0o755), origin);
    }
    root.add("usr/share/kinglet/images", Node::Dir, "layout");
    for archive in &options.pod_images {
        let name =
            archive.file_name().and_then(|name| name.to_str()).context("a pod image has a file name")?;
        root.add(&format!("usr/share/kinglet/images/{name}"), Node::Copy(archive.clone(), 0o644), origin);
    }
    Ok(())
}

/// `modules.map`: name, path, dependencies; `modules.load`: names in order; `modules.alias`: which device wants which module.
fn add_root_modules(root: &mut Tree, load: &[Module], on_demand: &[Module], origin: &str) {
    let mut map = String::new();
    let mut aliases = String::new();
    let mut seen = std::collections::BTreeSet::new();
    for module in load.iter().chain(on_demand) {
        if !seen.insert(&module.name) {
            continue;
        }
        root.add(&format!("{MODULES}/{}", module.path), Node::Copy(module.file.clone(), 0o644), origin);
        map.push_str(&format!("{} {} {}\n", module.name, module.path, module.depends.join(",")));
        for alias in &module.aliases {
            aliases.push_str(&format!("{alias} {}\n", module.name));
        }
    }
    let names: String = load.iter().map(|module| format!("{}\n", module.name)).collect();
    for (name, text) in [("map", map), ("alias", aliases), ("load", names)] {
        root.add(&format!("{MODULES}/modules.{name}"), Node::Bytes(text.into_bytes(), 0o644), "mkimage");
    }
}

fn initramfs(options: &Options, early: &[Module], origin: &str) -> Tree {
    let mut tree = Tree::default();
    for dir in ["dev", "proc", "sys", "root", "modules"] {
        tree.add(dir, Node::Dir, "layout");
    }
    // The kernel opens it for init's first words; it mounts no /dev by itself.
    tree.add("dev/console", Node::Device(5, 1), "layout");
    tree.add("init", Node::Copy(options.programs.init.clone(), 0o755), "kinglet");
    let mut list = String::new();
    for module in early {
        tree.add(&format!("modules/{}.ko", module.name), Node::Copy(module.file.clone(), 0o644), origin);
        list.push_str(&format!("{}.ko\n", module.name));
    }
    tree.add("modules/load", Node::Bytes(list.into_bytes(), 0o644), "mkimage");
    tree
}
