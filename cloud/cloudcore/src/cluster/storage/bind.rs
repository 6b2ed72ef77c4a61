//! The binder: what of claims and volumes is to be written now.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::view::{BIND_COMPLETED, Claim, ClaimRef, Class, SELECTED_BY_US, Volume};
use crate::cluster::placement::Placement;
use crate::cluster::views::{Detail, Kind, View};

/// The object that is written, as it was when the write was decided.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub version: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A merge patch of the object or of its status; made only if the object is still at its version.
    Patch { object: Object, status: bool, patch: Value },
    /// Something to tell of a claim or volume.
    Event { object: Object, event_type: &'static str, reason: &'static str, message: String },
}

pub(super) fn object(kind: Kind, view: &View) -> Object {
    Object {
        kind,
        namespace: view.meta.namespace.clone(),
        name: view.meta.name.clone(),
        uid: view.meta.uid.clone(),
        version: view.meta.resource_version.clone(),
    }
}

pub(super) fn claim_of(view: &View) -> Option<&Claim> {
    match &view.detail {
        Detail::Claim(claim) => Some(claim),
        _ => None,
    }
}

pub(super) fn volume_of(view: &View) -> Option<&Volume> {
    match &view.detail {
        Detail::Volume(volume) => Some(volume),
        _ => None,
    }
}

/// Everything that is to be written now.
pub fn plan(placement: &Placement) -> Vec<Action> {
    let mut binder = Binder { placement, taken: BTreeSet::new(), actions: Vec::new() };
    let claims: Vec<(&View, &Claim)> = placement
        .all(Kind::PersistentVolumeClaim)
        .filter_map(|view| claim_of(view).map(|claim| (view, claim)))
        .collect();
    for (view, claim) in claims {
        binder.claim(view, claim);
    }
    for (view, volume) in placement.all(Kind::PersistentVolume).filter_map(|v| Some((v, volume_of(v)?))) {
        binder.volume(view, volume);
    }
    binder.actions
}

/// The class a claim is of: its own, else the default one.
pub(super) fn class_name<'a>(placement: &'a Placement, claim: &'a Claim) -> &'a str {
    match &claim.class {
        Some(class) => class,
        None => default_class(placement).unwrap_or_default(),
    }
}

pub(super) fn class<'a>(placement: &'a Placement, name: &str) -> Option<&'a Class> {
    match &placement.get(Kind::StorageClass, "", name)?.detail {
        Detail::Class(class) => Some(class),
        _ => None,
    }
}

/// The newest of the default classes; by name where they are of one age.
fn default_class(placement: &Placement) -> Option<&str> {
    let is_default = |view: &&View| matches!(&view.detail, Detail::Class(class) if class.is_default);
    placement.all(Kind::StorageClass).filter(is_default).map(|view| view.meta.name.as_str()).next()
}

/// Whether the volume was made, or bound, for this claim.
pub(super) fn is_for(reference: &ClaimRef, claim: &View) -> bool {
    reference.namespace == claim.meta.namespace
        && reference.name == claim.meta.name
        && (reference.uid.is_empty() || reference.uid == claim.meta.uid)
}

/// Whether a volume can serve a claim, whoever it belongs to. `None`: it can.
pub(super) fn mismatch(class: &str, claim: &Claim, view: &View, volume: &Volume) -> Option<&'static str> {
    if volume.bytes < claim.bytes {
        return Some("requested PV is too small");
    }
    if volume.class != class {
        return Some("storageClassName does not match");
    }
    if volume.block != claim.block {
        return Some("incompatible volumeMode");
    }
    if !claim.modes.iter().all(|mode| volume.modes.contains(mode)) {
        return Some("incompatible accessMode");
    }
    let selected = claim.selector.as_ref().is_none_or(|selector| selector.matches(view.meta.labels.as_ref()));
    (!selected).then_some("its labels do not match the claim's selector")
}

/// The patch that gives a volume to a claim.
pub(super) fn give(volume: &View, claim: &View) -> Action {
    let by_controller =
        volume_of(volume).is_none_or(|volume| volume.claim.is_none()).then(|| json!({SELECTED_BY_US: "yes"}));
    let mut patch = json!({"spec": {"claimRef": {
        "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": claim.meta.namespace,
        "name": claim.meta.name, "uid": claim.meta.uid, "resourceVersion": claim.meta.resource_version,
    }}});
    if let Some(annotations) = by_controller {
        patch["metadata"] = json!({"annotations": annotations});
    }
    Action::Patch { object: object(Kind::PersistentVolume, volume), status: false, patch }
}

struct Binder<'a> {
    placement: &'a Placement,
    /// Volumes that this plan gives away.
    taken: BTreeSet<&'a str>,
    actions: Vec<Action>,
}

impl<'a> Binder<'a> {
    fn patch(&mut self, kind: Kind, view: &View, status: bool, patch: Value) {
        self.actions.push(Action::Patch { object: object(kind, view), status, patch });
    }

    fn tell(&mut self, kind: Kind, view: &View, warning: bool, reason: &'static str, message: String) {
        let event_type = if warning { "Warning" } else { "Normal" };
        self.actions.push(Action::Event { object: object(kind, view), event_type, reason, message });
    }

    fn claim(&mut self, view: &'a View, claim: &'a Claim) {
        if view.meta.deletion_timestamp.is_some() {
            return self.release_claim(view, claim);
        }
        if claim.completed {
            return self.bound_claim(view, claim);
        }
        if claim.class.is_none()
            && claim.volume.is_empty()
            && let Some(class) = default_class(self.placement)
        {
            let patch = json!({"spec": {"storageClassName": class}});
            return self.patch(Kind::PersistentVolumeClaim, view, false, patch);
        }
        if !claim.volume.is_empty() {
            return self.named_volume(view, claim);
        }
        match self.find(view, claim) {
            Some(volume) => {
                self.taken.insert(&volume.meta.name);
                let theirs = volume_of(volume).and_then(|volume| volume.claim.as_ref());
                if theirs.is_none_or(|reference| reference.uid.is_empty()) {
                    return self.actions.push(give(volume, view));
                }
                let patch = json!({"spec": {"volumeName": volume.meta.name},
                    "metadata": {"annotations": {SELECTED_BY_US: "yes", BIND_COMPLETED: "yes"}}});
                self.patch(Kind::PersistentVolumeClaim, view, false, patch);
            }
            None => self.wait(view, claim),
        }
    }

    /// The volume for a claim: the one that has it already, else the smallest that fits. A claim of a class that waits gets none
    /// before a pod that uses it has a node; then the scheduler has chosen (see `schedule`).
    fn find(&self, view: &View, claim: &Claim) -> Option<&'a View> {
        let volumes = || self.placement.all(Kind::PersistentVolume).filter_map(|v| Some((v, volume_of(v)?)));
        let name = class_name(self.placement, claim);
        let fits = |v: &View, volume: &Volume| mismatch(name, claim, v, volume).is_none();
        let made_for_it = volumes().find(|(v, volume)| {
            v.meta.deletion_timestamp.is_none()
                && volume.claim.as_ref().is_some_and(|reference| is_for(reference, view))
                && fits(v, volume)
        });
        if let Some((found, _)) = made_for_it {
            return Some(found);
        }
        if class(self.placement, name).is_some_and(|class| class.waits) {
            return None;
        }
        let free = volumes().filter(|(v, volume)| {
            self.is_free(v, volume) && !self.taken.contains(v.meta.name.as_str()) && fits(v, volume)
        });
        free.min_by_key(|(v, volume)| (volume.bytes, &v.meta.name)).map(|(v, _)| v)
    }

    fn is_free(&self, view: &View, volume: &Volume) -> bool {
        volume.claim.is_none() && volume.phase == "Available" && view.meta.deletion_timestamp.is_none()
    }

    fn named_volume(&mut self, view: &'a View, claim: &'a Claim) {
        let Some(found) = self.placement.get(Kind::PersistentVolume, "", &claim.volume) else {
            return self.pending(view, claim);
        };
        let volume = volume_of(found).expect("a view of the kind has its detail");
        match &volume.claim {
            None if self.taken.insert(&found.meta.name) => {
                match mismatch(class_name(self.placement, claim), claim, found, volume) {
                    None => self.actions.push(give(found, view)),
                    Some(why) => {
                        let message = format!("Cannot bind to requested volume \"{}\": {why}", claim.volume);
                        self.tell(Kind::PersistentVolumeClaim, view, true, "VolumeMismatch", message);
                        self.pending(view, claim);
                    }
                }
            }
            Some(reference) if is_for(reference, view) && reference.uid.is_empty() => {
                self.actions.push(give(found, view));
            }
            Some(reference) if is_for(reference, view) => {
                let patch = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}});
                self.patch(Kind::PersistentVolumeClaim, view, false, patch);
            }
            Some(_) => {
                let message = format!("volume \"{}\" already bound to a different claim.", claim.volume);
                self.tell(Kind::PersistentVolumeClaim, view, true, "FailedBinding", message);
                self.pending(view, claim);
            }
            None => self.pending(view, claim),
        }
    }

    fn pending(&mut self, view: &View, claim: &Claim) {
        if claim.phase != "Pending" {
            self.patch(Kind::PersistentVolumeClaim, view, true, json!({"status": {"phase": "Pending"}}));
        }
    }

    /// Tells why a claim has no volume.
    fn wait(&mut self, view: &View, claim: &Claim) {
        self.pending(view, claim);
        let name = class_name(self.placement, claim);
        let (warning, reason, message) = match (name, class(self.placement, name)) {
            ("", _) => (
                false,
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set".to_string(),
            ),
            (_, None) => {
                (true, "ProvisioningFailed", format!("storageclass.storage.k8s.io \"{name}\" not found"))
            }
            (_, Some(class)) if class.waits => (
                false,
                "WaitForFirstConsumer",
                "waiting for first consumer to be created before binding".to_string(),
            ),
            (_, Some(class)) => (
                true,
                "ProvisioningFailed",
                format!(
                    "no persistent volume fits, and nothing provisions volumes for {} here; make a PersistentVolume of class \
                     {name}",
                    class.provisioner
                ),
            ),
        };
        self.tell(Kind::PersistentVolumeClaim, view, warning, reason, message);
    }

    fn bound_claim(&mut self, view: &'a View, claim: &'a Claim) {
        let lost = |reason, message: &str| Some((reason, message.to_string()));
        let found = self.placement.get(Kind::PersistentVolume, "", &claim.volume);
        let volume = found.and_then(volume_of);
        let trouble = match (claim.volume.as_str(), volume, volume.and_then(|v| v.claim.as_ref())) {
            ("", ..) => lost(
                "ClaimLost",
                "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
            ),
            (_, None, _) => {
                lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
            }
            (_, Some(_), None) => {
                let found = found.expect("its detail was there");
                if self.taken.insert(&found.meta.name) {
                    self.actions.push(give(found, view));
                }
                return;
            }
            (_, Some(_), Some(reference)) if is_for(reference, view) => None,
            _ => lost(
                "ClaimMisbound",
                "Two claims are bound to the same volume, this one is bound incorrectly",
            ),
        };
        if let Some((reason, message)) = trouble {
            if claim.phase != "Lost" {
                self.patch(Kind::PersistentVolumeClaim, view, true, json!({"status": {"phase": "Lost"}}));
                self.tell(Kind::PersistentVolumeClaim, view, true, reason, message);
            }
            return;
        }
        let volume = volume.expect("no trouble without a volume");
        let shows = &claim.status;
        if claim.phase != "Bound" || shows.modes != volume.modes || shows.capacity != volume.capacity {
            let status = json!({"phase": "Bound", "accessModes": volume.modes, "capacity": {"storage": volume.capacity}});
            self.patch(Kind::PersistentVolumeClaim, view, true, json!({"status": status}));
        }
    }

    /// A claim that is being deleted goes once no pod on a node names it.
    fn release_claim(&mut self, view: &View, claim: &Claim) {
        let held = claim.finalizers.iter().any(|f| f == kapi::storage::CLAIM_PROTECTION);
        if !held || schedule_uses(self.placement, view) {
            return;
        }
        let left: Vec<&String> =
            claim.finalizers.iter().filter(|f| *f != kapi::storage::CLAIM_PROTECTION).collect();
        self.patch(Kind::PersistentVolumeClaim, view, false, json!({"metadata": {"finalizers": left}}));
    }

    fn volume(&mut self, view: &'a View, volume: &'a Volume) {
        let owner = volume.claim.as_ref().and_then(|reference| {
            let claim =
                self.placement.get(Kind::PersistentVolumeClaim, &reference.namespace, &reference.name);
            claim.filter(|claim| reference.uid.is_empty() || reference.uid == claim.meta.uid)
        });
        let owner_volume = owner.and_then(claim_of).map(|claim| claim.volume.as_str());
        let (phase, message) = match (&volume.claim, owner_volume) {
            (None, _) => ("Available", String::new()),
            // Made for a claim that is not there yet.
            (Some(reference), _) if reference.uid.is_empty() => ("Available", String::new()),
            (Some(_), Some(name)) if name == view.meta.name => ("Bound", String::new()),
            // Being bound.
            (Some(_), Some("")) => {
                (if volume.phase.is_empty() { "Available" } else { &*volume.phase }, volume.message.clone())
            }
            // The claim took another one: this one is free again, if it was chosen here.
            (Some(_), Some(_)) => {
                if volume.by_controller {
                    let patch = json!({"spec": {"claimRef": null}, "metadata": {"annotations": {SELECTED_BY_US: null}}});
                    self.patch(Kind::PersistentVolume, view, false, patch);
                }
                return;
            }
            (Some(_), None) if volume.reclaim == "Retain" => ("Released", String::new()),
            (Some(_), None) => (
                "Failed",
                format!(
                    "error getting deleter volume plugin for volume \"{0}\": no deletable volume plugin matched; remove the data by \
                     hand, then kubectl delete pv {0}",
                    view.meta.name
                ),
            ),
        };
        if view.meta.deletion_timestamp.is_some() {
            let held = volume.finalizers.iter().any(|f| f == kapi::storage::VOLUME_PROTECTION);
            // A claim that is being bound holds it too.
            if held && owner.is_none_or(|owner| claim_of(owner).is_none_or(|c| c.volume != view.meta.name)) {
                let left: Vec<&String> =
                    volume.finalizers.iter().filter(|f| *f != kapi::storage::VOLUME_PROTECTION).collect();
                self.patch(Kind::PersistentVolume, view, false, json!({"metadata": {"finalizers": left}}));
            }
            return;
        }
        if volume.phase != phase || volume.message != message {
            let told = if message.is_empty() { Value::Null } else { json!(message) };
            let reason = if phase == "Failed" { json!("VolumeFailedDelete") } else { Value::Null };
            let status = json!({"phase": phase, "message": told, "reason": reason});
            self.patch(Kind::PersistentVolume, view, true, json!({"status": status}));
            if phase == "Failed" {
                self.tell(Kind::PersistentVolume, view, true, "VolumeFailedDelete", message);
            }
        }
    }
}

/// Whether a pod that has a node names the claim. A finished pod counts too, as upstream: its object is there.
fn schedule_uses(placement: &Placement, claim: &View) -> bool {
    placement.all(Kind::Pod).filter(|pod| pod.meta.namespace == claim.meta.namespace).any(|pod| {
        matches!(&pod.detail, Detail::Pod(detail)
            if !detail.node.is_empty() && detail.claims.contains(&claim.meta.name))
    })
}

/// Of equal writes that wait for the watch to show them, only the first is made; the same news is told once.
#[derive(Debug, Default)]
pub struct Issued {
    /// The version of the object that a patch was made for.
    patches: BTreeMap<(Kind, String, String, bool), String>,
    told: BTreeMap<(Kind, String, &'static str), String>,
}

/// News remembered; beyond it all may be told again.
const TOLD_MAX: usize = 1024;

impl Issued {
    pub fn is_new(&mut self, action: &Action) -> bool {
        match action {
            Action::Patch { object, status, .. } => {
                let key = (object.kind, object.namespace.clone(), object.name.clone(), *status);
                self.patches.insert(key, object.version.clone()).as_ref() != Some(&object.version)
            }
            Action::Event { object, reason, message, .. } => {
                if self.told.len() >= TOLD_MAX {
                    self.told.clear();
                }
                let key = (object.kind, object.uid.clone(), *reason);
                self.told.insert(key, message.clone()).as_ref() != Some(message)
            }
        }
    }

    /// Patches may be made again: one may have failed.
    pub fn forget(&mut self) {
        self.patches.clear();
    }
}
