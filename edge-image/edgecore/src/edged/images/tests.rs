//! Archives: whole ones, broken ones, and whatever else lies in the folder.

use std::{fs, path::Path};

use mkimage::oci;

use super::{
    archive::{ArchiveError, ArchivedImage, machine, qualified, read},
    import::chain_ids,
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
