//! The kinds that cloudcore works with: KubeEdge's words for them and their paths in the API.

/// The kinds that are watched. The order is the order of delivery: what others refer to goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Node,
    Secret,
    ConfigMap,
    PersistentVolume,
    PersistentVolumeClaim,
    StorageClass,
    DeviceModel,
    Device,
    Pod,
    Lease,
}

impl Kind {
    pub const ALL: [Kind; 10] = [
        Kind::Node,
        Kind::Secret,
        Kind::ConfigMap,
        Kind::PersistentVolume,
        Kind::PersistentVolumeClaim,
        Kind::StorageClass,
        Kind::DeviceModel,
        Kind::Device,
        Kind::Pod,
        Kind::Lease,
    ];

    /// What the API server's own controllers work with: where they do their duties, it is not looked at.
    pub fn is_for_duties(self) -> bool {
        matches!(self, Kind::StorageClass | Kind::Lease)
    }

    /// A cluster may keep these from us; then no pod here has a claim, and everything else works.
    pub fn is_optional(self) -> bool {
        matches!(self, Kind::PersistentVolume | Kind::PersistentVolumeClaim)
    }

    /// KubeEdge's word for the kind in a message's resource.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Node => "node",
            Kind::Secret => "secret",
            Kind::ConfigMap => "configmap",
            Kind::PersistentVolume => "persistentvolume",
            Kind::PersistentVolumeClaim => "persistentvolumeclaim",
            Kind::StorageClass => "storageclass",
            Kind::DeviceModel => "devicemodel",
            Kind::Device => "device",
            Kind::Pod => "pod",
            Kind::Lease => "lease",
        }
    }

    pub fn from_word(word: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.word() == word)
    }

    /// `route.source` of pushes: the edge branches on it.
    pub fn source(self) -> &'static str {
        match self {
            Kind::Device | Kind::DeviceModel => wire::source::DEVICE_CONTROLLER,
            _ => wire::source::EDGE_CONTROLLER,
        }
    }

    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Device | Kind::DeviceModel => "devices.kubeedge.io/v1beta1",
            Kind::Lease => "coordination.k8s.io/v1",
            Kind::StorageClass => "storage.k8s.io/v1",
            _ => "v1",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::Node => "Node",
            Kind::Secret => "Secret",
            Kind::ConfigMap => "ConfigMap",
            Kind::PersistentVolume => "PersistentVolume",
            Kind::PersistentVolumeClaim => "PersistentVolumeClaim",
            Kind::StorageClass => "StorageClass",
            Kind::DeviceModel => "DeviceModel",
            Kind::Device => "Device",
            Kind::Pod => "Pod",
            Kind::Lease => "Lease",
        }
    }

    /// The path that all objects of the kind (that matter here) are listed at.
    pub fn list_path(self) -> String {
        match self {
            Kind::Lease => "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases".into(),
            _ => format!("{}/{}", self.group_path(), self.plural()),
        }
    }

    /// The path of one object; `namespace` is `null` for cluster scope, as on the wire.
    pub fn path(self, namespace: &str, name: &str) -> String {
        match namespace {
            "" | "null" => format!("{}/{}/{name}", self.group_path(), self.plural()),
            _ => format!("{}/namespaces/{namespace}/{}/{name}", self.group_path(), self.plural()),
        }
    }

    fn group_path(self) -> String {
        match self.api_version() {
            "v1" => "/api/v1".into(),
            version => format!("/apis/{version}"),
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Kind::Node => "nodes",
            Kind::Secret => "secrets",
            Kind::ConfigMap => "configmaps",
            Kind::PersistentVolume => "persistentvolumes",
            Kind::PersistentVolumeClaim => "persistentvolumeclaims",
            Kind::StorageClass => "storageclasses",
            Kind::DeviceModel => "devicemodels",
            Kind::Device => "devices",
            Kind::Pod => "pods",
            Kind::Lease => "leases",
        }
    }
}
