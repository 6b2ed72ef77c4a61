//! Which objects belong on which node, from the trimmed views of all kinds. A value without I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use wire::Resource;
use wire::delivery::Target;

use super::informer::Change;
use super::views::{Detail, Kind, PodDetail, View};
use crate::contract::{NodeDesired, Reference};

type Name = (String, String);

/// All objects, by kind, namespace and name.
#[derive(Debug, Default)]
pub struct Placement {
    objects: HashMap<Kind, BTreeMap<Name, View>>,
    /// Pods and devices of each node.
    by_node: HashMap<String, BTreeSet<(Kind, Name)>>,
    /// Each pod's version, and from which resourceVersion on it has it, by uid.
    since: HashMap<String, (String, u64)>,
}

/// Nodes whose desired set may have changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Affected {
    Nodes(BTreeSet<String>),
    All,
}

impl Placement {
    /// True once every kind was listed. Before that nothing may be concluded from an object's absence.
    pub fn is_complete(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.objects.contains_key(kind))
    }

    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &View> {
        self.objects.get(&kind).into_iter().flat_map(BTreeMap::values)
    }

    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<&View> {
        self.objects.get(&kind)?.get(&(namespace.to_owned(), name.to_owned()))
    }

    pub fn apply(&mut self, change: Change) -> Affected {
        match change {
            Change::Listed(kind, views) => {
                let names: Vec<Name> = self.all(kind).map(name_of).collect();
                for name in names {
                    self.remove(kind, &name);
                }
                self.objects.entry(kind).or_default();
                for view in views {
                    self.insert(kind, view);
                }
                if kind == Kind::Pod {
                    let there = self.objects.get(&kind).into_iter().flat_map(BTreeMap::values);
                    let there: BTreeSet<&str> = there.map(|view| view.meta.uid.as_str()).collect();
                    self.since.retain(|uid, _| there.contains(uid.as_str()));
                }
                Affected::All
            }
            Change::Set(kind, view) => {
                let name = name_of(&view);
                let mut nodes = self.nodes_of(kind, &name);
                self.remove(kind, &name);
                self.insert(kind, view);
                nodes.extend(self.nodes_of(kind, &name));
                Affected::Nodes(nodes)
            }
            Change::Gone(kind, view) => {
                let name = name_of(&view);
                let nodes = self.nodes_of(kind, &name);
                self.remove(kind, &name);
                self.since.remove(&view.meta.uid);
                Affected::Nodes(nodes)
            }
        }
    }

    fn insert(&mut self, kind: Kind, view: View) {
        let name = name_of(&view);
        let at = view.meta.resource_version.parse().unwrap_or(u64::MAX);
        if kind == Kind::Pod && self.since.get(&view.meta.uid).is_none_or(|(known, _)| *known != view.version)
        {
            self.since.insert(view.meta.uid.clone(), (view.version.clone(), at));
        }
        if let Some(node) = node_of(&view) {
            self.by_node.entry(node.to_owned()).or_default().insert((kind, name.clone()));
        }
        self.objects.entry(kind).or_default().insert(name, view);
    }

    fn remove(&mut self, kind: Kind, name: &Name) {
        let Some(view) = self.objects.get_mut(&kind).and_then(|views| views.remove(name)) else { return };
        let Some(node) = node_of(&view) else { return };
        if let Some(members) = self.by_node.get_mut(node) {
            members.remove(&(kind, name.clone()));
            if members.is_empty() {
                self.by_node.remove(node);
            }
        }
    }

    fn nodes_of(&self, kind: Kind, name: &Name) -> BTreeSet<String> {
        match kind {
            Kind::Node => BTreeSet::from([name.1.clone()]),
            Kind::Lease | Kind::StorageClass => BTreeSet::new(),
            // A volume goes where its claim goes.
            Kind::PersistentVolume => {
                let claims = self.objects.get(&Kind::PersistentVolumeClaim).into_iter().flatten();
                let claims = claims.filter(|(_, view)| volume_name(view) == Some(&name.1));
                claims.flat_map(|(claim, _)| self.nodes_of(Kind::PersistentVolumeClaim, claim)).collect()
            }
            Kind::Pod | Kind::Device => {
                let view = self.objects.get(&kind).and_then(|views| views.get(name));
                view.and_then(node_of).map(str::to_owned).into_iter().collect()
            }
            Kind::ConfigMap | Kind::Secret | Kind::DeviceModel | Kind::PersistentVolumeClaim => {
                let refers = |members: &BTreeSet<(Kind, Name)>| {
                    members.iter().any(|member| self.member_refers(member, kind, name))
                };
                self.by_node
                    .iter()
                    .filter(|(_, members)| refers(members))
                    .map(|(node, _)| node.clone())
                    .collect()
            }
        }
    }

    fn member_refers(&self, (member_kind, member): &(Kind, Name), kind: Kind, name: &Name) -> bool {
        let view = self.objects.get(member_kind).and_then(|views| views.get(member));
        view.is_some_and(|view| references(view).any(|(k, n)| k == kind && member.0 == name.0 && n == name.1))
    }

    /// What belongs on the node now.
    pub fn desired(&self, node: &str) -> NodeDesired {
        let mut desired = NodeDesired::default();
        let mut wanted: BTreeSet<(Kind, Name)> = BTreeSet::new();
        let mut needed: BTreeSet<Reference> = BTreeSet::new();
        if let Some(view) = self.get(Kind::Node, "", node) {
            desired.node_uid = Some(view.meta.uid.clone());
            wanted.insert((Kind::Node, name_of(view)));
        }
        for member in self.by_node.get(node).into_iter().flatten() {
            wanted.insert(member.clone());
            let Some(view) = self.objects.get(&member.0).and_then(|views| views.get(&member.1)) else {
                continue;
            };
            if let Detail::Device { protocol, .. } = &view.detail {
                desired.protocols.insert(view.meta.uid.clone(), protocol.clone());
            }
            for (kind, name) in references(view) {
                let namespace = view.meta.namespace.clone();
                if let Detail::Device { protocol, .. } = &view.detail
                    && let Some(model) = self.get(kind, &namespace, name)
                {
                    desired.protocols.insert(model.meta.uid.clone(), protocol.clone());
                }
                if kind != Kind::DeviceModel {
                    let reference =
                        Reference { kind: kind.word(), namespace: namespace.clone(), name: name.into() };
                    if !is_optional(view, kind, name) {
                        needed.insert(reference.clone());
                    }
                    desired.references.insert(reference);
                }
                let claimed = (namespace, name.to_owned());
                if kind == Kind::PersistentVolumeClaim
                    && let Some(volume) = self.volume_of_claim(&claimed)
                {
                    desired.references.insert(Reference {
                        kind: Kind::PersistentVolume.word(),
                        namespace: "null".into(),
                        name: volume.into(),
                    });
                    wanted.insert((Kind::PersistentVolume, (String::new(), volume.into())));
                }
                wanted.insert((kind, claimed));
            }
        }
        let optional = |reference: &&Reference| {
            !needed.contains(*reference) && reference.kind != Kind::PersistentVolume.word()
        };
        desired.optional = desired.references.iter().filter(optional).cloned().collect();
        desired.targets = wanted.iter().filter_map(|(kind, name)| self.target(*kind, name)).collect();
        for target in &desired.targets {
            if let Some((_, at)) = self.since.get(&target.uid) {
                desired.since.note(&target.uid, *at);
            }
        }
        desired
    }

    /// The volume that a claim is bound to, from both sides: naming a volume in a claim of one's own gives nobody access to it.
    fn volume_of_claim(&self, claim: &Name) -> Option<&str> {
        let view = self.objects.get(&Kind::PersistentVolumeClaim)?.get(claim)?;
        let name = volume_name(view)?;
        let Detail::Volume(volume) = &self.get(Kind::PersistentVolume, "", name)?.detail else { return None };
        let bound = volume.claim.as_ref().is_some_and(|reference| reference.uid == view.meta.uid);
        bound.then_some(name)
    }

    fn target(&self, kind: Kind, name: &Name) -> Option<Target> {
        let view = self.objects.get(&kind)?.get(name)?;
        let namespace = if name.0.is_empty() { "null" } else { &name.0 };
        Some(Target {
            uid: view.meta.uid.clone(),
            resource: Resource::new(namespace, kind.word(), &name.1).to_string(),
            version: view.version.clone(),
            rank: kind as u8,
        })
    }
}

fn name_of(view: &View) -> Name {
    (view.meta.namespace.clone(), view.meta.name.clone())
}

fn volume_name(view: &View) -> Option<&str> {
    match &view.detail {
        Detail::Claim(claim) if !claim.volume.is_empty() => Some(&claim.volume),
        _ => None,
    }
}

fn node_of(view: &View) -> Option<&str> {
    let node = match &view.detail {
        Detail::Pod(pod) => pod.node.as_str(),
        Detail::Device { node, .. } => node,
        _ => "",
    };
    (!node.is_empty()).then_some(node)
}

/// The pod names it and can do without.
fn is_optional(view: &View, kind: Kind, name: &str) -> bool {
    matches!(&view.detail, Detail::Pod(pod) if pod.optional.iter().any(|(k, n)| *k == kind && n == name))
}

/// Objects of the same namespace that this one names.
fn references(view: &View) -> impl Iterator<Item = (Kind, &str)> {
    let (pod, model): (Option<&PodDetail>, Option<&str>) = match &view.detail {
        Detail::Pod(pod) => (Some(pod), None),
        Detail::Device { model, .. } => (None, Some(model)),
        _ => (None, None),
    };
    let config_maps =
        pod.into_iter().flat_map(|pod| &pod.config_maps).map(|name| (Kind::ConfigMap, name.as_str()));
    let secrets = pod.into_iter().flat_map(|pod| &pod.secrets).map(|name| (Kind::Secret, name.as_str()));
    let claims =
        pod.into_iter().flat_map(|pod| &pod.claims).map(|name| (Kind::PersistentVolumeClaim, name.as_str()));
    config_maps.chain(secrets).chain(claims).chain(model.map(|name| (Kind::DeviceModel, name)))
}

#[cfg(test)]
mod tests {
    use super::super::views::Meta;
    use super::*;

    fn view(name: &str, version: &str, detail: Detail) -> View {
        let namespace = if matches!(detail, Detail::Node(_)) { "" } else { "default" };
        let meta = Meta {
            name: name.into(),
            namespace: namespace.into(),
            uid: format!("uid-{name}"),
            ..Meta::default()
        };
        View { meta, version: version.into(), detail }
    }

    fn pod(name: &str, node: &str, config_map: &str) -> View {
        let detail =
            PodDetail { node: node.into(), config_maps: vec![config_map.into()], ..PodDetail::default() };
        view(name, "1", Detail::Pod(Box::new(detail)))
    }

    fn listed() -> Placement {
        let mut placement = Placement::default();
        for kind in Kind::ALL {
            assert!(!placement.is_complete(), "complete before {kind:?} was listed");
            placement.apply(Change::Listed(kind, Vec::new()));
        }
        assert!(placement.is_complete());
        placement
    }

    fn resources(placement: &Placement, node: &str) -> Vec<String> {
        placement.desired(node).targets.into_iter().map(|target| target.resource).collect()
    }

    #[test]
    fn a_node_gets_its_pods_and_what_they_name() {
        let mut placement = listed();
        placement.apply(Change::Set(Kind::Node, view("n1", "1", Detail::Node(Default::default()))));
        let affected = placement.apply(Change::Set(Kind::Pod, pod("web", "n1", "cfg")));
        assert_eq!(affected, Affected::Nodes(BTreeSet::from(["n1".into()])));
        assert_eq!(resources(&placement, "n1"), ["null/node/n1", "default/pod/web"]);
        let reference = Reference { kind: "configmap", namespace: "default".into(), name: "cfg".into() };
        assert!(
            placement.desired("n1").references.contains(&reference),
            "named, though it does not exist yet"
        );
        let affected = placement.apply(Change::Set(Kind::ConfigMap, view("cfg", "5", Detail::None)));
        assert_eq!(affected, Affected::Nodes(BTreeSet::from(["n1".into()])));
        placement.apply(Change::Set(Kind::ConfigMap, view("other", "6", Detail::None)));
        assert_eq!(resources(&placement, "n1"), ["null/node/n1", "default/configmap/cfg", "default/pod/web"]);
        assert_eq!(resources(&placement, "n2"), Vec::<String>::new());
    }

    #[test]
    fn a_pod_that_goes_takes_its_config_map_along() {
        let mut placement = listed();
        placement.apply(Change::Set(Kind::ConfigMap, view("cfg", "5", Detail::None)));
        placement.apply(Change::Set(Kind::Pod, pod("web", "n1", "cfg")));
        let affected = placement.apply(Change::Gone(Kind::Pod, pod("web", "", "")));
        assert_eq!(affected, Affected::Nodes(BTreeSet::from(["n1".into()])));
        assert_eq!(placement.desired("n1"), NodeDesired::default());
    }

    #[test]
    fn a_model_goes_to_the_nodes_of_its_devices_and_before_them() {
        let mut placement = listed();
        let device = |name: &str, node: &str| {
            view(
                name,
                "1",
                Detail::Device { node: node.into(), model: "m".into(), protocol: "modbus".into() },
            )
        };
        placement.apply(Change::Set(Kind::Device, device("d1", "n1")));
        placement.apply(Change::Set(Kind::Device, device("d2", "n2")));
        let affected = placement.apply(Change::Set(Kind::DeviceModel, view("m", "2", Detail::None)));
        assert_eq!(affected, Affected::Nodes(BTreeSet::from(["n1".into(), "n2".into()])));
        assert_eq!(resources(&placement, "n2"), ["default/devicemodel/m", "default/device/d2"]);
        let moved = placement.apply(Change::Set(Kind::Device, device("d2", "n1")));
        assert_eq!(moved, Affected::Nodes(BTreeSet::from(["n1".into(), "n2".into()])));
        assert!(resources(&placement, "n2").is_empty());
    }
}
