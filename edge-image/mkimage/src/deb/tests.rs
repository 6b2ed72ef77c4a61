//! Packages in the hands of the real dpkg, on roots of their own.

use std::process::Command;

use super::*;

fn package(dir: &Path, version: &str) -> Package {
    let program = dir.join("program");
    fs::write(&program, "#!/bin/sh\n").unwrap();
    let texts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deb");
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let parts = Node {
        texts,
        version: version.into(),
        arch: arch.into(),
        edgecore: program.clone(),
        mapper: program.clone(),
        pause: program,
    };
    node(&parts).unwrap()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let ran = Command::new(program).args(arguments).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{program} {arguments:?}: {text}");
    text
}

fn has_dpkg() -> bool {
    crate::find_program("dpkg").is_some() && crate::find_program("dpkg-deb").is_some()
}

/// Paths below a root that are files, but for dpkg's own.
fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    found.retain(|path| !path.starts_with("var/lib/dpkg") && !path.starts_with("var/log"));
    found.sort();
    found
}

#[test]
fn sums_are_md5() {
    assert_eq!(md5_hex(b""), "d41d8cd98f00b204e9800998ecf8427e");
    assert_eq!(md5_hex(b"message digest"), "f96b697d7cb7938d525a2f31aaf161d0");
    for (length, sum) in [
        (55, "ef1772b6dff9a122358552954ad0df65"),
        (63, "b06521f39153d618550606be297466d5"),
        (56, "3b0c8ac703f828b04c6c197006d17218"),
        (64, "014842d480b571495a4a0363793f7367"),
    ] {
        assert_eq!(md5_hex("a".repeat(length).as_bytes()), sum, "{length}");
    }
}

#[test]
fn dpkg_reads_what_is_written() {
    if !has_dpkg() {
        return println!("NOT RUN dpkg_reads_what_is_written: needs dpkg");
    }
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path(), "0.1.0");
    let (deb, again) = (dir.path().join(package.file_name()), dir.path().join("again.deb"));
    write(&package, &deb).unwrap();
    write(&package, &again).unwrap();
    assert_eq!(fs::read(&deb).unwrap(), fs::read(&again).unwrap(), "the same bytes each time");
    let info = run("dpkg-deb", &["--info", deb.to_str().unwrap()]);
    for part in
        ["Package: kinglet-edgecore", "Version: 0.1.0", "Recommends: containerd", "postinst", "conffiles"]
    {
        assert!(info.contains(part), "{part:?} is not in\n{info}");
    }
    let contents = run("dpkg-deb", &["--contents", deb.to_str().unwrap()]);
    assert!(
        contents.contains("-rwxr-xr-x root/root") && contents.contains("./usr/bin/edgecore"),
        "{contents}"
    );
    for script in ["postinst", "prerm", "postrm"] {
        run(
            "sh",
            &["-n", Path::new(env!("CARGO_MANIFEST_DIR")).join("../deb").join(script).to_str().unwrap()],
        );
    }
}

#[test]
fn a_package_is_installed_upgraded_and_purged_without_a_trace() {
    let root = nix_is_root();
    if !has_dpkg() || !root {
        return println!(
            "NOT RUN a_package_is_installed_upgraded_and_purged_without_a_trace: needs dpkg and root"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
    fs::create_dir_all(root.join("var/lib/dpkg/updates")).unwrap();
    for file in ["status", "available"] {
        fs::write(root.join("var/lib/dpkg").join(file), "").unwrap();
    }
    let dpkg = |arguments: &[&str]| {
        let of_root = format!("--root={}", root.display());
        // The scripts run on this machine, with DPKG_ROOT.
        let all = [&[of_root.as_str(), "--force-script-chrootless", "--force-confold"], arguments].concat();
        run("dpkg", &all)
    };
    let deb = |version: &str| {
        let package = package(dir.path(), version);
        let deb = dir.path().join(package.file_name());
        write(&package, &deb).unwrap();
        deb
    };
    let first = deb("0.1.0");
    dpkg(&["-i", first.to_str().unwrap()]);
    let installed = files(&root);
    assert!(
        installed.contains(&"usr/lib/systemd/system/kinglet-edgecore.service".to_owned()),
        "{installed:?}"
    );
    assert!(
        !installed.iter().any(|path| path.contains(".wants/")),
        "nothing starts before the node has joined"
    );

    // What join writes, and what an administrator changed.
    for (path, text) in [
        ("etc/kubeedge/config/edgecore.yaml", "# Written by `edgecore join`.\n"),
        ("etc/kubeedge/certs/node.pem", "secret"),
        ("etc/kubeedge/certs/node.pem.previous", "secret"),
        ("var/lib/kubeedge/store/store.log", "log"),
        ("var/lib/kubeedge/mqtt/sessions.log", "log"),
        ("etc/default/kinglet", "KINGLET_LOG=debug\n"),
    ] {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), text).unwrap();
    }
    let second = deb("0.2.0");
    dpkg(&["-i", second.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(root.join("etc/default/kinglet")).unwrap(), "KINGLET_LOG=debug\n", "kept");
    assert!(root.join("var/lib/kubeedge/store/store.log").exists());
    dpkg(&["--remove", "kinglet-edgecore"]);
    assert!(root.join("etc/kubeedge/certs/node.pem").exists(), "removal keeps what a purge removes");
    assert!(!root.join("usr/bin/edgecore").exists());
    dpkg(&["--purge", "kinglet-edgecore"]);
    assert_eq!(files(&root), Vec::<String>::new());
    assert!(!root.join("etc/kubeedge").exists() && !root.join("var/lib/kubeedge").exists());

    // A node that came from KubeEdge is not emptied.
    dpkg(&["-i", first.to_str().unwrap()]);
    for path in [
        "etc/kubeedge/config/edgecore.yaml",
        "var/lib/kubeedge/adopted/journal.json",
        "var/lib/kubeedge/edgecore.db",
    ] {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), "KubeEdge's").unwrap();
    }
    dpkg(&["--purge", "kinglet-edgecore"]);
    assert_eq!(files(&root).len(), 3);
}

#[test]
fn systemd_takes_the_units() {
    if crate::find_program("systemd-analyze").is_none() {
        return println!("NOT RUN systemd_takes_the_units: needs systemd-analyze");
    }
    let dir = tempfile::tempdir().unwrap();
    let texts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deb");
    for unit in ["kinglet-edgecore.service", "kinglet-line-holder.service", "kinglet-mapper.service"] {
        // The programs are not installed here; everything else is judged.
        let text = fs::read_to_string(texts.join(unit)).unwrap();
        let text = text.replace("/usr/bin/edgecore", "/bin/true").replace("/usr/bin/mapper", "/bin/true");
        fs::write(dir.path().join(unit), text).unwrap();
    }
    let path = dir.path().join("kinglet-edgecore.service");
    let ran = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(&path)
        .arg(dir.path().join("kinglet-line-holder.service"))
        .arg(dir.path().join("kinglet-mapper.service"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("kinglet-")).collect();
    assert!(ours.is_empty(), "{said}");
}

fn nix_is_root() -> bool {
    run("id", &["-u"]).trim() == "0"
}
