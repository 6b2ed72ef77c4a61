//! Volumes on real files, below a folder of the test's own. Mounts need root, which these tests have.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
};

use serde_json::{Value, json};

use super::{atomic::write, sub_path::Wanted, *};

fn pod(spec: Value) -> Pod {
    let mut all = json!({ "containers": [{ "name": "c", "image": "i" }] });
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    let metadata = json!({ "name": "web", "namespace": "default", "uid": "u1" });
    Pod::parse(json!({ "metadata": metadata, "spec": all }).to_string().as_bytes()).unwrap()
}

struct Bench {
    dir: tempfile::TempDir,
    places: Places,
    record: Record,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { pods_dir: dir.path().join("pods"), run_dir: dir.path().join("run") };
        let record = Record { incarnation: "u1".into(), ..Record::default() };
        Bench { dir, places, record }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn set_up(&self, spec: Value) -> Result<PathBuf, VolumeError> {
        let pod = pod(spec);
        let volume = &pod.spec.volumes[0];
        self.places.set_up(&pod, &self.record, volume, &Claims::new(), 1 << 30)?;
        self.places.volume(&self.record, volume, &Claims::new())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Mounts of a test that failed.
        let _ = mounts::unmount_below(self.dir.path());
    }
}

fn file(path: &str, mode: u32, data: &str) -> File {
    File { path: path.into(), mode, data: data.into(), owner: None }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn host_paths_are_checked_in_kubelets_words() {
    let bench = Bench::new();
    let (dir, file, absent) = (bench.path("dir"), bench.path("file"), bench.path("absent"));
    fs::create_dir(&dir).unwrap();
    fs::write(&file, "").unwrap();
    let _socket = UnixListener::bind(bench.path("socket")).unwrap();
    let check = |path: &Path, kind: &str| {
        let path = path.display().to_string();
        let spec = json!({ "volumes": [{ "name": "v", "hostPath": { "path": path, "type": kind } }] });
        bench.set_up(spec).err().map(|error| set_up_failed("v", error))
    };
    let refusal = |path: &Path, what: &str| {
        let path = path.display();
        Some(format!(
            "MountVolume.SetUp failed for volume \"v\" : hostPath type check failed: {path} is not a {what}"
        ))
    };
    assert_eq!(check(&absent, ""), None, "the runtime makes it");
    for (kind, good, bad, what) in [
        ("Directory", &dir, &file, "directory"),
        ("DirectoryOrCreate", &dir, &file, "directory"),
        ("File", &file, &dir, "file"),
        ("FileOrCreate", &file, &dir, "file"),
        ("Socket", &bench.path("socket"), &file, "socket file"),
        ("CharDevice", &PathBuf::from("/dev/null"), &file, "character device"),
    ] {
        assert_eq!(check(good, kind), None, "{kind}");
        assert_eq!(check(bad, kind), refusal(bad, what), "{kind}");
    }
    for (kind, what) in [("Directory", "directory"), ("File", "file"), ("BlockDevice", "block device")] {
        assert_eq!(check(&absent, kind), refusal(&absent, what), "{kind}");
    }
    assert_eq!(check(&bench.path("a/b"), "DirectoryOrCreate"), None);
    assert_eq!(mode(&bench.path("a/b")), 0o755);
    assert_eq!(check(&bench.path("a/c"), "FileOrCreate"), None);
    assert_eq!(mode(&bench.path("a/c")), 0o644);
    assert!(check(&bench.path("x/y"), "FileOrCreate").unwrap().contains("No such file or directory"));
    assert!(check(&dir, "Floppy").unwrap().ends_with(": Floppy is an invalid volume type"));
    assert!(check(Path::new("/tmp/../etc"), "").unwrap().contains("must not contain \"..\""));
    assert!(check(Path::new("etc"), "").unwrap().contains("must be absolute"));
}

#[test]
fn types_that_are_not_offered_are_named_with_what_to_use() {
    let bench = Bench::new();
    for (source, words) in [
        (
            json!({ "csi": { "driver": "x" } }),
            "volume type csi is not supported on this node; use hostPath, or a PersistentVolume",
        ),
        (
            json!({ "nfs": { "server": "s", "path": "/" } }),
            "volume type nfs is not supported on this node; mount it on the node",
        ),
        (json!({ "ephemeral": {} }), "volume type ephemeral is not supported on this node; use emptyDir"),
        (
            json!({ "image": { "reference": "x" } }),
            "volume type image is not supported on this node; copy the files in an init container",
        ),
        (
            json!({ "emptyDir": { "medium": "HugePages" } }),
            "volume type emptyDir with medium HugePages is not supported",
        ),
    ] {
        let mut volume = source.clone();
        volume["name"] = json!("v");
        let error = bench.set_up(json!({ "volumes": [volume] })).unwrap_err();
        assert!(error.to_string().contains(words), "{source}: {error}");
    }
    let devices = json!({ "containers": [{ "name": "c", "image": "i", "volumeDevices": [{ "name": "v", "devicePath": "/dev/x" }] }] });
    let devices = pod(devices);
    let error = support::check_container(&devices, &devices.spec.containers[0]).unwrap_err();
    assert!(error.to_string().contains("volumeDevices of container \"c\" are not supported"), "{error}");
    let path = bench.set_up(json!({ "volumes": [{ "name": "v" }] })).unwrap();
    assert!(path.ends_with("kubernetes.io~empty-dir/v") && path.is_dir(), "no type means emptyDir");
}

#[test]
fn an_empty_dir_is_for_everybody_and_keeps_what_is_in_it() {
    let bench = Bench::new();
    let spec =
        json!({ "volumes": [{ "name": "v", "emptyDir": {} }], "securityContext": { "fsGroup": 2000 } });
    let path = bench.set_up(spec.clone()).unwrap();
    assert_eq!((mode(&path), fs::metadata(&path).unwrap().gid()), (0o2777, 2000));
    fs::write(path.join("kept"), "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    bench.set_up(spec).unwrap();
    assert_eq!(mode(&path), 0o700, "the pod's own choice");
    assert!(path.join("kept").exists());
}

#[test]
fn memory_is_bounded_and_unmounted_before_removal() {
    let bench = Bench::new();
    let spec =
        json!({ "volumes": [{ "name": "v", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }] });
    let path = bench.set_up(spec.clone()).unwrap();
    bench.set_up(spec).unwrap();
    let points = mounts::below(bench.dir.path()).unwrap();
    assert_eq!(points, std::slice::from_ref(&path), "mounted once");
    assert!(fs::write(path.join("big"), vec![0; 2 << 20]).is_err(), "over the limit");
    fs::remove_file(path.join("big")).unwrap();
    fs::write(path.join("small"), "x").unwrap();
    bench.places.clean_up(&bench.record).unwrap();
    assert!(!path.exists() && mounts::below(bench.dir.path()).unwrap().is_empty());
}

#[test]
fn the_smallest_bound_of_memory_holds() {
    let limited = |limit: &str| {
        json!({ "containers": [
        { "name": "a", "image": "i", "resources": { "limits": { "memory": limit } } },
        { "name": "b", "image": "i", "resources": { "limits": { "memory": "4Mi" } } },
    ] })
    };
    let own = |size: &str| EmptyDir { medium: "Memory".into(), size_limit: size.into() };
    const MI: u64 = 1 << 20;
    for (spec, size, expected) in [
        (json!({}), "", 64 * MI),
        (json!({}), "1Mi", MI),
        (json!({}), "1Gi", 64 * MI),
        (limited("2Mi"), "", 6 * MI),
        (limited("2Mi"), "5Mi", 5 * MI),
        (limited("2Mi"), "7Mi", 6 * MI),
        (limited("0"), "", 64 * MI),
    ] {
        assert_eq!(memory_bytes_max(&own(size), &pod(spec.clone()), 64 << 20), expected, "{spec} {size}");
    }
}

#[test]
fn files_change_in_one_moment_and_unchanged_ones_are_not_written() {
    let bench = Bench::new();
    let dir = bench.path("v");
    let first = [file("a", 0o644, "1"), file("deep/er/b", 0o400, "2")];
    assert!(write(&dir, &first, None).unwrap());
    assert_eq!(fs::read_to_string(dir.join("deep/er/b")).unwrap(), "2");
    assert_eq!((mode(&dir), mode(&dir.join("a")), mode(&dir.join("deep/er/b"))), (0o777, 0o644, 0o400));
    assert_eq!(fs::read_link(dir.join("a")).unwrap(), Path::new("..data/a"));
    assert_eq!(fs::read_link(dir.join("deep")).unwrap(), Path::new("..data/deep"));
    let folder = fs::read_link(dir.join("..data")).unwrap();
    assert!(folder.to_str().unwrap().starts_with("..20"), "{folder:?}");
    assert!(!write(&dir, &first, None).unwrap());
    assert_eq!(fs::read_link(dir.join("..data")).unwrap(), folder, "nothing changed, nothing moved");

    // A reader that opened the folder before the change sees the old files to the end.
    let second = [file("a", 0o600, "3"), file("c", 0o644, "")];
    assert!(write(&dir, &second, None).unwrap());
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
    assert!(
        dir.join("c").exists() && fs::symlink_metadata(dir.join("deep")).is_err(),
        "the link of a lost key goes"
    );
    assert!(!dir.join(&folder).exists(), "the old folder goes");
    assert!(write(&dir, &[file("a", 0o640, "3"), file("c", 0o644, "")], None).unwrap(), "a mode is a change");
    assert!(write(&dir, &[], None).unwrap());
    assert_eq!(fs::read_dir(dir.join("..data")).unwrap().count(), 0);
    for bad in ["", "/etc/passwd", "../x", "a/../../x", "..data", "..x"] {
        assert!(matches!(write(&dir, &[file(bad, 0o644, "")], None), Err(VolumeError::FileName(_))), "{bad}");
    }
}

#[test]
fn half_written_folders_are_repaired() {
    let bench = Bench::new();
    let dir = bench.path("v");
    let files = [file("a", 0o644, "content"), file("b", 0o600, "more")];
    write(&dir, &files, None).unwrap();
    // What a power cut leaves: files without their content, a folder that was never linked, a link that was never moved.
    fs::write(dir.join("..data/a"), "").unwrap();
    fs::create_dir(dir.join("..2026_01_01_00_00_00.1")).unwrap();
    symlink("..2026_01_01_00_00_00.1", dir.join("..data_tmp")).unwrap();
    assert!(write(&dir, &files, None).unwrap());
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "content");
    let hidden = |entry: &fs::DirEntry| entry.file_name().to_str().unwrap().starts_with("..");
    assert_eq!(fs::read_dir(&dir).unwrap().flatten().filter(hidden).count(), 2, "..data and its folder");
    fs::remove_file(dir.join("..data")).unwrap();
    assert!(write(&dir, &files, None).unwrap(), "no link at all");
    fs::remove_file(dir.join("b")).unwrap();
    assert!(!write(&dir, &files, None).unwrap());
    assert!(dir.join("b").exists(), "a lost link comes back");
}

#[test]
fn a_group_reads_what_it_should() {
    let bench = Bench::new();
    let dir = bench.path("v");
    let token = File { owner: Some(1000), ..file("token", 0o600, "t") };
    let files = [token.clone(), file("sub/x", 0o644, "x")];
    write(&dir, &files, Some(3000)).unwrap();
    let of = |name: &str| {
        let metadata = fs::metadata(dir.join(name)).unwrap();
        (metadata.permissions().mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    assert_eq!(of("token"), (0o640, 1000, 3000));
    assert_eq!(of("sub/x"), (0o644, 0, 3000));
    assert_eq!(of("sub"), (0o2755, 0, 3000));
    assert_eq!(of("."), (0o2777, 0, 3000));
    assert!(!write(&dir, &files, Some(3000)).unwrap());
    let alone = bench.path("w");
    write(&alone, &[token], None).unwrap();
    assert_eq!(mode(&alone.join("token")), 0o600);
}

#[test]
fn a_local_volume_is_given_to_the_group_unless_it_is_so() {
    let bench = Bench::new();
    let path = bench.path("disk");
    fs::create_dir_all(path.join("sub")).unwrap();
    fs::write(path.join("sub/f"), "").unwrap();
    fs::set_permissions(path.join("sub/f"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("/etc/passwd", path.join("link")).unwrap();
    let before = fs::metadata("/etc/passwd").unwrap();
    let local =
        LocalVolume { name: "pv".into(), path: path.clone(), source: claim::Source::Local, read_only: false };
    let with =
        |policy: &str| pod(json!({ "securityContext": { "fsGroup": 3000, "fsGroupChangePolicy": policy } }));
    local.set_up(&with("Always")).unwrap();
    assert_eq!((mode(&path), mode(&path.join("sub")), mode(&path.join("sub/f"))), (0o2775, 0o2775, 0o660));
    assert_eq!(fs::metadata(path.join("sub/f")).unwrap().gid(), 3000);
    let after = fs::metadata("/etc/passwd").unwrap();
    assert_eq!((before.gid(), before.mode()), (after.gid(), after.mode()), "links are not followed");
    fs::set_permissions(path.join("sub/f"), fs::Permissions::from_mode(0o600)).unwrap();
    local.set_up(&with("OnRootMismatch")).unwrap();
    assert_eq!(mode(&path.join("sub/f")), 0o600, "the root matches");
    local.set_up(&with("Always")).unwrap();
    assert_eq!(mode(&path.join("sub/f")), 0o660);
    let absent = LocalVolume { path: bench.path("absent"), ..local };
    let error = absent.set_up(&pod(json!({}))).unwrap_err();
    assert_eq!(error.to_string(), format!("path \"{}\" does not exist", bench.path("absent").display()));
}

fn wanted(sub_path: &str) -> Wanted<'_> {
    Wanted { volume: "v", container: "c", sub_path }
}

#[test]
fn a_sub_path_stays_in_its_volume() {
    let bench = Bench::new();
    let (base, outside, target) = (bench.path("v"), bench.path("outside"), bench.path("bound"));
    fs::create_dir_all(base.join("dir")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "s").unwrap();
    fs::write(base.join("dir/file"), "f").unwrap();
    symlink(&outside, base.join("escape")).unwrap();
    symlink("dir", base.join("inside")).unwrap();
    symlink("../outside/secret", base.join("up")).unwrap();
    for bad in ["escape", "escape/secret", "escape/new", "up"] {
        let error = wanted(bad).bind(&base, &target).unwrap_err().to_string();
        assert!(error.contains("of container \"c\""), "{bad}: {error}");
        assert!(!mounts::is_mount_point(&target) && !outside.join("new").exists(), "{bad}");
    }
    assert!(
        wanted("/etc").bind(&base, &target).unwrap_err().to_string().contains("must not be an absolute path")
    );
    assert!(
        wanted("dir/../..").bind(&base, &target).unwrap_err().to_string().contains("must not contain '..'")
    );

    wanted("inside/file").bind(&base, &target).unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "f", "a link inside the volume is fine");
    wanted("inside/file").bind(&base, &target).unwrap();
    assert_eq!(mounts::below(&target).unwrap().len(), 1, "bound once");
    // Replaced in the volume: a container that starts now gets the new one, whatever it is.
    fs::remove_file(base.join("dir/file")).unwrap();
    fs::create_dir(base.join("dir/file")).unwrap();
    fs::write(base.join("dir/file/x"), "x").unwrap();
    wanted("inside/file").bind(&base, &target).unwrap();
    assert_eq!(fs::read_to_string(target.join("x")).unwrap(), "x");

    fs::set_permissions(&base, fs::Permissions::from_mode(0o2777)).unwrap();
    wanted("new/deep").bind(&base, &bench.path("other")).unwrap();
    assert_eq!(mode(&base.join("new/deep")), 0o2777, "made with the volume's mode");
    mounts::remove_tree(&target).unwrap();
    assert!(base.join("dir/file/x").exists(), "what is bound is not removed");
}

#[test]
fn a_link_that_is_swapped_in_after_the_bind_changes_nothing() {
    let bench = Bench::new();
    let (base, target) = (bench.path("v"), bench.path("bound"));
    fs::create_dir_all(base.join("dir")).unwrap();
    fs::write(base.join("dir/mine"), "").unwrap();
    wanted("dir").bind(&base, &target).unwrap();
    fs::rename(base.join("dir"), base.join("away")).unwrap();
    symlink("/etc", base.join("dir")).unwrap();
    assert!(target.join("mine").exists() && !target.join("passwd").exists());
    assert!(wanted("dir").bind(&base, &target).is_err());
}

#[test]
fn a_sub_path_of_a_config_map_does_not_follow_updates_and_the_volume_does() {
    let bench = Bench::new();
    let (dir, target) = (bench.path("v"), bench.path("bound"));
    write(&dir, &[file("a", 0o644, "old")], None).unwrap();
    wanted("a").bind(&dir, &target).unwrap();
    write(&dir, &[file("a", 0o644, "new")], None).unwrap();
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    assert_eq!((read(&dir.join("a")), read(&target)), ("new".into(), "old".into()));
    wanted("a").bind(&dir, &target).unwrap();
    assert_eq!(read(&target), "new", "a container that starts again");
}

#[test]
fn sub_path_expressions() {
    let mount = |expr: &str| VolumeMount { sub_path_expr: expr.into(), ..VolumeMount::default() };
    let env = [("NAME".to_string(), "web-0".to_string()), ("EMPTY".to_string(), String::new())];
    assert_eq!(sub_path_of(&mount("logs/$(NAME)"), &env).unwrap(), "logs/web-0");
    assert_eq!(sub_path_of(&mount("$$(NAME)"), &env).unwrap(), "$(NAME)");
    let error = sub_path_of(&mount("$(EMPTY)/$(NONE)"), &env).unwrap_err();
    assert_eq!(error.to_string(), "missing value for EMPTY, NONE");
}

#[test]
fn pods_that_are_gone_are_cleaned_and_never_through_a_mount() {
    let bench = Bench::new();
    let shared = bench.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("precious"), "").unwrap();
    for pod in ["gone", "here"] {
        let at = bench.places.pods_dir.join(pod).join("volume-subpaths/v/c/0");
        Wanted { volume: "v", container: "c", sub_path: "." }.bind(&shared, &at).unwrap();
        fs::create_dir_all(bench.places.run_dir.join(pod)).unwrap();
    }
    let problems = bench.places.clean_orphans(|name| name == "here");
    assert!(problems.is_empty(), "{problems:?}");
    assert!(shared.join("precious").exists());
    for (dir, left) in [(&bench.places.pods_dir, true), (&bench.places.run_dir, true)] {
        assert!(!dir.join("gone").exists() && dir.join("here").exists() == left);
    }
    // In use: named, left alone, and removed once it is free.
    let at = bench.places.pods_dir.join("here/volume-subpaths/v/c/0");
    let held = fs::File::open(at.join("precious")).unwrap();
    let problems = bench.places.clean_orphans(|_| false);
    assert!(problems[0].to_string().contains("cannot unmount"), "{problems:?}");
    assert!(shared.join("precious").exists());
    drop(held);
    assert!(bench.places.clean_orphans(|_| false).is_empty());
    assert!(!bench.places.pods_dir.join("here").exists() && shared.join("precious").exists());
}

#[test]
fn mount_points_with_blanks_are_read() {
    let text = b"22 27 0:21 / /proc rw - proc proc rw\n23 27 0:22 / /a\\040b/c\\134d rw\nshort\n\n";
    let points = mounts::mount_points(text);
    assert_eq!(points, [PathBuf::from("/proc"), PathBuf::from("/a b/c\\d")]);
    assert_eq!(mounts::mount_points(b"1 2 3 4 \\04 \\"), [PathBuf::from("\\04")]);
}

#[test]
fn hosts_files_are_kubelets() {
    let ips = ["10.78.0.5".to_string()];
    let alias = json!([{ "ip": "192.0.2.7", "hostnames": ["a.lan", "b.lan"] }]);
    let own = pod(json!({ "hostAliases": alias, "hostname": "db-0", "subdomain": "db" }));
    let text = hosts::render(&own, "db.default.svc.cluster.local", &ips, "ignored");
    assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{text}");
    assert!(text.contains("\n10.78.0.5\tdb-0.db.default.svc.cluster.local\tdb-0\n"), "{text}");
    assert!(text.ends_with("\n# Entries added by HostAliases.\n192.0.2.7\ta.lan\tb.lan\n"), "{text}");
    let host = pod(json!({ "hostNetwork": true, "hostAliases": alias }));
    let text = hosts::render(&host, "", &ips, "127.0.0.1 localhost\n");
    assert!(
        text.starts_with(
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n\n# Entries added"
        ),
        "{text}"
    );
    assert!(hosts::render(&pod(json!({})), "", &ips, "").ends_with("\n10.78.0.5\tweb\n"));
}
