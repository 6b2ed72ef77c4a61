//! The scheduler's part: which nodes a pod's claims allow, and which volumes it takes there.
//!
//! A claim of a class that waits is bound for the node of its first pod: the volume is given to the claim, the binder completes
//! that, and then the pod is bound, to a node that the volume reaches. Each step shows in the objects, so a restart goes on.

use std::collections::BTreeSet;

use super::bind::{Action, claim_of, class, class_name, give, is_for, mismatch, volume_of};
use super::view::{Claim, Labels, Volume};
use crate::cluster::placement::Placement;
use crate::cluster::views::{Kind, PodDetail, View};

/// What a pod's claims ask of its node.
#[derive(Debug, Default)]
pub struct Needs<'a> {
    /// Volumes that the node must reach.
    volumes: Vec<&'a Volume>,
    /// Claims that get their volume with the node.
    waiting: Vec<(&'a View, &'a Claim)>,
    /// A volume is given and the binder is not done yet: the pod waits.
    pub unfinished: bool,
}

impl<'a> Needs<'a> {
    /// The error is why no node will do, in the scheduler's words.
    pub fn of(placement: &'a Placement, namespace: &str, pod: &PodDetail) -> Result<Needs<'a>, String> {
        let mut needs = Needs::default();
        for name in &pod.claims {
            let found = placement.get(Kind::PersistentVolumeClaim, namespace, name);
            let Some((view, claim)) = found.and_then(|view| Some((view, claim_of(view)?))) else {
                return Err(format!("persistentvolumeclaim \"{name}\" not found"));
            };
            if view.meta.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            if claim.phase == "Lost" {
                return Err(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{}\"",
                    claim.volume
                ));
            }
            if claim.completed {
                let volume = placement.get(Kind::PersistentVolume, "", &claim.volume).and_then(volume_of);
                let volume = volume.ok_or_else(|| {
                    format!(
                        "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{}\"",
                        claim.volume
                    )
                })?;
                needs.volumes.push(volume);
                continue;
            }
            let mut volumes = placement.all(Kind::PersistentVolume).filter_map(volume_of);
            let given =
                volumes.find(|v| v.claim.as_ref().is_some_and(|r| !r.uid.is_empty() && is_for(r, view)));
            if let Some(volume) = given {
                needs.volumes.push(volume);
                needs.unfinished = true;
                continue;
            }
            let waits = class(placement, class_name(placement, claim)).is_some_and(|class| class.waits);
            if !waits || !claim.volume.is_empty() {
                return Err("pod has unbound immediate PersistentVolumeClaims".into());
            }
            needs.waiting.push((view, claim));
        }
        Ok(needs)
    }

    pub fn binds(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Why the pod's claims keep it from a node.
    pub fn obstacle(
        &self,
        placement: &Placement,
        taken: &BTreeSet<String>,
        node: &str,
        labels: Option<&Labels>,
    ) -> Option<String> {
        if !self.volumes.iter().all(|volume| volume.reaches(node, labels)) {
            return Some("node(s) had volume node affinity conflict".into());
        }
        let found = self.choose(placement, taken, node, labels);
        found.is_none().then(|| "node(s) didn't find available persistent volumes to bind".into())
    }

    /// The volumes that the waiting claims take on a node; `None` when one finds none.
    pub fn choose(
        &self,
        placement: &'a Placement,
        taken: &BTreeSet<String>,
        node: &str,
        labels: Option<&Labels>,
    ) -> Option<Vec<(&'a View, &'a View)>> {
        let mut chosen: Vec<(&View, &View)> = Vec::new();
        for (view, claim) in &self.waiting {
            let name = class_name(placement, claim);
            let is_free = |v: &View, volume: &Volume| {
                let open = match &volume.claim {
                    None => volume.phase == "Available",
                    Some(reference) => is_for(reference, view),
                };
                open && v.meta.deletion_timestamp.is_none()
                    && !taken.contains(&v.meta.name)
                    && !chosen.iter().any(|(_, other)| other.meta.name == v.meta.name)
                    && mismatch(name, claim, v, volume).is_none()
                    && volume.reaches(node, labels)
            };
            let volumes = placement.all(Kind::PersistentVolume).filter_map(|v| Some((v, volume_of(v)?)));
            let (found, _) = volumes
                .filter(|(v, volume)| is_free(v, volume))
                .min_by_key(|(v, volume)| (volume.claim.is_none(), volume.bytes, v.meta.name.clone()))?;
            chosen.push((view, found));
        }
        Some(chosen)
    }

    /// The writes that give the chosen volumes away.
    pub fn take(&self, chosen: &[(&View, &View)], taken: &mut BTreeSet<String>) -> Vec<Action> {
        taken.extend(chosen.iter().map(|(_, volume)| volume.meta.name.clone()));
        chosen.iter().map(|(claim, volume)| give(volume, claim)).collect()
    }
}
