//! What a node's message asks for, and whether this node may ask it. Values only.

use wire::{Message, Operation, Resource};

use crate::contract::Reference;

/// The namespace of node leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Keepalive,
    /// `config`, `ping`, `pong`: answered at once.
    Control,
    /// The node has stored a push.
    Ack {
        parent: String,
    },
    NodeInsert,
    NodeQuery,
    /// Labels and annotations.
    NodeUpdate,
    /// Strategic merge patch of the status.
    NodePatch,
    LeaseQuery,
    LeaseInsert,
    LeaseUpdate,
    /// The time of the lease that is there; compact lane.
    LeaseRenew,
    /// The status is what it was; compact lane.
    NodeBeat,
    PodPatch(Resource),
    /// A mirror pod of a static pod.
    PodInsert(Resource),
    /// The node has stopped the pod: it may go.
    PodDelete(Resource),
    /// Config map, secret, claim or volume.
    Query(Reference),
    /// A volume attachment, which says on which node the volume is.
    Attachment {
        name: String,
    },
    Token {
        namespace: String,
        account: String,
    },
    EventInsert {
        namespace: String,
    },
    EventUpdate {
        namespace: String,
        name: String,
    },
    EventPatch {
        namespace: String,
        name: String,
    },
    Twins {
        namespace: String,
        device: String,
    },
    DeviceState {
        namespace: String,
        device: String,
    },
    ClusterCa,
    /// How a task (upgrade, image pull, configuration) of a cloudcore before this one went.
    TaskReport,
    /// Known, and nothing is to be done.
    Ignored,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("cloudcore does not serve operation {operation} on {resource}")]
    Unsupported { operation: String, resource: String },
    #[error("node {node} may not {operation} {resource}: it belongs to another node")]
    Foreign { node: String, operation: String, resource: String },
    #[error("{resource} is not a resource name")]
    Malformed { resource: String },
}

/// Sources that only the cloud side uses; KubeEdge drops such messages when they come from a node.
const CLOUD_SOURCES: [&str; 5] =
    ["cloudhub", "cloudStream", "devicecontroller", "edgecontroller", "synccontroller"];

/// Operations of task reports, v1alpha2 and v1alpha1 (kubeedge-wire.md section 3.2).
const TASK_OPERATIONS: [&str; 3] = ["UpdateNodeActionStatus", "prepull", "upgrade"];

/// The order of the checks is CloudHub's (kubeedge-wire.md section 3.2).
pub fn parse(node: &str, message: &Message) -> Result<Request, RequestError> {
    let (operation, text) = (message.route.operation.as_str(), message.route.resource.as_str());
    match operation {
        Operation::KEEPALIVE => return Ok(Request::Keepalive),
        "config" | "ping" | "pong" => return Ok(Request::Control),
        Operation::RESPONSE => return Ok(Request::Ack { parent: message.header.parent_msg_id.clone() }),
        Operation::ERROR | Operation::UPLOAD => return Ok(Request::Ignored),
        _ if CLOUD_SOURCES.contains(&message.route.source.as_str()) => return Ok(Request::Ignored),
        _ => {}
    }
    let unsupported = || RequestError::Unsupported { operation: operation.into(), resource: text.into() };
    if TASK_OPERATIONS.contains(&operation) {
        return Ok(Request::TaskReport);
    }
    if text == "k8s/ca.crt" {
        return Ok(Request::ClusterCa);
    }
    if text.starts_with("membership/") {
        return Ok(Request::Ignored);
    }
    if let Some(rest) = text.strip_prefix("device/") {
        return device(rest).ok_or_else(unsupported);
    }
    let resource = Resource::parse(text).ok_or_else(|| RequestError::Malformed { resource: text.into() })?;
    if [&resource.namespace, &resource.name].into_iter().any(|part| !is_name(part)) {
        return Err(RequestError::Malformed { resource: text.into() });
    }
    let own = matches!(resource.kind.as_str(), "node" | "nodepatch" | "lease");
    if own && resource.name != node {
        return Err(RequestError::Foreign {
            node: node.into(),
            operation: operation.into(),
            resource: text.into(),
        });
    }
    if resource.kind == "lease" && resource.namespace != LEASE_NAMESPACE {
        return Err(unsupported());
    }
    let Resource { namespace, kind, name } = resource.clone();
    Ok(match (kind.as_str(), operation) {
        ("node", Operation::INSERT) => Request::NodeInsert,
        ("node", Operation::QUERY) => Request::NodeQuery,
        ("node", Operation::UPDATE) => Request::NodeUpdate,
        ("nodepatch", Operation::PATCH) => Request::NodePatch,
        ("lease", Operation::QUERY) => Request::LeaseQuery,
        ("lease", Operation::INSERT) => Request::LeaseInsert,
        ("lease", Operation::UPDATE) => Request::LeaseUpdate,
        ("lease", wire::lane::RENEW) => Request::LeaseRenew,
        ("nodepatch", wire::lane::BEAT) => Request::NodeBeat,
        ("podpatch", Operation::PATCH) => Request::PodPatch(resource),
        ("pod", Operation::INSERT) => Request::PodInsert(resource),
        ("pod", Operation::DELETE) => Request::PodDelete(resource),
        ("configmap", Operation::QUERY) => Request::Query(Reference { kind: "configmap", namespace, name }),
        ("secret", Operation::QUERY) => Request::Query(Reference { kind: "secret", namespace, name }),
        ("persistentvolumeclaim", Operation::QUERY) => {
            Request::Query(Reference { kind: "persistentvolumeclaim", namespace, name })
        }
        // Of the whole cluster, whatever namespace the node writes.
        ("persistentvolume", Operation::QUERY) => {
            Request::Query(Reference { kind: "persistentvolume", namespace: "null".into(), name })
        }
        ("volumeattachment", Operation::QUERY) => Request::Attachment { name },
        ("serviceaccounttoken", Operation::QUERY) => Request::Token { namespace, account: name },
        ("event", Operation::INSERT) => Request::EventInsert { namespace },
        ("event", Operation::UPDATE) => Request::EventUpdate { namespace, name },
        ("event", Operation::PATCH) => Request::EventPatch { namespace, name },
        _ => return Err(unsupported()),
    })
}

fn device(rest: &str) -> Option<Request> {
    let parts: Vec<&str> = rest.split('/').collect();
    let [namespace, device, subject, verb] = parts[..] else { return None };
    if !is_name(namespace) || !is_name(device) {
        return None;
    }
    let (namespace, device) = (namespace.to_owned(), device.to_owned());
    match (subject, verb) {
        ("twin", "edge_updated") => Some(Request::Twins { namespace, device }),
        ("state", "update") => Some(Request::DeviceState { namespace, device }),
        _ => None,
    }
}

/// Names end up in request paths: nothing but what Kubernetes allows in names (`system:` service accounts excluded).
pub fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !text.is_empty() && text.len() <= 253 && text.bytes().all(allowed) && !matches!(text, "." | "..")
}

/// Decoder of everything a node can send, for random bytes: total, never a panic.
pub fn fuzz_request(data: &[u8]) {
    if let Ok(message) = Message::decode(data) {
        drop(parse("edge-1", &message));
        drop(super::devices::parse_twins(&message));
        drop(super::devices::parse_state(&message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(operation: &str, resource: &str) -> Result<Request, RequestError> {
        parse("edge-1", &Message::new(1, "edged", "meta", operation, resource))
    }

    #[test]
    fn a_node_speaks_for_itself_only() {
        assert_eq!(ask("insert", "null/node/edge-1"), Ok(Request::NodeInsert));
        for resource in ["null/node/edge-2", "null/nodepatch/edge-2", "kube-node-lease/lease/edge-2"] {
            assert!(matches!(ask("update", resource), Err(RequestError::Foreign { .. })), "{resource}");
        }
        assert!(matches!(ask("update", "default/lease/edge-1"), Err(RequestError::Unsupported { .. })));
    }

    #[test]
    fn names_that_would_leave_their_path_are_refused() {
        for resource in
            ["default/configmap/..", "../secret/a", "default/secret/a?x=1", "default/pod/a%2fb", "a b/pod/c"]
        {
            assert!(matches!(ask("query", resource), Err(RequestError::Malformed { .. })), "{resource}");
        }
        assert!(ask("update", "device/default/../twin/edge_updated").is_err());
    }

    #[test]
    fn device_reports_and_acks() {
        let twins = Request::Twins { namespace: "default".into(), device: "dev-3".into() };
        assert_eq!(ask("update", "device/default/dev-3/twin/edge_updated"), Ok(twins));
        let state = Request::DeviceState { namespace: "default".into(), device: "dev-3".into() };
        assert_eq!(ask("update", "device/default/dev-3/state/update"), Ok(state));
        let push = Message::new(1, "edgecontroller", "resource", "insert", "default/pod/web");
        assert_eq!(parse("edge-1", &push.ack(2)), Ok(Request::Ack { parent: push.header.msg_id }));
    }

    #[test]
    fn a_cloud_modules_name_as_source_is_dropped() {
        let message = Message::new(1, "edgecontroller", "resource", "delete", "default/pod/web");
        assert_eq!(parse("edge-1", &message), Ok(Request::Ignored));
    }

    /// Every kind of message that a KubeEdge v1.23 edge sends, in its shape.
    #[test]
    fn kubeedges_messages_mean_what_they_should() {
        #[derive(serde::Deserialize)]
        struct Row {
            request: String,
            message: Message,
        }
        let rows = include_str!("../../tests/vectors/from-edge.jsonl").lines();
        for row in rows.map(|line| serde_json::from_str::<Row>(line).unwrap()) {
            let request = parse("edge-1", &row.message).unwrap();
            assert_eq!(describe(&request, &row.message), row.request, "{}", row.message.route.resource);
        }
    }

    fn describe(request: &Request, message: &Message) -> String {
        let text = match request {
            Request::Keepalive => "keepalive",
            Request::Ignored => "ignored",
            Request::NodeInsert => "node insert",
            Request::NodeQuery => "node query",
            Request::NodePatch => "node patch",
            Request::LeaseQuery => "lease query",
            Request::LeaseUpdate => "lease update",
            Request::Ack { parent } => return format!("ack {parent}"),
            Request::PodPatch(pod) => return format!("pod patch {}/{}", pod.namespace, pod.name),
            Request::PodDelete(pod) => return format!("pod delete {}/{}", pod.namespace, pod.name),
            Request::Query(r) => return format!("query {} {}/{}", r.kind, r.namespace, r.name),
            Request::Token { namespace, account } => return format!("token {namespace}/{account}"),
            Request::Twins { namespace, device } => {
                let twins = super::super::devices::parse_twins(message).unwrap();
                return format!(
                    "twins {namespace}/{device}: {}",
                    twins.into_keys().collect::<Vec<_>>().join(",")
                );
            }
            Request::DeviceState { namespace, device } => {
                return format!(
                    "state {namespace}/{device}: {}",
                    super::super::devices::parse_state(message).unwrap().state
                );
            }
            other => return format!("{other:?}"),
        };
        text.to_owned()
    }

    #[test]
    fn random_and_mutated_frames_never_panic() {
        let mut seed = 0x1234_5678_9abc_def1_u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let good = Message::new(1, "twin", "resource", "update", "device/default/dev-3/twin/edge_updated")
            .with_raw_content(
                serde_json::from_str(r#"{"twin":{"t":{"actual":{"value":"1","metadata":{"timestamp":5}},"metadata":{"type":"int"}}}}"#)
                    .unwrap(),
            )
            .encode();
        for _ in 0..3_000 {
            let mut bytes = good.clone().into_bytes();
            for _ in 0..next() % 6 {
                let at = (next() % bytes.len() as u64) as usize;
                match next() % 3 {
                    0 => bytes[at] = next() as u8,
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, next() as u8),
                }
            }
            fuzz_request(&bytes);
            let random: Vec<u8> = (0..next() % 64).map(|_| next() as u8).collect();
            fuzz_request(&random);
        }
    }
}
