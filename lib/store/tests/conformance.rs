//! The simulated disk does what a real one does: the same random operations give the same results and the same content.

use std::io;

use store::{
    Backend, FileBackend,
    sim::{Rng, SimDisk},
};

const NAMES: [&str; 3] = ["a", "b", "c"];

fn step(backend: &mut dyn Backend, rng: &mut Rng) -> String {
    let kind = |result: io::Result<()>| result.map_err(|error| error.kind());
    let name = NAMES[rng.below(3) as usize];
    let other = NAMES[rng.below(3) as usize];
    let (offset, len) = (rng.below(3000), rng.below(2000));
    match rng.below(9) {
        0 => format!("create {:?}", kind(backend.create(name))),
        1 | 2 => format!(
            "write {:?}",
            kind(backend.write_at(name, offset, &vec![rng.number() as u8; len as usize]))
        ),
        3 => format!("set_len {:?}", kind(backend.set_len(name, offset))),
        4 => format!("sync {:?}", kind(backend.sync(name))),
        5 if name != other => format!("rename {:?}", kind(backend.rename(name, other))),
        6 => format!("remove {:?}", kind(backend.remove(name))),
        7 => format!("sync_dir {:?}", kind(backend.sync_dir())),
        _ => {
            let mut buf = vec![0; len as usize];
            let read = kind(backend.read_at(name, offset, &mut buf));
            // What a failed read left in the buffer is nobody's business.
            let sum: u64 = if read.is_ok() { buf.iter().map(|byte| *byte as u64).sum() } else { 0 };
            format!("read {read:?} {sum}")
        }
    }
}

fn content(backend: &mut dyn Backend) -> Vec<(String, Vec<u8>)> {
    let names = backend.names().expect("the folder is readable");
    let read = |name: String| {
        let len = backend.len(&name).expect("readable").expect("it was listed");
        let mut buf = vec![0; len as usize];
        backend.read_at(&name, 0, &mut buf).expect("readable");
        (name, buf)
    };
    names.into_iter().map(read).collect()
}

#[test]
fn real_files_and_simulated_ones_agree() {
    for seed in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let mut real = FileBackend::open(dir.path()).unwrap();
        let mut simulated = SimDisk::new();
        let (mut rng, mut same) = (Rng::new(seed), Rng::new(seed));
        for number in 0..150 {
            let (real, simulated) = (step(&mut real, &mut rng), step(&mut simulated, &mut same));
            assert_eq!(real, simulated, "seed {seed}, step {number}");
        }
        assert_eq!(content(&mut real), content(&mut simulated), "seed {seed}");
        assert_eq!(real.len("never was").unwrap(), simulated.len("never was").unwrap());
    }
}
