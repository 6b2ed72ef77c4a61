//! Pressure against a real containerd: eviction, refusal, limits of the disk, collection of images.

use std::{fs, io::Read, time::Duration};

use e2e::{
    containerd::{missing, not_run},
    registry::{Auth, Registry},
};
use serde_json::{Value, json};

use super::containerd::{Node, archives, pod, wait_for, web};
use crate::edged::{
    images::archive::{self, Blob},
    pressure::{Amount, Signal, Threshold, settings::PressureSettings},
};

macro_rules! needs_containerd {
    ($name:literal) => {
        if let Some(why) = missing() {
            return not_run($name, &why);
        }
    };
}

/// A node that is always short of something.
fn short_of(signal: Signal) -> Node {
    Node::start_with(|settings| {
        let amount = Amount::Units(1 << 60);
        settings.pressure = PressureSettings {
            thresholds: vec![Threshold { signal, amount, grace: None, reclaim: None }],
            ..PressureSettings::default()
        };
    })
}

fn evicted(node: &Node, pod: &str) -> Value {
    node.wait_status(pod, "Failed", |status| status["phase"] == "Failed" && status["reason"] == "Evicted")
}

#[test]
fn pods_go_one_by_one_by_priority_and_new_ones_are_refused() {
    needs_containerd!("pods_go_one_by_one_by_priority_and_new_ones_are_refused");
    let node = short_of(Signal::Memory);
    node.apply(&pod("important", json!({}), json!({ "priority": 1000 })));
    node.apply(&pod("plain", json!({}), json!({})));
    node.apply(&pod("system", json!({}), json!({ "priority": 2_000_001_000 })));
    let status = evicted(&node, "plain");
    let message = status["message"].as_str().unwrap();
    assert!(
        message
            .starts_with("The node was low on resource: memory. Threshold quantity: 1048576Ti, available: "),
        "{message}"
    );
    assert!(
        message.contains("Container c was using ")
            && message.contains(", request is 0, has larger consumption of memory. ")
    );
    assert_ne!(node.status("important").unwrap()["phase"], "Failed", "one at a time");
    assert!(node.events("plain").contains("Warning Evicted The node was low on resource: memory."));
    assert!(node.events("edge-1").contains("Warning EvictionThresholdMet Attempting to reclaim memory"));
    evicted(&node, "important");
    let conditions = node.bench.conditions.0.lock().unwrap().clone();
    let pressure = conditions.iter().rfind(|condition| condition.condition_type == "MemoryPressure").unwrap();
    assert_eq!((pressure.status, &*pressure.reason), (true, "KubeletHasInsufficientMemory"));

    node.apply(&pod("new", json!({}), json!({})));
    let refused = evicted(&node, "new");
    assert_eq!(refused["message"], "Pod was rejected: The node had condition: [MemoryPressure]. ");
    let resources = json!({ "requests": { "memory": "1Mi" } });
    node.apply(&pod("burstable", json!({ "resources": resources }), json!({ "priority": 2_000_001_000 })));
    node.wait_running("burstable");
    node.wait_running("system");
}

#[test]
fn unused_images_go_before_pods_and_pinned_ones_stay() {
    needs_containerd!("unused_images_go_before_pods_and_pinned_ones_stay");
    let mut node = Node::start_with(|settings| {
        let dir = settings.run_dir.with_file_name("only-pause");
        fs::create_dir(&dir).unwrap();
        fs::copy(archives().join("pause.tar"), dir.join("pause.tar")).unwrap();
        settings.preload_dir = dir;
    });
    let registry = Registry::start(Some(node.containerd.inside().unwrap()), Auth::Nobody).unwrap();
    registry.publish(&archives().join("hello.tar"), "team/app", "1").unwrap();
    let mut once = pod("once", json!({ "args": ["exit", "0"] }), json!({ "restartPolicy": "Never" }));
    once["spec"]["containers"][0]["image"] = json!(registry.name("team/app", "1"));
    node.apply(&once);
    node.wait_status("once", "Succeeded", |status| status["phase"] == "Succeeded");
    assert_eq!(node.images(), 2, "pause and what was pulled");
    once["metadata"]["deletionTimestamp"] = json!("2026-11-21T08:00:00Z");
    once["metadata"]["resourceVersion"] = json!("2");
    node.apply(&once);
    let gone = || node.bench.uplink.reports_of("poddelete/default/once/uid-once").pop();
    wait_for("the pod to go", gone, String::new);
    // Now the disk is short.
    node.kill_agent();
    let amount = Amount::Units(1 << 60);
    node.settings.pressure.thresholds =
        vec![Threshold { signal: Signal::ImageDisk, amount, grace: Some(Duration::ZERO), reclaim: None }];
    node.start_agent();
    let collected = || (node.images() == 1).then_some(());
    wait_for("the unused image to be removed", collected, || node.images().to_string());
    assert!(node.events("edge-1").contains("Attempting to reclaim ephemeral-storage"));
}

#[test]
fn an_empty_dir_over_its_limit_ends_its_pod() {
    needs_containerd!("an_empty_dir_over_its_limit_ends_its_pod");
    let node = Node::start();
    let mut scratch = web("scratch", 8080);
    scratch["spec"]["volumes"] = json!([{ "name": "scratch", "emptyDir": { "sizeLimit": "64Ki" } }]);
    scratch["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "scratch", "mountPath": "/scratch" }]);
    node.apply(&scratch);
    node.apply(&web("other", 8081));
    node.wait_running("scratch");
    let folder = node.settings.kubelet_dir.join("pods/uid-scratch/volumes/kubernetes.io~empty-dir/scratch");
    fs::write(folder.join("large"), vec![1; 256 * 1024]).unwrap();
    let status = evicted(&node, "scratch");
    assert_eq!(status["message"], "Usage of EmptyDir volume \"scratch\" exceeds the limit \"64Ki\". ");
    node.wait_running("other");
}

#[test]
fn an_archive_on_a_stick_is_imported_pinned_and_a_cut_one_is_told() {
    needs_containerd!("an_archive_on_a_stick_is_imported_pinned_and_a_cut_one_is_told");
    let node = Node::start_with(|settings| {
        let (dir, stick) =
            (settings.run_dir.with_file_name("only-pause"), settings.run_dir.with_file_name("stick"));
        fs::create_dir(&dir).unwrap();
        fs::create_dir(&stick).unwrap();
        fs::copy(archives().join("pause.tar"), dir.join("pause.tar")).unwrap();
        let whole = fs::read(archives().join("hello.tar")).unwrap();
        fs::write(stick.join("cut.tar"), &whole[..whole.len() / 2]).unwrap();
        fs::write(stick.join("hello.tar"), whole).unwrap();
        fs::write(stick.join("saved.tar.gz"), docker_save("kinglet/saved:1")).unwrap();
        settings.preload_dir = dir;
        settings.images.import_dirs = vec![stick];
    });
    for image in ["docker.io/kinglet/hello:1", "docker.io/kinglet/saved:1"] {
        let told = format!("Normal ImageImported image {image}");
        wait_for(
            "the import",
            || node.events("edge-1").contains(&told).then_some(()),
            || node.events("edge-1"),
        );
    }
    let told = || {
        let conditions = node.bench.conditions.0.lock().unwrap();
        conditions
            .iter()
            .any(|c| c.condition_type == "ImportedImageUnusable" && c.status && c.message.contains("cut.tar"))
            .then_some(())
    };
    wait_for("the condition", told, String::new);
    // The stick is pulled; with policy Always the image is still what the pod runs with.
    fs::remove_dir_all(&node.settings.images.import_dirs[0]).unwrap();
    node.apply(&pod("always", json!({ "imagePullPolicy": "Always" }), json!({})));
    node.wait_running("always");
    let mut saved = pod("saved", json!({ "imagePullPolicy": "Never" }), json!({}));
    saved["spec"]["containers"][0]["image"] = json!("kinglet/saved:1");
    node.apply(&saved);
    node.wait_running("saved");
}

/// The hello image as `docker save | gzip` before Docker 25 writes it: plain layers, no index.
fn docker_save(name: &str) -> Vec<u8> {
    let whole = fs::read(archives().join("hello.tar")).unwrap();
    let image = archive::read(&archives().join("hello.tar")).unwrap().remove(0);
    let bytes = |blob: &Blob| &whole[blob.offset as usize..(blob.offset + blob.size) as usize];
    let mut layer = Vec::new();
    flate2::read::GzDecoder::new(bytes(&image.layers[0])).read_to_end(&mut layer).unwrap();
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["1/layer.tar"] }]);
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (path, content) in [
        ("1/layer.tar", layer.as_slice()),
        ("config.json", bytes(&image.config)),
        ("manifest.json", manifest.to_string().as_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}
