use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;
use wire::{Message, Operation};

use super::*;
use crate::contract::{Meta, Report, Uplink, testing::Bench};

const LAMP: &str = "\
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: lamp}
spec: {protocol: gpio, properties: [{name: on, type: BOOLEAN, accessMode: ReadWrite}]}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: lamp-1, labels: {room: hall}}
spec: {deviceModelRef: {name: lamp}, protocol: {protocolName: gpio}, properties: [{name: on}]}
---
";

struct Desk {
    dir: TempDir,
    folder: DeviceFolder,
}

impl Desk {
    fn new() -> Desk {
        Desk { dir: tempfile::tempdir().unwrap(), folder: DeviceFolder::new("edge-1", []) }
    }

    fn write(&self, name: &str, text: &str) {
        // Written beside and moved, as a file's stamp may have the same time and size.
        let hidden = self.dir.path().join(format!(".{name}"));
        fs::write(&hidden, text).unwrap();
        fs::rename(hidden, self.dir.path().join(name)).unwrap();
    }

    fn look(&mut self) -> Changes {
        let reading = read(self.dir.path(), &self.folder.stamps());
        self.folder.take(self.dir.path(), reading)
    }

    fn names(&self) -> Vec<String> {
        self.folder.objects().keys().map(ToString::to_string).collect()
    }

    fn problem(&self) -> String {
        let problems = self.folder.problems(self.dir.path()).join("\n");
        problems.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

#[test]
fn a_file_becomes_objects_of_this_node_that_keep_their_uid() {
    let mut desk = Desk::new();
    desk.write("lamp.yaml", LAMP);
    let changes = desk.look();
    assert!(changes.objects && changes.store.len() == 1);
    assert_eq!(desk.names(), ["default/device/lamp-1", "default/devicemodel/lamp"]);
    assert_eq!(desk.problem(), "");
    let lamp = |desk: &Desk| desk.folder.objects()[&Resource::new("default", "device", "lamp-1")].clone();
    let before = lamp(&desk);
    let body: Value = serde_json::from_slice(&before.body).unwrap();
    assert_eq!(body["metadata"]["uid"], before.uid);
    assert_eq!(body["metadata"]["labels"]["room"], "hall");
    assert_eq!(body["spec"]["nodeName"], "edge-1");
    assert_eq!(desk.look(), Changes::default(), "an unchanged file is not read again");

    desk.write("lamp.yaml", &LAMP.replace("hall", "cellar"));
    assert!(desk.look().objects);
    assert_eq!(lamp(&desk).uid, before.uid, "an edited device keeps its values");
    let kept = DeviceFolder::new("edge-1", desk.folder.records());
    assert_eq!(kept.objects().len(), 2, "kept over a restart");

    fs::remove_file(desk.dir.path().join("lamp.yaml")).unwrap();
    assert_eq!(desk.look(), Changes { objects: true, store: vec![], forget: vec!["lamp.yaml".into()] });
    assert!(desk.names().is_empty());
}

#[test]
fn what_is_broken_is_named_and_removes_nothing() {
    let mut desk = Desk::new();
    desk.write("lamp.yaml", LAMP);
    desk.look();
    for (text, told) in [
        ("kind: [", "lamp.yaml: line "),
        ("kind: Pod", "lamp.yaml: holds a Pod; only Device and DeviceModel belong into this folder"),
        ("spec: {}", "lamp.yaml: has an object without kind"),
        (&LAMP.replace("v1beta1", "v1alpha2"), "has apiVersion \"devices.kubeedge.io/v1alpha2\"; write"),
        (&LAMP.replace("lamp-1", "a/b"), "has metadata.name \"a/b\"; use small letters"),
        (&LAMP.replace("spec: {deviceModelRef", "spek: {deviceModelRef"), "has no spec in device lamp-1"),
        ("\u{0}", "lamp.yaml: "),
    ] {
        desk.write("lamp.yaml", text);
        assert_eq!(desk.look(), Changes::default(), "{text}");
        assert_eq!(desk.names().len(), 2, "{text}");
        assert!(desk.problem().contains(told), "{}", desk.problem());
        assert!(desk.problem().ends_with("; what it said before goes on"), "{}", desk.problem());
    }
    desk.write("lamp.yaml", LAMP);
    desk.look();
    assert_eq!(desk.problem(), "", "a file that was mended is fine again");

    desk.write("second.json", &LAMP.split("---").nth(1).unwrap().replace("hall", "attic"));
    desk.look();
    assert_eq!(
        desk.problem(),
        "second.json: device default/lamp-1 is in another file already, which counts; rename one"
    );
    let lamp = &desk.folder.objects()[&Resource::new("default", "device", "lamp-1")];
    assert!(String::from_utf8_lossy(&lamp.body).contains("hall"));
}

#[test]
fn a_folder_that_cannot_be_read_is_not_an_empty_one() {
    let mut desk = Desk::new();
    let (away, here) = (desk.dir.path().join("away"), desk.dir.path().join("devices"));
    fs::create_dir(&here).unwrap();
    let look = |desk: &mut Desk| {
        let reading = read(&here, &desk.folder.stamps());
        desk.folder.take(&here, reading)
    };
    fs::write(here.join("lamp.yaml"), LAMP).unwrap();
    look(&mut desk);
    fs::rename(&here, &away).unwrap();
    assert_eq!(look(&mut desk), Changes::default());
    assert_eq!(desk.names().len(), 2);
    assert!(desk.problem().contains("its devices go on as they are"), "{}", desk.problem());
    // Also in the next life, which knows them from the records only.
    desk.folder = DeviceFolder::new("edge-1", desk.folder.records());
    assert_eq!((look(&mut desk), desk.names().len()), (Changes::default(), 2));
    fs::create_dir(&here).unwrap();
    assert!(look(&mut desk).objects && desk.names().is_empty());

    let mut never = DeviceFolder::new("edge-1", []);
    never.take(&here.join("none"), read(&here.join("none"), &never.stamps()));
    assert!(never.problems(&here).is_empty(), "most nodes have no such folder");
    for n in 0..=limits::DEVICE_FILES_MAX {
        fs::write(here.join(format!("{n}.yaml")), "").unwrap();
    }
    look(&mut desk);
    assert!(desk.problem().contains("more than 128 files"), "{}", desk.problem());
}

#[test]
fn a_device_for_another_node_is_left_out() {
    let mut desk = Desk::new();
    desk.write(
        "lamp.yaml",
        &LAMP.replace("spec: {deviceModelRef", "spec: {nodeName: edge-2, deviceModelRef"),
    );
    desk.look();
    assert_eq!(
        (desk.names().as_slice(), desk.problem().as_str()),
        (&["default/devicemodel/lamp".to_owned()][..], "")
    );
}

#[tokio::test]
async fn the_overlay_hides_the_clouds_object_and_keeps_local_devices_from_it() {
    let bench = Bench::new();
    let (meta, uplink) = (&bench.meta, &bench.uplink);
    let cloud = |name: &str| json!({"metadata": {"name": name, "namespace": "default", "uid": "cloud"}});
    meta.put_object("default/device/pump", cloud("pump"));
    meta.put_object("default/device/lamp-1", cloud("lamp-1"));
    let mut folder = DeviceFolder::new("edge-1", []);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("lamp.yaml"), LAMP.replace("lamp-1", "lamp-2") + LAMP).unwrap();
    folder.take(dir.path(), read(dir.path(), &folder.stamps()));
    let overlay = Overlay::new(&bench.handles, folder.objects());

    let list: Vec<(String, bool)> = overlay
        .list("device")
        .into_iter()
        .map(|object| (object.resource.name, object.uid == "cloud"))
        .collect();
    assert_eq!(list, [("pump".to_owned(), true), ("lamp-1".to_owned(), false), ("lamp-2".to_owned(), false)]);
    assert_eq!(overlay.hiding(), [Resource::new("default", "device", "lamp-1")]);
    assert_eq!(overlay.get(&Resource::new("default", "device", "pump")).unwrap().uid, "cloud");

    for device in ["pump", "lamp-1", "lamp-2"] {
        let resource = format!("device/default/{device}/twin/edge_updated");
        let message = Message::new(1, "twin", "resource", Operation::UPDATE, &resource);
        overlay.report(Report { key: format!("twin/default/{device}"), message, durable: false });
    }
    let reported: Vec<String> =
        uplink.reports.lock().unwrap().iter().map(|report| report.key.clone()).collect();
    assert_eq!(reported, ["twin/default/pump", "twin/default/lamp-1"], "the cloud has no lamp-2");
    let mut changes = overlay.changes();
    overlay.replace(BTreeMap::new());
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert_eq!(overlay.list("device").len(), 2);
}

#[test]
fn the_folder_says_which_levels_lines_have_from_power_on() {
    let dir = tempfile::tempdir().unwrap();
    let lamp = LAMP.replace(
        "[{name: on}]",
        "[{name: on, visitors: {configData: {line: 17, direction: output, initial: \"0\", activeLow: true}}}]",
    );
    fs::write(dir.path().join("lamp.yaml"), lamp).unwrap();
    fs::write(dir.path().join("broken.yaml"), "a: [").unwrap();
    let block = pins(dir.path()).unwrap();
    assert!(String::from_utf8_lossy(&block).contains("\ngpio=17=op,dh\n"));
    assert_eq!(block.len(), ::pins::BLOCK_BYTES);
    let none = pins(&dir.path().join("none")).unwrap();
    assert!(!String::from_utf8_lossy(&none).contains("gpio=1"));
}

#[test]
fn files_of_any_bytes_are_values() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |bound: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as usize % bound
    };
    for _ in 0..400 {
        let mut bytes = LAMP.as_bytes().to_vec();
        for _ in 0..=next(6) {
            let at = next(bytes.len());
            match next(3) {
                0 => bytes[at] = next(256) as u8,
                1 => drop(bytes.drain(at..(at + next(40)).min(bytes.len()))),
                _ => bytes.extend_from_within(at..(at + 20).min(bytes.len())),
            }
            if bytes.is_empty() {
                break;
            }
        }
        fuzz_device_file(&bytes);
    }
}
