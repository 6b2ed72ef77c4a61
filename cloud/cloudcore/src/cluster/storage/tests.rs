//! The binder against a store in memory: every write it plans is applied as the API would, until it plans no more.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::schedule::Needs;
use super::*;
use crate::cluster::informer::Change;
use crate::cluster::placement::Placement;
use crate::cluster::views::{Detail, Kind, parse};

#[derive(Default)]
struct World {
    objects: BTreeMap<(Kind, String, String), Value>,
    version: u64,
    events: Vec<String>,
}

impl World {
    fn put(&mut self, kind: Kind, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_string();
        let key = (kind, text("namespace"), text("name"));
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", self.version).into();
        }
        let deleted = !object["metadata"]["deletionTimestamp"].is_null();
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        if deleted && !held {
            self.objects.remove(&key);
        } else {
            self.objects.insert(key, object);
        }
    }

    fn delete(&mut self, kind: Kind, name: &str) {
        let mut object = self.get(kind, name).clone();
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        self.put(kind, object);
    }

    fn get(&self, kind: Kind, name: &str) -> &Value {
        let found = self.objects.iter().find(|((k, _, n), _)| *k == kind && n == name);
        found.map_or(&Value::Null, |(_, object)| object)
    }

    fn placement(&self) -> Placement {
        let mut placement = Placement::default();
        for kind in Kind::ALL {
            let of_kind = self.objects.iter().filter(|((k, ..), _)| *k == kind);
            let views = of_kind
                .map(|(_, object)| parse(kind, &RawValue::from_string(object.to_string()).unwrap()).unwrap());
            placement.apply(Change::Listed(kind, views.collect()));
        }
        placement
    }

    /// Applies writes; those on an old version are refused, as the API does.
    fn apply(&mut self, actions: Vec<Action>) -> usize {
        let mut made = 0;
        for action in actions {
            match action {
                Action::Patch { object, patch, .. } => {
                    let key = (object.kind, object.namespace.clone(), object.name.clone());
                    let Some(mut current) = self.objects.get(&key).cloned() else { continue };
                    if current["metadata"]["resourceVersion"] != *object.version {
                        continue;
                    }
                    merge(&mut current, &patch);
                    self.put(object.kind, current);
                    made += 1;
                }
                Action::Event { object, reason, message, .. } => {
                    let line = format!("{} {reason}: {message}", object.name);
                    if self.events.last() != Some(&line) {
                        self.events.push(line);
                    }
                }
            }
        }
        made
    }

    fn settle(&mut self) {
        for _ in 0..50 {
            let actions = plan(&self.placement());
            if self.apply(actions) == 0 {
                return;
            }
        }
        panic!("it writes for ever");
    }

    fn phase(&self, kind: Kind, name: &str) -> String {
        self.get(kind, name)["status"]["phase"].as_str().unwrap_or_default().to_string()
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

fn claim(name: &str, size: &str, spec: Value) -> Value {
    let mut claim = json!({"metadata": {"name": name, "namespace": "default", "finalizers": ["kubernetes.io/pvc-protection"]},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, "storageClassName": ""},
        "status": {"phase": "Pending"}});
    merge(&mut claim["spec"], &spec);
    claim
}

fn volume(name: &str, size: &str, spec: Value) -> Value {
    let mut volume = json!({"metadata": {"name": name, "labels": {"disk": name}, "finalizers": ["kubernetes.io/pv-protection"]},
        "spec": {"accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "capacity": {"storage": size}, "hostPath": {"path": "/x"},
            "persistentVolumeReclaimPolicy": "Retain"},
        "status": {"phase": "Pending"}});
    merge(&mut volume["spec"], &spec);
    volume
}

const PVC: Kind = Kind::PersistentVolumeClaim;
const PV: Kind = Kind::PersistentVolume;

fn on(node: &str) -> Value {
    json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}})
}

fn local_class(world: &mut World, mode: &str, is_default: bool) {
    let annotations = json!({"storageclass.kubernetes.io/is-default-class": is_default.to_string()});
    world.put(
        Kind::StorageClass,
        json!({"metadata": {"name": "local", "annotations": annotations},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": mode}),
    );
}

#[test]
fn the_smallest_volume_that_fits_is_bound() {
    let mut world = World::default();
    world.put(PV, volume("big", "10Gi", json!({})));
    world.put(PV, volume("small", "1Gi", json!({})));
    world.put(PV, volume("middle", "5Gi", json!({})));
    world.put(PV, volume("other", "2Gi", json!({"storageClassName": "other"})));
    world.put(PV, volume("block", "2Gi", json!({"volumeMode": "Block"})));
    world.settle();
    assert_eq!(world.phase(PV, "big"), "Available");
    world.put(PVC, claim("data", "2Gi", json!({})));
    world.settle();
    let data = world.get(PVC, "data").clone();
    assert_eq!(
        (&data["spec"]["volumeName"], &data["status"]["phase"]),
        (&json!("middle"), &json!("Bound")),
        "{data:#}"
    );
    assert_eq!(data["status"]["capacity"], json!({"storage": "5Gi"}));
    assert_eq!(world.phase(PV, "middle"), "Bound");
    assert_eq!(world.get(PV, "middle")["spec"]["claimRef"]["uid"], data["metadata"]["uid"]);
    assert_eq!(world.phase(PV, "small"), "Available");
    let before = world.version;
    world.settle();
    assert_eq!(world.version, before, "what is settled is not written again");
}

#[test]
fn two_claims_never_share_a_volume_and_the_second_is_told_why_it_waits() {
    let mut world = World::default();
    world.put(PV, volume("only", "5Gi", json!({})));
    world.put(PVC, claim("a", "1Gi", json!({})));
    world.put(PVC, claim("b", "1Gi", json!({})));
    world.settle();
    assert_eq!((world.phase(PVC, "a"), world.phase(PVC, "b")), ("Bound".into(), "Pending".into()));
    assert!(
        world.events.contains(
            &"b FailedBinding: no persistent volumes available for this claim and no storage class is set"
                .into()
        ),
        "{:?}",
        world.events
    );
    world.put(PV, volume("late", "1Gi", json!({})));
    world.settle();
    assert_eq!(world.phase(PVC, "b"), "Bound", "it binds when a volume comes");
}

#[test]
fn selectors_modes_names_and_reservations_are_kept() {
    let mut world = World::default();
    for name in ["one", "two", "three"] {
        world.put(PV, volume(name, "5Gi", json!({})));
    }
    world.put(PV, volume("reserved", "1Gi", json!({"claimRef": {"namespace": "default", "name": "mine"}})));
    world.put(PVC, claim("selected", "1Gi", json!({"selector": {"matchLabels": {"disk": "two"}}})));
    world.put(PVC, claim("named", "1Gi", json!({"volumeName": "three"})));
    world.put(PVC, claim("many", "1Gi", json!({"accessModes": ["ReadWriteMany"]})));
    world.put(PVC, claim("large", "6Gi", json!({"volumeName": "one"})));
    world.settle();
    assert_eq!(world.get(PVC, "selected")["spec"]["volumeName"], "two");
    assert_eq!(world.get(PV, "three")["spec"]["claimRef"]["name"], "named");
    assert_eq!((world.phase(PVC, "many"), world.phase(PVC, "large")), ("Pending".into(), "Pending".into()));
    assert!(
        world.events.iter().any(|e| e
            == "large VolumeMismatch: Cannot bind to requested volume \"one\": requested PV is too small"),
        "{:?}",
        world.events
    );
    assert_eq!(world.phase(PV, "reserved"), "Available");
    world.put(PVC, claim("mine", "1Gi", json!({})));
    world.settle();
    assert_eq!(world.get(PVC, "mine")["spec"]["volumeName"], "reserved");
}

#[test]
fn policies_decide_what_becomes_of_a_volume_that_lost_its_claim() {
    let mut world = World::default();
    world.put(PV, volume("keep", "1Gi", json!({"claimRef": {"namespace": "default", "name": "a"}})));
    world.put(PV, volume("drop", "1Gi", json!({"persistentVolumeReclaimPolicy": "Delete", "claimRef": {"namespace": "default", "name": "b"}})));
    world.put(PVC, claim("a", "1Gi", json!({})));
    world.put(PVC, claim("b", "1Gi", json!({})));
    world.settle();
    assert_eq!((world.phase(PV, "keep"), world.phase(PV, "drop")), ("Bound".into(), "Bound".into()));
    world.delete(PVC, "a");
    world.delete(PVC, "b");
    world.settle();
    assert!(world.get(PVC, "a").is_null(), "nothing used it");
    assert_eq!((world.phase(PV, "keep"), world.phase(PV, "drop")), ("Released".into(), "Failed".into()));
    assert!(
        world.get(PV, "drop")["status"]["message"]
            .as_str()
            .unwrap()
            .contains("no deletable volume plugin matched")
    );
    world.put(PVC, claim("a", "1Gi", json!({})));
    world.settle();
    assert_eq!(
        world.phase(PVC, "a"),
        "Pending",
        "a released volume is not given to a claim of the same name"
    );
    world.delete(PV, "keep");
    world.settle();
    assert!(world.get(PV, "keep").is_null());
}

#[test]
fn what_is_in_use_stays_until_it_is_not() {
    let mut world = World::default();
    world.put(PV, volume("v", "1Gi", json!({})));
    world.put(PVC, claim("data", "1Gi", json!({})));
    let pod = |node: &str| {
        json!({"metadata": {"name": "web", "namespace": "default", "uid": "p"}, "spec": {"nodeName": node,
        "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}})
    };
    world.put(Kind::Pod, pod("n1"));
    world.settle();
    world.delete(PVC, "data");
    world.delete(PV, "v");
    world.settle();
    assert!(!world.get(PVC, "data").is_null() && !world.get(PV, "v").is_null());
    world.objects.remove(&(Kind::Pod, "default".into(), "web".into()));
    world.settle();
    assert!(world.get(PVC, "data").is_null() && world.get(PV, "v").is_null());

    world.put(PV, volume("w", "1Gi", json!({})));
    world.put(PVC, claim("data", "1Gi", json!({})));
    world.settle();
    world.objects.remove(&(PV, String::new(), "w".into()));
    world.settle();
    assert_eq!(world.phase(PVC, "data"), "Lost");
    assert!(world.events.last().unwrap().contains("Data on the volume is lost!"));
}

#[test]
fn a_default_class_is_filled_in() {
    let mut world = World::default();
    local_class(&mut world, "Immediate", true);
    let mut without = claim("data", "1Gi", json!({}));
    without["spec"].as_object_mut().unwrap().remove("storageClassName");
    world.put(PVC, without);
    world.put(PV, volume("v", "1Gi", json!({"storageClassName": "local"})));
    world.settle();
    assert_eq!(world.get(PVC, "data")["spec"]["storageClassName"], "local");
    assert_eq!(world.phase(PVC, "data"), "Bound");
    world.put(PVC, claim("lost", "1Gi", json!({"storageClassName": "absent"})));
    world.settle();
    assert!(
        world
            .events
            .iter()
            .any(|e| e == "lost ProvisioningFailed: storageclass.storage.k8s.io \"absent\" not found")
    );
}

#[test]
fn a_class_that_waits_binds_on_the_node_of_the_first_pod() {
    let mut world = World::default();
    local_class(&mut world, "WaitForFirstConsumer", false);
    for node in ["n1", "n2"] {
        let mut spec = on(node);
        spec["storageClassName"] = json!("local");
        world.put(PV, volume(&format!("disk-{node}"), "1Gi", spec));
    }
    world.put(PVC, claim("data", "1Gi", json!({"storageClassName": "local"})));
    world.settle();
    assert_eq!(world.phase(PVC, "data"), "Pending");
    assert!(world.events.contains(
        &"data WaitForFirstConsumer: waiting for first consumer to be created before binding".into()
    ));

    let pod = crate::cluster::views::PodDetail { claims: vec!["data".into()], ..Default::default() };
    let labels = |node: &str| BTreeMap::from([("kubernetes.io/hostname".to_string(), node.to_string())]);
    let placement = world.placement();
    let needs = Needs::of(&placement, "default", &pod).unwrap();
    let mut taken = Default::default();
    let obstacle = |node: &str| needs.obstacle(&placement, &Default::default(), node, Some(&labels(node)));
    assert_eq!((obstacle("n1"), obstacle("n2")), (None, None));
    assert_eq!(obstacle("n3").unwrap(), "node(s) didn't find available persistent volumes to bind");
    let chosen = needs.choose(&placement, &taken, "n2", Some(&labels("n2"))).unwrap();
    let writes = needs.take(&chosen, &mut taken);
    assert!(
        needs.obstacle(&placement, &taken, "n2", Some(&labels("n2"))).is_some(),
        "given away in this round"
    );
    assert_eq!(world.apply(writes), 1);

    // Between the two writes the pod waits; a restarted scheduler sees the same.
    let placement = world.placement();
    let needs = Needs::of(&placement, "default", &pod).unwrap();
    assert!(needs.unfinished && !needs.binds());
    world.settle();
    assert_eq!(world.get(PVC, "data")["spec"]["volumeName"], "disk-n2");
    let placement = world.placement();
    let needs = Needs::of(&placement, "default", &pod).unwrap();
    assert!(!needs.unfinished);
    let at = |node: &str| needs.obstacle(&placement, &Default::default(), node, Some(&labels(node)));
    assert_eq!(at("n1").unwrap(), "node(s) had volume node affinity conflict");
    assert_eq!(at("n2"), None);
}

#[test]
fn pods_whose_claims_cannot_be_had_say_so() {
    let mut world = World::default();
    world.put(PVC, claim("free", "1Gi", json!({})));
    let needs = |world: &World, name: &str| {
        let pod = crate::cluster::views::PodDetail { claims: vec![name.into()], ..Default::default() };
        Needs::of(&world.placement(), "default", &pod).map(|_| ()).unwrap_err()
    };
    assert_eq!(needs(&world, "absent"), "persistentvolumeclaim \"absent\" not found");
    assert_eq!(needs(&world, "free"), "pod has unbound immediate PersistentVolumeClaims");
    world.delete(PVC, "free");
    assert_eq!(needs(&world, "free"), "persistentvolumeclaim \"free\" is being deleted");
}

#[test]
fn a_node_reads_the_volume_of_its_pods_claim_and_no_other() {
    let mut world = World::default();
    world.put(PV, volume("v", "1Gi", json!({})));
    world.put(
        PV,
        volume("foreign", "1Gi", json!({"claimRef": {"namespace": "other", "name": "x", "uid": "u"}})),
    );
    world.put(PVC, claim("data", "1Gi", json!({})));
    world.settle();
    world.put(PVC, claim("thief", "1Gi", json!({"volumeName": "foreign"})));
    world.put(Kind::Pod, json!({"metadata": {"name": "web", "namespace": "default", "uid": "p"}, "spec": {"nodeName": "n1",
        "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "t", "persistentVolumeClaim": {"claimName": "thief"}}]}}));
    let desired = world.placement().desired("n1");
    let resources: Vec<&str> = desired.targets.iter().map(|target| target.resource.as_str()).collect();
    assert_eq!(
        resources,
        [
            "null/persistentvolume/v",
            "default/persistentvolumeclaim/data",
            "default/persistentvolumeclaim/thief",
            "default/pod/web"
        ]
    );
    let references: Vec<String> =
        desired.references.iter().map(|r| format!("{}/{}/{}", r.namespace, r.kind, r.name)).collect();
    assert!(
        references.contains(&"null/persistentvolume/v".into())
            && !references.iter().any(|r| r.contains("foreign")),
        "{references:?}"
    );
    let view = world.placement();
    assert!(matches!(view.get(PV, "", "v").unwrap().detail, Detail::Volume(_)));
}
