//! Messages that push objects to a node, built when they are sent.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use wire::delivery::{Push, Target, Verb};
use wire::inventory::{INVENTORY, Inventory};
use wire::{Message, Operation, Resource};

use crate::api::{Api, ApiError};
use crate::cluster::views::Kind;
use crate::contract::NodeDesired;
use crate::upstream::{for_push, tombstone};

/// What became of reading an object that is to be pushed.
#[derive(Debug)]
pub enum Fetched {
    Ready {
        uid: String,
        message: Box<Message>,
    },
    /// Gone meanwhile, or another object has the name.
    Gone {
        msg_id: String,
    },
    /// The API could not be asked. The push is tried again when it would be sent again.
    Failed,
}

/// All that belongs on the node.
pub fn inventory(node: &str, push: &Push, desired: &NodeDesired) -> Message {
    let resource = format!("null/{INVENTORY}/{node}");
    let mut message = Message::new(now_ms(), wire::source::EDGE_CONTROLLER, "resource", INVENTORY, &resource)
        .with_content(&Inventory::new(&desired.targets));
    message.header.msg_id = push.msg_id.clone();
    message
}

/// `protocol`: of a device or its model, for its deletion: an edge of KubeEdge finds the mapper by it (DMI), and by nothing else.
pub async fn fetch(api: Api, push: Push, protocol: Option<String>) -> Fetched {
    let Some((kind, resource)) = kind_of(&push.resource) else {
        return Fetched::Gone { msg_id: push.msg_id };
    };
    if push.verb == Verb::Delete {
        let mut content = tombstone(kind, &resource.namespace, &resource.name, &push.uid);
        if let Some(protocol) = protocol {
            content["spec"] = match kind {
                Kind::DeviceModel => json!({"protocol": protocol}),
                _ => json!({"protocol": {"protocolName": protocol}}),
            };
        }
        let message = Box::new(message(kind, &push).with_content(&content));
        return Fetched::Ready { uid: push.uid, message };
    }
    let body = match api.get(&kind.path(&resource.namespace, &resource.name)).await {
        Ok(body) => body,
        Err(error) if error.is_not_found() => return Fetched::Gone { msg_id: push.msg_id },
        Err(error) => {
            tracing::warn!("{} cannot be read and is sent later: {}", push.resource, error.line());
            return Fetched::Failed;
        }
    };
    match for_push(kind, &body) {
        Ok(object) if crate::upstream::uid_of(&object).as_deref() == Some(&push.uid) => {
            let version = crate::upstream::resource_version_of(&object).unwrap_or_default();
            let message = message(kind, &push).with_raw_content(object).with_resource_version(&version);
            Fetched::Ready { uid: push.uid, message: Box::new(message) }
        }
        Ok(_) => Fetched::Gone { msg_id: push.msg_id },
        Err(source) => {
            tracing::warn!("{} cannot be sent: {}", push.resource, ApiError::Json(source).line());
            Fetched::Gone { msg_id: push.msg_id }
        }
    }
}

fn message(kind: Kind, push: &Push) -> Message {
    let operation = match push.verb {
        // KubeEdge announces a node by `update` only; an insert would not be acknowledged by its edge.
        Verb::Insert if kind == Kind::Node => Operation::UPDATE,
        Verb::Insert => Operation::INSERT,
        Verb::Update => Operation::UPDATE,
        Verb::Delete => Operation::DELETE,
        Verb::Inventory => INVENTORY,
    };
    let mut message = Message::new(now_ms(), kind.source(), "resource", operation, &push.resource);
    message.header.msg_id = push.msg_id.clone();
    message
}

fn kind_of(resource: &str) -> Option<(Kind, Resource)> {
    let resource = Resource::parse(resource)?;
    Some((Kind::from_word(&resource.kind)?, resource))
}

pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// The devices among the targets, as `<namespace>/<name>`.
pub fn devices(targets: &[Target]) -> BTreeSet<String> {
    let names = targets.iter().filter_map(|target| kind_of(&target.resource));
    names
        .filter(|(kind, _)| *kind == Kind::Device)
        .map(|(_, r)| format!("{}/{}", r.namespace, r.name))
        .collect()
}

/// KubeEdge's edge keeps twins only of devices that it was told are members. The message is not acknowledged, so all members
/// are announced anew on every link.
pub fn membership(before: &BTreeSet<String>, now: &BTreeSet<String>) -> Option<Message> {
    if before == now {
        return None;
    }
    let list = |ids: Vec<&String>| match ids.is_empty() {
        true => Value::Null,
        false => ids.into_iter().map(|id| json!({"id": id, "name": id.rsplit('/').next()})).collect(),
    };
    let content = json!({
        "event_id": uuid::Uuid::new_v4().to_string(),
        "timestamp": now_ms(),
        "added_devices": list(now.difference(before).collect()),
        "removed_devices": list(before.difference(now).collect()),
    });
    let message =
        Message::new(now_ms(), wire::source::DEVICE_CONTROLLER, "twin", Operation::UPDATE, "membership");
    Some(message.with_content(&content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_names_what_came_and_what_went() {
        let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<String>>();
        assert!(membership(&set(&["d/a"]), &set(&["d/a"])).is_none());
        let message = membership(&set(&["d/a", "d/b"]), &set(&["d/b", "d/c"])).unwrap();
        let content: Value = message.content_as().unwrap();
        assert_eq!(content["added_devices"], json!([{"id": "d/c", "name": "c"}]));
        assert_eq!(content["removed_devices"], json!([{"id": "d/a", "name": "a"}]));
        let first: Value = membership(&set(&[]), &set(&["d/a"])).unwrap().content_as().unwrap();
        assert_eq!(first["removed_devices"], Value::Null);
    }

    #[test]
    fn a_push_has_the_source_that_the_edge_branches_on() {
        let push = |resource: &str, verb| Push {
            msg_id: "m".into(),
            verb,
            uid: "u".into(),
            resource: resource.into(),
            version: "1".into(),
            sends: 1,
        };
        let route = |resource: &str, verb| {
            let message = message(kind_of(resource).unwrap().0, &push(resource, verb));
            (message.route.source, message.route.operation)
        };
        assert_eq!(route("d/device/x", Verb::Insert), ("devicecontroller".into(), "insert".into()));
        assert_eq!(route("d/pod/x", Verb::Delete), ("edgecontroller".into(), "delete".into()));
        assert_eq!(route("null/node/x", Verb::Insert), ("edgecontroller".into(), "update".into()));
    }
}
