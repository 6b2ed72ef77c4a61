//! The library against itself, and each model against a simulated device.

mod bench;
mod models;

use super::*;
use crate::check;

#[test]
fn every_file_of_the_library_is_in_it_and_makes_sense() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../devices");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".yaml")?.to_owned()))
        .collect();
    files.sort();
    let names: Vec<&str> = MODELS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, files, "MODELS in new.rs and the folder devices/ are the same, in this order");
    for (name, text) in MODELS {
        let said = check::check(text, None).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(said.starts_with(&format!("device default/{name}-1\n")), "{said}");
        assert!(about(text).len() > 10 && text.lines().nth(1).unwrap().starts_with("# Wiring: "), "{name}");
    }
}

#[test]
fn a_device_gets_the_name_and_node_that_were_asked_for() {
    let text = new("relay-board-4", Some("pumps"), Some("line3-0001")).unwrap();
    let objects = check::objects(&text).unwrap();
    assert_eq!(objects[0]["metadata"]["name"], "relay-board-4");
    assert_eq!(objects[1]["metadata"]["name"], "pumps");
    assert_eq!(objects[1]["spec"]["nodeName"], "line3-0001");
    for (name, _) in MODELS {
        let objects = check::objects(&new(name, Some("other"), Some("n")).unwrap()).unwrap();
        assert_eq!(objects[1]["metadata"]["name"], "other", "{name}");
        assert_eq!(objects[1]["spec"]["nodeName"], "n", "{name}");
    }
    let error = new("relay", None, None).unwrap_err();
    assert!(error.contains("relay-board-4"), "{error}");
    assert!(list().contains("\nbutton "), "{}", list());
}
