//! Archives: whole ones, broken ones, and whatever else lies in the folder.

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

use mkimage::oci;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    archive::{
        ArchiveError, ArchivedImage, Source, fuzz_image_archive, is_archive, machine, qualified, read,
    },
    import::chain_ids,
    preloaded::Preloaded,
};

fn write(dir: &Path, arch: &str) -> Vec<u8> {
    fs::write(dir.join("program"), vec![7; 3000]).unwrap();
    let spec = oci::Spec {
        reference: "docker.io/kinglet/hello:1".into(),
        arch: arch.into(),
        files: vec![oci::File::program(dir.join("program"), "hello")],
        entrypoint: vec!["/hello".into()],
        ..oci::Spec::default()
    };
    oci::write_archive(&spec, &dir.join("whole.tar")).unwrap();
    fs::read(dir.join("whole.tar")).unwrap()
}

fn read_bytes(dir: &Path, bytes: &[u8]) -> Result<Vec<ArchivedImage>, ArchiveError> {
    let path = dir.join("some.tar");
    fs::write(&path, bytes).unwrap();
    read(&path)
}

#[test]
fn a_whole_archive_and_an_archive_for_another_machine() {
    let dir = tempfile::tempdir().unwrap();
    let whole = write(dir.path(), machine());
    let images = read_bytes(dir.path(), &whole).unwrap();
    assert_eq!((images.len(), images[0].name.as_str()), (1, "docker.io/kinglet/hello:1"));
    assert_eq!((images[0].layers.len(), images[0].diff_ids.len()), (1, 1));
    let layer = &images[0].layers[0];
    assert_eq!(
        &whole[layer.offset as usize..layer.offset as usize + 2],
        b"\x1f\x8b",
        "the blob lies where it is said to"
    );

    let foreign = write(dir.path(), "s390x");
    let text = read_bytes(dir.path(), &foreign).unwrap_err().to_string();
    assert!(text.contains("some.tar") && text.contains("for s390x, this machine is"), "{text}");
}

#[test]
fn every_cut_and_every_flip_is_an_error_or_harmless_to_the_reader() {
    let dir = tempfile::tempdir().unwrap();
    let whole = write(dir.path(), machine());
    let good = read_bytes(dir.path(), &whole).unwrap();
    let end = |image: &ArchivedImage| {
        let blobs = image.layers.iter().chain([&image.config, &image.manifest]);
        blobs.map(|blob| blob.offset + blob.size).max().unwrap() as usize
    };
    let end_of_blobs = end(&good[0]);
    for cut in (0..end_of_blobs).step_by(97) {
        let error = read_bytes(dir.path(), &whole[..cut]).unwrap_err();
        assert!(error.to_string().contains("some.tar"), "{error}");
    }
    let layer = good[0].layers[0].clone();
    let mut seed: u64 = 9;
    for _ in 0..200 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (seed >> 33) as usize % whole.len();
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (seed >> 30 & 7);
        // What is accepted names the same content: containerd checks the layer itself when it is stored.
        if let Ok(images) = read_bytes(dir.path(), &bytes) {
            assert_eq!(images[0].layers[0].digest, layer.digest, "flip at {at}");
            assert_eq!(images[0].manifest.digest, good[0].manifest.digest, "flip at {at}");
        }
    }
}

#[test]
fn names_as_containerd_keeps_them() {
    for (name, full) in [
        ("docker.io/kinglet/hello:1", "docker.io/kinglet/hello:1"),
        ("busybox", "docker.io/library/busybox:latest"),
        ("kinglet/hello", "docker.io/kinglet/hello:latest"),
        ("localhost:5000/a", "localhost:5000/a:latest"),
        ("ghcr.io/a/b@sha256:00", "ghcr.io/a/b@sha256:00"),
    ] {
        assert_eq!(qualified(name), full);
    }
}

/// The example of the OCI image specification's rule: ChainID(A, B) = digest of "ChainID(A) B".
#[test]
fn chains() {
    let chains = chain_ids(&["sha256:a".to_string(), "sha256:b".to_string()]);
    // printf 'sha256:a sha256:b' | sha256sum
    assert_eq!(
        chains,
        ["sha256:a", "sha256:970a948bffa8de94d6e22d747ba8c95030e6e546909f98f54e99a13005e173a8"]
    );
}

fn sha(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn tar_of(files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    for (name, target) in links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, name, target).unwrap();
    }
    tar.into_inner().unwrap()
}

/// As `docker save` before version 25 writes it: layers by folder, one shared through a link, names in manifest.json only, which
/// comes last.
fn saved(arch: &str) -> (Vec<u8>, Vec<String>) {
    let layers = [tar_of(&[("a", &[1; 70_000])], &[]), tar_of(&[("b", b"two")], &[])];
    let packed = gzip(&layers[1]);
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", sha(layer))).collect();
    let config = |ids: &[String]| {
        json!({ "architecture": arch, "os": "linux", "rootfs": { "type": "layers", "diff_ids": ids } })
            .to_string()
    };
    let (first, second) = (config(&diff_ids[..1]), config(&diff_ids));
    let name = |config: &str| format!("{}.json", sha(config.as_bytes()));
    let manifest = json!([
        { "Config": name(&first), "RepoTags": ["busybox:1", "a.example:5000/team/app:2"], "Layers": ["x/layer.tar"] },
        { "Config": name(&second), "RepoTags": ["team/other:latest"], "Layers": ["y/layer.tar", "z.tar.gz"] },
        { "Config": name(&second), "RepoTags": null, "Layers": ["y/layer.tar", "z.tar.gz"] },
    ])
    .to_string();
    let files: [(&str, &[u8]); 5] = [
        ("x/layer.tar", &layers[0]),
        ("z.tar.gz", &packed),
        (&name(&first), first.as_bytes()),
        (&name(&second), second.as_bytes()),
        ("manifest.json", manifest.as_bytes()),
    ];
    (tar_of(&files, &[("y/layer.tar", "../x/layer.tar")]), diff_ids)
}

#[test]
fn what_docker_save_writes_is_read_plain_and_in_gzip() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, diff_ids) = saved(machine());
    for (bytes, packed) in [(plain.clone(), false), (gzip(&plain), true)] {
        let images = read_bytes(dir.path(), &bytes).unwrap();
        let mut names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
        names.sort();
        assert_eq!(
            names,
            ["a.example:5000/team/app:2", "docker.io/library/busybox:1", "docker.io/team/other:latest"]
        );
        let other = images.iter().find(|image| image.name.contains("other")).unwrap();
        assert_eq!(other.layers[0].digest, diff_ids[0], "a plain layer is known by its own digest");
        assert_eq!(other.layers[0].media_type, "application/vnd.docker.image.rootfs.diff.tar");
        assert_eq!(other.layers[1].media_type, "application/vnd.docker.image.rootfs.diff.tar.gzip");
        assert_eq!(other.diff_ids, diff_ids);
        let manifest: serde_json::Value =
            serde_json::from_slice(other.made_manifest.as_ref().unwrap()).unwrap();
        assert_eq!(other.manifest.digest, format!("sha256:{}", sha(other.made_manifest.as_ref().unwrap())));
        assert_eq!(manifest["layers"][1]["digest"], other.layers[1].digest);
        // Each blob has the digest that it is stored under.
        for blob in other.layers.iter().chain([&other.config]) {
            let (mut source, _) = Source::open(std::io::Cursor::new(&bytes)).unwrap();
            assert_eq!(source.is_packed(), packed);
            source.seek(SeekFrom::Start(blob.offset)).unwrap();
            let mut content = vec![0; blob.size as usize];
            source.read_exact(&mut content).unwrap();
            assert_eq!(blob.digest, format!("sha256:{}", sha(&content)));
            // Back to what came before.
            source.seek(SeekFrom::Start(1)).unwrap();
        }
    }
}

#[test]
fn an_oci_archive_in_gzip_is_the_same_images() {
    let dir = tempfile::tempdir().unwrap();
    let whole = write(dir.path(), machine());
    let (plain, packed) =
        (read_bytes(dir.path(), &whole).unwrap(), read_bytes(dir.path(), &gzip(&whole)).unwrap());
    assert_eq!(
        (&plain[0].name, &plain[0].manifest, &plain[0].layers),
        (&packed[0].name, &packed[0].manifest, &packed[0].layers)
    );
}

#[test]
fn what_cannot_be_used_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = saved("s390x").0;
    let nameless = tar_of(&[("manifest.json", br#"[{"Config":"c.json","RepoTags":null,"Layers":[]}]"#)], &[]);
    let no_config =
        tar_of(&[("manifest.json", br#"[{"Config":"c.json","RepoTags":["a"],"Layers":[]}]"#)], &[]);
    let circle = br#"[{"Config":"a","RepoTags":["a"],"Layers":[]}]"#;
    for (bytes, text) in [
        (foreign, "holds busybox:1 for s390x, this machine is"),
        (nameless, "docker save NAME:TAG"),
        (no_config, "lacks c.json; copy it again"),
        (tar_of(&[("manifest.json", circle)], &[("a", "b"), ("b", "a")]), "lacks a; copy it again"),
        (tar_of(&[("readme", b"text")], &[]), "make one with docker save"),
        (b"\x28\xb5\x2f\xfd rest".to_vec(), "zstd -d"),
        (b"\xfd7zXZ\0 rest".to_vec(), "xz -d"),
        (b"\x1f\x8b\x08 no gzip".to_vec(), "is not a whole tar file"),
    ] {
        let error = read_bytes(dir.path(), &bytes).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    let packed = gzip(&saved(machine()).0);
    let whole = read_bytes(dir.path(), &packed).unwrap();
    for cut in (0..packed.len()).step_by(11) {
        match read_bytes(dir.path(), &packed[..cut]) {
            // Only what follows the last file was cut off.
            Ok(images) => assert_eq!(images[0].manifest, whole[0].manifest, "{cut}"),
            Err(error) => assert!(error.to_string().contains("copy it again") || cut == 0, "{cut}: {error}"),
        }
    }
    assert!(read_bytes(dir.path(), &packed[..packed.len() / 2]).is_err());
}

#[test]
fn archives_are_known_by_their_names() {
    for name in ["a.tar", "a.tar.gz", "a.tgz", "a.tar.zst", "a.tar.xz"] {
        assert!(is_archive(name), "{name}");
    }
    assert!(!is_archive(".tar") && !is_archive("a.txt") && !is_archive("a.gz") && !is_archive("tar"));
}

#[test]
fn preloaded_archives_are_read_again_when_they_changed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("images");
    fs::create_dir(&folder).unwrap();
    let mut preloaded = Preloaded::default();
    assert!(preloaded.look(&dir.path().join("absent")).0.is_empty());
    fs::write(folder.join("saved.tgz"), gzip(&saved(machine()).0)).unwrap();
    let (first, problems) = preloaded.look(&folder);
    assert_eq!((first.len(), problems.len()), (3, 0));
    let (again, _) = preloaded.look(&folder);
    let name = "docker.io/library/busybox:1";
    assert!(std::sync::Arc::ptr_eq(&first[name], &again[name]), "not read again");
    fs::write(folder.join("saved.tgz"), "cut").unwrap();
    let (none, problems) = preloaded.look(&folder);
    assert_eq!((none.len(), problems.len()), (0, 1));
}

#[test]
fn damaged_archives_do_not_panic() {
    let dir = tempfile::tempdir().unwrap();
    let wholes = [saved(machine()).0, write(dir.path(), machine()), gzip(&saved(machine()).0)];
    let mut random = wire::link::Backoff::new(u64::MAX / 2, u64::MAX / 2, 11);
    for round in 0..400 {
        let mut bytes = wholes[round % wholes.len()].clone();
        for _ in 0..=random.next_ms() % 8 {
            let at = random.next_ms() as usize % bytes.len();
            bytes[at] = random.next_ms() as u8;
        }
        bytes.truncate(random.next_ms() as usize % (bytes.len() * 2));
        fuzz_image_archive(&bytes);
    }
}
