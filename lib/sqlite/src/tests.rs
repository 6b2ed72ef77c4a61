//! Against files that SQLite 3.40 wrote (tests/vectors/sqlite): KubeEdge's tables, a log that is in use, a write that was cut off.

use std::path::{Path, PathBuf};

use super::*;

fn vector(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/sqlite").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    fs::read(vector(name)).unwrap()
}

fn keys(database: &Database) -> Vec<String> {
    database.rows("meta").unwrap().into_iter().map(|(_, values)| values[0].text()).collect()
}

#[test]
fn tables_rows_and_long_values() {
    let database = Database::open(&vector("plain.db")).unwrap();
    let tables = database.tables().unwrap();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["device", "device_twin", "sub_topics", "meta", "numbers"]);
    assert_eq!(tables[3].columns, ["key", "type", "value"]);
    assert_eq!(tables[1].column("Expected_Version"), Some(8));

    let rows = database.rows("meta").unwrap();
    assert_eq!(rows.len(), 271, "300 pods less those with a 7 at the end, and a config map");
    for (_, values) in &rows[..270] {
        let [key, kind, value] = &values[..] else { panic!() };
        let n: usize = key.text().rsplit('-').next().unwrap().parse().unwrap();
        assert_eq!((kind.text().as_str(), n % 10 == 7), ("pod", false));
        assert_eq!(value.text(), format!("{{\"n\":{n},\"pad\":\"{}\"}}", "x".repeat(n % 97)));
    }
    assert_eq!(rows[270].1[2].text(), "ä".repeat(20_000), "40 pages of one row");
    assert!(database.rows("sub_topics").unwrap().is_empty());

    let twins = database.rows("device_twin").unwrap();
    assert_eq!(twins[0].1[0], Value::Integer(1), "the row's number stands in its column");
    assert_eq!((twins[0].1[4].text(), &twins[0].1[6]), ("on".into(), &Value::Null));
    assert!(matches!(database.rows("nothing"), Err(SqliteError::NoTable(name)) if name == "nothing"));
}

#[test]
fn numbers_of_every_length() {
    let database = Database::open(&vector("plain.db")).unwrap();
    let rows = database.rows("numbers").unwrap();
    let expected = [-1, 0, 1, 127, -129, 70_000, -9_000_000, 1 << 40, i64::MIN, i64::MAX];
    assert_eq!(rows.len(), expected.len());
    for (n, (at, values)) in expected.iter().zip(&rows) {
        assert_eq!(values[0], Value::Integer(*n));
        assert_eq!(values[3], Value::Integer(*at), "the key at the end of the definition");
        assert_eq!(values[2], Value::Blob(vec![*n as u8; 3]));
        let third = *n as f64 / 3.0;
        assert!(
            matches!(values[1], Value::Real(real) if (real - third).abs() <= third.abs() * 1e-12)
                || *n % 3 == 0
        );
    }
}

#[test]
fn the_log_counts_up_to_its_last_commit() {
    let database = Database::open(&vector("hot.db")).unwrap();
    let keys = keys(&database);
    assert!(keys.contains(&"default/pod/only-in-the-log".into()));
    assert!(!keys.contains(&"default/pod/web-0002".into()), "deleted in the log");
    assert!(!keys.iter().any(|key| key.starts_with("uncommitted")));
    assert!(database.rows("meta").unwrap().iter().any(|(_, values)| values[2].text() == "changed"));

    let without = Database::parse(bytes("hot.db"), None).unwrap();
    assert!(
        !self::keys(&without).contains(&"default/pod/only-in-the-log".into()),
        "so the test above can fail"
    );
    // The uncommitted end is in the file, not only in memory.
    let log = bytes("hot.db-wal");
    assert!(log.windows(14).any(|part| part == b"uncommitted-10"));
    // A frame whose checksum does not fit ends the log, as after a power cut.
    let mut torn = log.clone();
    torn[32 + 24 + 100] ^= 1;
    let torn = Database::parse(bytes("hot.db"), Some(&torn)).unwrap();
    assert!(self::keys(&torn).contains(&"default/pod/web-0002".into()));
}

#[test]
fn a_write_that_was_cut_off_is_refused_with_the_remedy() {
    let error = Database::open(&vector("cut.db")).err().unwrap().to_string();
    assert!(
        error.contains("cut.db-journal") && error.contains("start that program once and stop it"),
        "{error}"
    );
}

#[test]
fn what_is_not_a_database_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    assert!(matches!(Database::open(&path), Err(SqliteError::Read { .. })));
    fs::write(&path, "text of some length ".repeat(20)).unwrap();
    assert!(matches!(Database::open(&path), Err(SqliteError::Unsupported(_))));
    fs::write(&path, "").unwrap();
    assert!(matches!(Database::open(&path), Err(SqliteError::Damaged(_))));
    let whole = bytes("plain.db");
    let cut = Database::parse(whole[..whole.len() / 2].to_vec(), None).unwrap();
    assert!(matches!(cut.rows("meta"), Err(SqliteError::Damaged(_))));
    let mut circle = whole.clone();
    // The root of the schema names itself as a child.
    circle[100] = 5;
    circle[103..105].copy_from_slice(&[0, 0]);
    circle[108..112].copy_from_slice(&1_u32.to_be_bytes());
    assert!(matches!(Database::parse(circle, None).unwrap().tables(), Err(SqliteError::Damaged(_))));
}

#[test]
fn definitions_of_tables() {
    let of = |sql: &str| {
        let text = |text: &str| Value::Text(text.into());
        schema::table(&[text("table"), text("t"), text("t"), Value::Integer(2), text(sql)]).unwrap().unwrap()
    };
    let quoted = of(
        "CREATE TABLE \"t\" (\"a b\" text DEFAULT 'x,(y', [c] varchar(10), `d`, CONSTRAINT k UNIQUE(d), CHECK (c > 1))",
    );
    assert_eq!((quoted.columns, quoted.row_number), (vec!["a b".into(), "c".into(), "d".into()], None));
    assert_eq!(of("create table t(id INTEGER PRIMARY KEY, v)").row_number, Some(0));
    assert_eq!(of("create table t(v, id integer, PRIMARY KEY (`id`))").row_number, Some(1));
    assert_eq!(of("create table t(v, id integer, PRIMARY KEY (id, v))").row_number, None);
    assert_eq!(of("create table t(id text, PRIMARY KEY (id))").row_number, None);
}

#[test]
fn a_rewritten_database_is_whole_in_sqlites_eyes() {
    let database = Database::open(&vector("plain.db")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut rows = database.rows("meta").unwrap();
    rows.retain(|(number, _)| number % 3 != 0);
    let next = rows.last().unwrap().0 + 1;
    // Enough for an index of three levels on these small pages, and keys on both sides of those that were there.
    for n in 0..4000 {
        let key = format!("{:04}/pod/{}", n * 7919 % 4000, "k".repeat(n as usize % 200));
        let value = "v".repeat(if n % 500 == 0 { 9000 } else { n as usize % 50 });
        rows.push((next + n, [key, "pod".into(), value].map(Value::Text).into()));
    }
    for (name, rows) in [("more", rows.clone()), ("none", Vec::new()), ("one", rows[..1].to_vec())] {
        let path = dir.path().join(name);
        fs::write(&path, database.rewrite(&[("meta".to_owned(), rows.clone())].into()).unwrap()).unwrap();
        let again = Database::open(&path).unwrap();
        assert_eq!(again.rows("meta").unwrap(), rows);
        assert_eq!(again.rows("device_twin").unwrap(), database.rows("device_twin").unwrap());
        assert_eq!(again.rows("numbers").unwrap(), database.rows("numbers").unwrap());
        let Ok(ran) = std::process::Command::new("sqlite3")
            .arg(&path)
            .args([
                "PRAGMA integrity_check",
                "SELECT count(*) FROM meta",
                "SELECT count(*) FROM meta NOT INDEXED WHERE key >= ''",
                "INSERT INTO device_twin(deviceid) VALUES('x')",
                "INSERT INTO meta VALUES('zzz', 'pod', '')",
                "SELECT max(id) FROM device_twin",
                "PRAGMA integrity_check",
            ])
            .output()
        else {
            println!("NOT RUN in part: needs sqlite3");
            continue;
        };
        let said = String::from_utf8_lossy(&ran.stdout);
        assert_eq!(
            said.trim(),
            format!("ok\n{0}\n{0}\n2\nok", rows.len()),
            "{name} {}",
            String::from_utf8_lossy(&ran.stderr)
        );
    }
    // What was in the log is in the file then.
    let hot = Database::open(&vector("hot.db")).unwrap();
    let flat = Database::parse(hot.rewrite(&Default::default()).unwrap(), None).unwrap();
    assert_eq!(flat.rows("meta").unwrap(), hot.rows("meta").unwrap());
}

#[test]
fn whatever_the_bytes_reading_ends() {
    let mut seed = 7_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize
    };
    for (name, kind) in [("plain.db", 0), ("hot.db-wal", 1), ("cut.db", 0)] {
        let whole = [vec![kind], bytes(name)].concat();
        for round in 0..150 {
            let mut data = whole.clone();
            for _ in 0..1 + random() % 8 {
                // Headers and pointers are where the harm is: mostly the beginnings of pages.
                let page = 1 + random() % (data.len() / 1024) * 1024;
                let at = (page + random() % if round % 2 == 0 { 128 } else { 1024 }).min(data.len() - 1);
                data[at] = random() as u8;
            }
            if round % 10 == 0 {
                data.truncate(random() % data.len());
            }
            fuzz_database(&data);
        }
    }
}
