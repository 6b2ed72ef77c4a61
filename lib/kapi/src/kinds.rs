//! The kinds that are served: one table that discovery, validation, patches, Table and durability read.

use crate::schema::{self, Message};

/// How soon a change must be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before the answer.
    Sync,
    /// Within a minute: the next report repeats it.
    Lazy,
}

/// A served kind.
#[derive(Debug)]
pub struct Kind {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub kind: &'static str,
    pub short: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// `/status` is a resource of its own, and the main resource ignores `status`.
    pub has_status: bool,
    /// The main resource takes `status` too: KubeEdge defines Device without a status subresource.
    pub status_in_main: bool,
    /// Spec changes count in `metadata.generation`.
    pub has_generation: bool,
    /// Strategic merge patches and unknown-field rules are those of built-in kinds, not of custom resources.
    pub builtin: bool,
    pub durability: Durability,
    pub schema: &'static Message,
    /// Field selectors beside `metadata.name` and `metadata.namespace`.
    pub field_labels: &'static [&'static str],
}

impl Kind {
    /// `devices.devices.kubeedge.io`, or `pods` in the core group: the name in errors and the key in the store.
    pub fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The path up to the version, without a leading slash: `api/v1` or `apis/<group>/<version>`.
    pub fn api_path(&self) -> String {
        if self.group.is_empty() {
            format!("api/{}", self.version)
        } else {
            format!("apis/{}/{}", self.group, self.version)
        }
    }

    /// Subresources beside `status`, with the kind and the verbs they take.
    pub fn subresources(&self) -> &'static [Subresource] {
        match self.plural {
            "pods" => {
                const {
                    &[
                        core("attach", "PodAttachOptions", &["create", "get"]),
                        core("binding", "Binding", &["create"]),
                        core("ephemeralcontainers", "Pod", &["get", "patch", "update"]),
                        Subresource { group: "policy", ..core("eviction", "Eviction", &["create"]) },
                        core("exec", "PodExecOptions", &["create", "get"]),
                        core("log", "Pod", &["get"]),
                        core("portforward", "PodPortForwardOptions", &["create", "get"]),
                        core("proxy", "PodProxyOptions", &["create", "delete", "get", "patch", "update"]),
                    ]
                }
            }
            "nodes" => {
                const { &[core("proxy", "NodeProxyOptions", &["create", "delete", "get", "patch", "update"])] }
            }
            "serviceaccounts" => {
                const {
                    &[Subresource {
                        group: "authentication.k8s.io",
                        ..core("token", "TokenRequest", &["create"])
                    }]
                }
            }
            "namespaces" => const { &[core("finalize", "Namespace", &["update"])] },
            _ => &[],
        }
    }
}

const fn core(name: &'static str, kind: &'static str, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, kind, group: "", version: "v1", verbs }
}

#[derive(Debug)]
pub struct Subresource {
    pub name: &'static str,
    pub kind: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    pub verbs: &'static [&'static str],
}

pub const VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

const CORE: Kind = Kind {
    group: "",
    version: "v1",
    plural: "",
    singular: "",
    kind: "",
    short: &[],
    categories: &[],
    namespaced: true,
    has_status: false,
    status_in_main: false,
    has_generation: false,
    builtin: true,
    durability: Durability::Sync,
    schema: &schema::META_V1_OBJECT_META,
    field_labels: &[],
};

const DEVICES: Kind =
    Kind { group: "devices.kubeedge.io", version: "v1beta1", builtin: false, has_generation: true, ..CORE };

const RELIABLE_SYNCS: Kind = Kind {
    group: "reliablesyncs.kubeedge.io",
    version: "v1alpha1",
    builtin: false,
    has_generation: true,
    has_status: true,
    ..CORE
};

pub static KINDS: &[Kind] = &[
    Kind {
        plural: "configmaps",
        singular: "configmap",
        kind: "ConfigMap",
        short: &["cm"],
        schema: &schema::CORE_V1_CONFIG_MAP,
        ..CORE
    },
    Kind {
        plural: "events",
        singular: "event",
        kind: "Event",
        short: &["ev"],
        durability: Durability::Lazy,
        schema: &schema::CORE_V1_EVENT,
        field_labels: &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ..CORE
    },
    Kind {
        plural: "namespaces",
        singular: "namespace",
        kind: "Namespace",
        short: &["ns"],
        namespaced: false,
        has_status: true,
        schema: &schema::CORE_V1_NAMESPACE,
        field_labels: &["status.phase"],
        ..CORE
    },
    Kind {
        plural: "nodes",
        singular: "node",
        kind: "Node",
        short: &["no"],
        namespaced: false,
        has_status: true,
        schema: &schema::CORE_V1_NODE,
        field_labels: &["spec.unschedulable"],
        ..CORE
    },
    Kind {
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        kind: "PersistentVolumeClaim",
        short: &["pvc"],
        has_status: true,
        schema: &schema::CORE_V1_PERSISTENT_VOLUME_CLAIM,
        ..CORE
    },
    Kind {
        plural: "persistentvolumes",
        singular: "persistentvolume",
        kind: "PersistentVolume",
        short: &["pv"],
        namespaced: false,
        has_status: true,
        schema: &schema::CORE_V1_PERSISTENT_VOLUME,
        ..CORE
    },
    Kind {
        plural: "pods",
        singular: "pod",
        kind: "Pod",
        short: &["po"],
        categories: &["all"],
        has_status: true,
        has_generation: true,
        schema: &schema::CORE_V1_POD,
        field_labels: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ..CORE
    },
    Kind {
        plural: "secrets",
        singular: "secret",
        kind: "Secret",
        schema: &schema::CORE_V1_SECRET,
        field_labels: &["type"],
        ..CORE
    },
    Kind {
        plural: "serviceaccounts",
        singular: "serviceaccount",
        kind: "ServiceAccount",
        short: &["sa"],
        schema: &schema::CORE_V1_SERVICE_ACCOUNT,
        ..CORE
    },
    Kind {
        group: "coordination.k8s.io",
        plural: "leases",
        singular: "lease",
        kind: "Lease",
        durability: Durability::Lazy,
        schema: &schema::COORDINATION_V1_LEASE,
        ..CORE
    },
    Kind {
        group: "storage.k8s.io",
        plural: "storageclasses",
        singular: "storageclass",
        kind: "StorageClass",
        short: &["sc"],
        namespaced: false,
        schema: &schema::STORAGE_V1_STORAGE_CLASS,
        ..CORE
    },
    Kind {
        plural: "devices",
        singular: "device",
        kind: "Device",
        categories: &["all"],
        has_status: true,
        status_in_main: true,
        schema: &schema::DEVICE,
        field_labels: &["spec.nodeName"],
        ..DEVICES
    },
    Kind {
        plural: "devicemodels",
        singular: "devicemodel",
        kind: "DeviceModel",
        schema: &schema::DEVICE_MODEL,
        ..DEVICES
    },
    // Not a status subresource: KubeEdge merge-patches the whole object.
    Kind {
        plural: "devicestatuses",
        singular: "devicestatus",
        kind: "DeviceStatus",
        durability: Durability::Lazy,
        schema: &schema::DEVICE_STATUS,
        ..DEVICES
    },
    Kind {
        plural: "objectsyncs",
        singular: "objectsync",
        kind: "ObjectSync",
        schema: &schema::OBJECT_SYNC,
        ..RELIABLE_SYNCS
    },
    Kind {
        plural: "clusterobjectsyncs",
        singular: "clusterobjectsync",
        kind: "ClusterObjectSync",
        namespaced: false,
        schema: &schema::CLUSTER_OBJECT_SYNC,
        ..RELIABLE_SYNCS
    },
];

/// The served kind behind a path.
pub fn by_path(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.group == group && kind.version == version && kind.plural == plural)
}

/// The served kind with this `apiVersion` and `kind`.
pub fn by_name(api_version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|entry| entry.kind == kind && entry.api_version() == api_version)
}

/// The served kind whose store key this is.
pub fn by_resource(resource: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.resource() == resource)
}

/// Groups and their version, in discovery's order, the core group first.
pub fn groups() -> Vec<(&'static str, &'static str)> {
    let mut out: Vec<(&str, &str)> = Vec::new();
    for kind in KINDS {
        if !out.contains(&(kind.group, kind.version)) {
            out.push((kind.group, kind.version));
        }
    }
    out
}
