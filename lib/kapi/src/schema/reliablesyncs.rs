//! reliablesyncs.kubeedge.io/v1alpha1, by hand: KubeEdge's records of what a node has (ObjectSync and ClusterObjectSync).

use super::Merge::Atomic;
use super::Shape::One;
use super::Type::*;
use super::{Field, META_V1_OBJECT_META, Message, Type};

const fn f(name: &'static str, what: Type) -> Field {
    Field::new(name, 0, One, what, Atomic)
}

pub static OBJECT_SYNC: Message = Message {
    name: "io.kubeedge.reliablesyncs.v1alpha1.ObjectSync",
    fields: &[
        f("metadata", Message(&META_V1_OBJECT_META)),
        f("spec", Message(&OBJECT_SYNC_SPEC)),
        f("status", Message(&OBJECT_SYNC_STATUS)),
    ],
};

pub static CLUSTER_OBJECT_SYNC: Message =
    Message { name: "io.kubeedge.reliablesyncs.v1alpha1.ClusterObjectSync", fields: OBJECT_SYNC.fields };

pub static OBJECT_SYNC_SPEC: Message = Message {
    name: "io.kubeedge.reliablesyncs.v1alpha1.ObjectSyncSpec",
    fields: &[f("objectAPIVersion", String), f("objectKind", String), f("objectName", String)],
};

pub static OBJECT_SYNC_STATUS: Message = Message {
    name: "io.kubeedge.reliablesyncs.v1alpha1.ObjectSyncStatus",
    fields: &[f("objectResourceVersion", String)],
};
