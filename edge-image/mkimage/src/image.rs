//! A flashable image of a board, from packages and programs to `.img`.
//!
//! Order: choose and fetch packages, gather the root tree, pack it, make the initramfs, fill the partitions, describe the result.

mod libraries;
mod root;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use board_spec::{Board, Boot};
use serde_json::{Value, json};

use crate::apt::lock::{Chosen, Lock, Policy, Want};
use crate::apt::{Mirror, Root, Suite, unpack};
use crate::disk::MIB;
use crate::modules::Index;
use crate::progress::Progress;
use crate::tools::{self, Group, Tools};
use crate::tree::{Node, Row, Tree};
use crate::{boot, disk, extras, fat, sha256_file, sha256_hex};

/// Everything a device's packages come from. Only sid's index may be expired: its packages are locked by hash.
const SUITES: [Suite; 5] = [
    Suite { name: "trixie", components: "main non-free-firmware", may_be_expired: false },
    Suite { name: "trixie-updates", components: "main non-free-firmware", may_be_expired: false },
    Suite { name: "trixie-security", components: "main non-free-firmware", may_be_expired: false },
    Suite { name: "trixie-backports", components: "main non-free-firmware", may_be_expired: false },
    Suite { name: "sid", components: "main", may_be_expired: true },
];

/// Our own static aarch64 programs. One that is missing is left out, and init says so on the device.
#[derive(Debug, Clone)]
pub struct Programs {
    pub init: PathBuf,
    pub edgecore: Option<PathBuf>,
    pub mapper: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub board: String,
    /// The repository.
    pub source_dir: PathBuf,
    /// For caches and tools.
    pub target_dir: PathBuf,
    pub out_dir: PathBuf,
    pub programs: Programs,
    /// OCI archives that the device has from the start.
    pub pod_images: Vec<PathBuf>,
    /// Folder of Devices and models for the boot partition.
    pub devices: Option<PathBuf>,
    /// Folder of static pods for the boot partition.
    pub manifests: Option<PathBuf>,
    /// With a console shell.
    pub dev: bool,
    pub policy: Policy,
    /// Pack for size (a release) rather than for speed (a test).
    pub small: bool,
    /// Also write `.img.xz`.
    pub xz: bool,
    pub debian_mirror: Option<String>,
}

impl Options {
    /// A release image with what Cargo built for the device.
    pub fn new(board: &str, source_dir: &Path, target_dir: &Path, programs: Programs) -> Options {
        Options {
            board: board.to_owned(),
            source_dir: source_dir.to_owned(),
            target_dir: target_dir.to_owned(),
            out_dir: target_dir.join("image").join(board),
            programs,
            pod_images: Vec::new(),
            devices: None,
            manifests: None,
            dev: false,
            policy: if std::env::var_os("CI").is_some() { Policy::Ci } else { Policy::Release },
            small: true,
            xz: true,
            debian_mirror: None,
        }
    }
}

/// What was built.
#[derive(Debug, Clone)]
pub struct Image {
    pub img: PathBuf,
    pub xz: Option<PathBuf>,
    pub bmap: PathBuf,
    pub manifest: PathBuf,
    /// Nothing had changed, so nothing was done.
    pub reused: bool,
}

/// Fetches the newest packages' versions into `board/lock.toml`.
pub fn update_lock(source_dir: &Path, target_dir: &Path, debian_mirror: Option<&str>) -> Result<Lock> {
    let boards = source_dir.join("board");
    let mut wants: Vec<Want> = Vec::new();
    for name in Board::names(&boards)? {
        for want in wanted(&Board::load(&boards, &name)?, true) {
            if !wants.contains(&want) {
                wants.push(want);
            }
        }
    }
    let lock = Lock::newest(&open_root(target_dir, debian_mirror)?, &wants)?;
    lock.save(&boards.join("lock.toml"))?;
    Ok(lock)
}

fn open_root(target_dir: &Path, debian_mirror: Option<&str>) -> Result<Root> {
    let mirror = Mirror::find(Path::new("/etc/apt"), debian_mirror)?;
    let dir = tools::Options { target_dir: target_dir.to_owned(), debian_mirror: None }.tools_dir();
    Root::open(&dir.join("apt-device"), &dir.join("debs"), "arm64", &mirror, &SUITES)
}

fn wanted(board: &Board, dev: bool) -> Vec<Want> {
    board
        .packages(dev)
        .map(|package| Want { name: package.name.clone(), suite: package.suite.clone() })
        .collect()
}

/// An unpacked package.
pub(crate) struct Unpacked {
    pub chosen: Chosen,
    pub dir: PathBuf,
}

impl Unpacked {
    pub fn origin(&self) -> String {
        format!("{} {} ({})", self.chosen.deb.name, self.chosen.deb.version, self.chosen.want.suite)
    }
}

/// Builds the image, or finds that the last one was made from the same things.
pub fn build(options: &Options) -> Result<Image> {
    let board = Board::load(&options.source_dir.join("board"), &options.board)?;
    let mut lock = Lock::load(&options.source_dir.join("board/lock.toml"))?;
    let image = outputs(options);
    let inputs = inputs(options, &lock)?;
    if is_current(&image, &inputs) {
        return Ok(Image { reused: true, ..image });
    }
    eprintln!("image for {}:", board.own.summary);
    let tools = tools::ensure(
        &[Group::Image],
        &tools::Options {
            target_dir: options.target_dir.clone(),
            debian_mirror: options.debian_mirror.clone(),
        },
    )?;
    let work = options.target_dir.join("image").join("work").join(&options.board);
    fs::create_dir_all(&work)?;
    fs::create_dir_all(&options.out_dir)?;
    let epoch = build_epoch();

    let packages = packages(options, &board, &mut lock)?;
    let (tree, initramfs_tree) = root::gather(options, &board, &lock, &packages, &tools, epoch)?;
    let squashfs = pack_root(options, &tree, &tools, &work, epoch)?;
    let initramfs = pack_initramfs(options, &initramfs_tree, &tools, &work)?;
    let disk_id = u32::from_str_radix(&sha256_file(&squashfs)?[..8], 16)?;

    let progress = Progress::step("disk image");
    let partial = image.img.with_extension("img.partial");
    let (boot_files, boot_rows) = boot_files(&board, options, &lock, &packages, initramfs, disk_id)?;
    assemble(&board, &tools, &work, &partial, &squashfs, &boot_files, disk_id, epoch)?;
    fs::rename(&partial, &image.img)?;
    disk::write_bmap(&image.img, &image.bmap)?;
    progress.done();
    if let Some(xz) = &image.xz {
        compress(&tools, &image.img, xz)?;
    }
    let manifest = manifest(options, &board, &lock, &packages, &tree, boot_rows, epoch, &inputs)?;
    fs::write(&image.manifest, serde_json::to_vec_pretty(&manifest)?)?;
    sums(&image)?;
    Ok(image)
}

fn outputs(options: &Options) -> Image {
    let name = format!("kinglet-{}{}", options.board, if options.dev { "-dev" } else { "" });
    let file = |ext: &str| options.out_dir.join(format!("{name}.{ext}"));
    Image {
        img: file("img"),
        xz: options.xz.then(|| file("img.xz")),
        bmap: file("bmap"),
        manifest: file("manifest.json"),
        reused: false,
    }
}

fn is_current(image: &Image, inputs: &str) -> bool {
    let wrote = fs::read(&image.manifest).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    wrote.is_some_and(|manifest| manifest["inputs"] == inputs)
        && image.img.exists()
        && image.bmap.exists()
        && image.xz.as_ref().is_none_or(|xz| xz.exists())
}

/// A hash over all that decides what the image will be, except the time.
fn inputs(options: &Options, lock: &Lock) -> Result<String> {
    let mut text = format!(
        "{:?} {} {} {} {:?}\n",
        lock,
        options.dev,
        options.small,
        env!("CARGO_PKG_VERSION"),
        std::env::var("SOURCE_DATE_EPOCH").ok()
    );
    let mut files: Vec<PathBuf> = vec![
        options.source_dir.join("board/base.toml"),
        options.source_dir.join(format!("board/{}.toml", options.board)),
    ];
    list(&options.source_dir.join("edge-image/rootfs"), &mut files)?;
    // The packer itself is an input too.
    list(&options.source_dir.join("edge-image/mkimage/src"), &mut files)?;
    files.push(options.programs.init.clone());
    files.extend([&options.programs.edgecore, &options.programs.mapper].into_iter().flatten().cloned());
    files.extend(options.pod_images.iter().cloned());
    for folder in [&options.devices, &options.manifests].into_iter().flatten() {
        list(folder, &mut files)?;
    }
    for file in files {
        let meta = fs::symlink_metadata(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let sum =
            if meta.is_symlink() { fs::read_link(&file)?.display().to_string() } else { sha256_file(&file)? };
        text.push_str(&format!("{} {sum}\n", file.file_name().unwrap_or_default().display()));
    }
    Ok(sha256_hex(text.as_bytes()))
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() && !path.is_symlink() {
            list(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// Seconds since 1970: `SOURCE_DATE_EPOCH` for repeatable builds, else now. The device's clock never runs before it.
fn build_epoch() -> u64 {
    let given = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()))
}

fn packages(options: &Options, board: &Board, lock: &mut Lock) -> Result<Vec<Unpacked>> {
    let apt = open_root(&options.target_dir, options.debian_mirror.as_deref())?;
    let chosen = lock.choose(&apt, &wanted(board, options.dev), options.policy)?;
    let debs: Vec<_> = chosen.iter().map(|chosen| chosen.deb.clone()).collect();
    let files = apt.fetch(&debs)?;
    let progress = Progress::step(&format!("unpack {} packages", files.len()));
    let mut unpacked = Vec::new();
    for (chosen, file) in chosen.into_iter().zip(files) {
        let stem = file.file_stem().context("a deb has a name")?;
        let dir = options.target_dir.join("image/packages").join(stem);
        if !dir.exists() {
            let partial = dir.with_extension("partial");
            let _ = fs::remove_dir_all(&partial);
            unpack(&file, &partial)?;
            fs::rename(&partial, &dir)?;
        }
        unpacked.push(Unpacked { chosen, dir });
    }
    progress.done();
    Ok(unpacked)
}

fn pack_root(options: &Options, tree: &Tree, tools: &Tools, work: &Path, epoch: u64) -> Result<PathBuf> {
    let progress = Progress::step(if options.small {
        "root file system (packed for size)"
    } else {
        "root file system (packed for speed)"
    });
    let staged = work.join("root");
    tree.write_dir(&staged)?;
    let out = work.join("root.squashfs");
    let _ = fs::remove_file(&out);
    let compression: &[&str] = if options.small {
        &["-comp", "zstd", "-Xcompression-level", "15"]
    } else {
        &["-comp", "zstd", "-Xcompression-level", "3"]
    };
    let done = Command::new(tools.program("mksquashfs"))
        .arg(&staged)
        .arg(&out)
        .args(["-all-root", "-no-xattrs", "-noappend", "-quiet", "-no-progress", "-b", "128K"])
        .args(compression)
        .args(["-mkfs-time", &epoch.to_string(), "-all-time", &epoch.to_string()])
        .env_remove("SOURCE_DATE_EPOCH")
        .output()
        .context("cannot run mksquashfs")?;
    ensure!(done.status.success(), "mksquashfs failed: {}", String::from_utf8_lossy(&done.stderr).trim());
    progress.done();
    Ok(out)
}

fn pack_initramfs(options: &Options, tree: &Tree, tools: &Tools, work: &Path) -> Result<Vec<u8>> {
    let plain = work.join("initramfs.cpio");
    fs::write(&plain, tree.cpio()?)?;
    let level = if options.small { "-19" } else { "-3" };
    let out = Command::new(tools.program("zstd"))
        .args([level, "-q", "-c"])
        .arg(&plain)
        .output()
        .context("cannot run zstd")?;
    ensure!(out.status.success(), "zstd failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(out.stdout)
}

type BootFiles = Vec<(String, Vec<u8>)>;

fn boot_files(
    board: &Board,
    options: &Options,
    lock: &Lock,
    packages: &[Unpacked],
    initramfs: Vec<u8>,
    disk_id: u32,
) -> Result<(BootFiles, Vec<Row>)> {
    let folder = |dir: &Option<PathBuf>, name: &str| match dir {
        Some(dir) => extras::folder(dir, name),
        None => Ok(Vec::new()),
    };
    let devices = folder(&options.devices, "devices")?;
    let mut files = boot::files(board, disk_id, &extras::power_on(&devices)?);
    let mut origins: Vec<String> = files.iter().map(|_| "mkimage".to_owned()).collect();
    let mut add = |name: String, bytes: Vec<u8>, origin: String| {
        files.push((name, bytes));
        origins.push(origin);
    };
    let (kernel_dir, binary) = kernel_dir_of(lock, packages, "linux-binary-")?;
    add(format!("a/{}", boot::kernel_name(board)), fs::read(kernel_dir.join("vmlinuz"))?, binary.origin());
    add("a/initrd".to_owned(), initramfs, "mkimage, modules of the kernel".to_owned());
    if let Boot::RaspberryPi { device_trees, .. } = &board.own.boot {
        let (base_dir, base) = kernel_dir_of(lock, packages, "linux-base-")?;
        for tree in device_trees {
            let name = tree.rsplit('/').next().unwrap_or(tree);
            let bytes = fs::read(base_dir.join("dtb").join(tree))
                .with_context(|| format!("this kernel has no device tree {tree}"))?;
            add(format!("a/{name}"), bytes, base.origin());
        }
    }
    for (package, spec) in packages.iter().zip(board.packages(options.dev)) {
        for (from, to) in &spec.boot {
            let bytes = fs::read(package.dir.join(from))
                .with_context(|| format!("{} has no file {from}", package.chosen.deb.name))?;
            add(to.clone(), bytes, package.origin());
        }
    }
    add(
        "provision-example.toml".to_owned(),
        include_bytes!("provision-example.toml").to_vec(),
        "mkimage".to_owned(),
    );
    for (name, bytes) in devices.into_iter().chain(folder(&options.manifests, "manifests")?) {
        add(name, bytes, "given to mkimage".to_owned());
    }
    let rows = files
        .iter()
        .zip(origins)
        .map(|((name, bytes), origin)| Row {
            path: format!("boot:/{name}"),
            origin,
            size: bytes.len() as u64,
            sha256: Some(sha256_hex(bytes)),
        })
        .collect();
    Ok((files, rows))
}

/// The `usr/lib/modules/VERSION` of one of the kernel's packages.
fn kernel_dir_of<'p>(lock: &Lock, packages: &'p [Unpacked], prefix: &str) -> Result<(PathBuf, &'p Unpacked)> {
    let package = packages
        .iter()
        .find(|package| package.chosen.deb.name.starts_with(prefix))
        .with_context(|| format!("the board has no package {prefix}*"))?;
    Ok((package.dir.join("usr/lib/modules").join(&lock.kernel), package))
}

pub(crate) fn module_index(
    options: &Options,
    lock: &Lock,
    packages: &[Unpacked],
    tools: &Tools,
) -> Result<(Index, String)> {
    let (modules, package) = kernel_dir_of(lock, packages, "linux-modules-")?;
    let (base, _) = kernel_dir_of(lock, packages, "linux-base-")?;
    let scratch = options.target_dir.join("image/modules").join(&lock.kernel);
    Ok((Index::open(&modules, &base, &scratch, &tools.program("xz"))?, package.origin()))
}

#[expect(clippy::too_many_arguments, reason = "one call, each a different thing")]
fn assemble(
    board: &Board,
    tools: &Tools,
    work: &Path,
    img: &Path,
    squashfs: &Path,
    boot_files: &[(String, Vec<u8>)],
    disk_id: u32,
    epoch: u64,
) -> Result<()> {
    let layout = &board.base.layout;
    let [p1, p2, _, p4] =
        layout.partitions().map(|(start, len)| (u64::from(start) * MIB, u64::from(len) * MIB));
    disk::create(img, layout, disk_id)?;
    disk::place(img, &mut fat::make(p1.1, disk_id, boot_files)?.as_slice(), p1.0)?;
    disk::place_file(img, squashfs, p2.0, p2.1)?;
    let mut data = Tree::default();
    for dir in [
        "etc/kubeedge",
        "lib/kinglet",
        "lib/containerd",
        "lib/kubelet",
        "lib/kubeedge",
        "log/pods",
        "tmp",
        "data",
    ] {
        data.add(dir, Node::Dir, "layout");
    }
    let staged = work.join("data");
    data.write_dir(&staged)?;
    let ext4 = work.join("data.ext4");
    let uuid = format!("{disk_id:08x}-6b69-4e67-8c65-740000000004");
    disk::make_ext4(&tools.program("mke2fs"), &staged, &ext4, layout.data_mib, &uuid, epoch)?;
    disk::place_file(img, &ext4, p4.0, p4.1)
}

fn compress(tools: &Tools, img: &Path, xz: &Path) -> Result<()> {
    let progress = Progress::step("compress");
    let partial = xz.with_extension("partial");
    let status = Command::new(tools.program("xz"))
        .args(["-T0", "-1", "-c"])
        .arg(img)
        .stdout(fs::File::create(&partial)?)
        .status()
        .context("cannot run xz")?;
    ensure!(status.success(), "xz failed on {}", img.display());
    fs::rename(partial, xz)?;
    progress.done();
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "one call, each a different thing")]
fn manifest(
    options: &Options,
    board: &Board,
    lock: &Lock,
    packages: &[Unpacked],
    tree: &Tree,
    boot_rows: Vec<Row>,
    epoch: u64,
    inputs: &str,
) -> Result<Value> {
    let rows: Vec<Value> = packages
        .iter()
        .map(|package| {
            let deb = &package.chosen.deb;
            json!({"name": deb.name, "version": deb.version, "suite": package.chosen.want.suite, "sha256": deb.sha256, "instead_of": package.chosen.instead_of})
        })
        .collect();
    let mut files = boot_rows;
    files.extend(tree.manifest()?);
    Ok(json!({
        "board": board.own.name, "summary": board.own.summary, "dev": options.dev, "epoch": epoch, "kernel": lock.kernel,
        "inputs": inputs, "packages": rows, "files": files,
    }))
}

fn sums(image: &Image) -> Result<()> {
    let mut text = String::new();
    for file in
        [Some(&image.img), image.xz.as_ref(), Some(&image.bmap), Some(&image.manifest)].into_iter().flatten()
    {
        let name = file.file_name().unwrap_or_default().display();
        text.push_str(&format!("{}  {name}\n", sha256_file(file)?));
    }
    fs::write(image.img.with_extension("SHA256SUMS"), text)?;
    Ok(())
}
