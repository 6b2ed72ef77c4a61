//! Where an API server finds a node's kubelet: at the stream port of the replica that holds the node's link, as the Node's own status
//! says. So `kubectl logs` and `exec` need no firewall rule and no forwarding between replicas (docs/kubernetes.md).
//!
//! An API server takes the address by its `--kubelet-preferred-address-types` and the port from `status.daemonEndpoints`.

use serde_json::{Value, json};

use crate::config::KubeletAddressType;

/// What stands in the status of each node that is connected here.
#[derive(Clone, Debug)]
pub struct KubeletPlace {
    pub address: String,
    pub kind: KubeletAddressType,
    pub port: u16,
}

impl KubeletPlace {
    /// For a node that says nothing itself: a strategic merge patch.
    pub fn patch(&self) -> String {
        let mut status = json!({});
        self.put(&mut status);
        json!({ "status": status }).to_string()
    }

    /// Into what a node says of itself, whole or as a strategic merge patch.
    pub fn put(&self, status: &mut Value) {
        if !status.is_object() {
            *status = json!({});
        }
        status["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": self.port}});
        let mut addresses = status["addresses"].as_array().cloned().unwrap_or_default();
        let kind = self.kind.name();
        let own = addresses.iter().find(|address| address["type"] == kind).cloned();
        addresses.retain(|address| address["type"] != kind);
        addresses.push(json!({"type": kind, "address": self.address}));
        // The node's own address is still of use to people.
        let shown = addresses.iter().any(|address| address["type"] == "ExternalIP");
        if let (KubeletAddressType::InternalIP, Some(mut own), false) = (self.kind, own, shown) {
            own["type"] = "ExternalIP".into();
            addresses.push(own);
        }
        // A patch that names the order of a list has to name all that it adds.
        if let Some(order) = status.get_mut("$setElementOrder/addresses").and_then(Value::as_array_mut) {
            for address in &addresses {
                if !order.iter().any(|named| named["type"] == address["type"]) {
                    order.push(json!({"type": address["type"]}));
                }
            }
        }
        status["addresses"] = addresses.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(kind: KubeletAddressType, mut status: Value) -> Value {
        let place = KubeletPlace { address: "10.0.0.9".into(), kind, port: 10003 };
        place.put(&mut status);
        assert_eq!(status["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10003);
        status
    }

    #[test]
    fn a_node_is_found_at_its_replica() {
        use KubeletAddressType::{Hostname, InternalIP};
        let own = json!([{"type": "InternalIP", "address": "192.0.2.5"}, {"type": "Hostname", "address": "edge-1"}]);
        let status = put(Hostname, json!({"addresses": own}));
        let there = json!([{"type": "InternalIP", "address": "192.0.2.5"}, {"type": "Hostname", "address": "10.0.0.9"}]);
        assert_eq!(status["addresses"], there);

        let order = json!([{"type": "InternalIP"}, {"type": "Hostname"}]);
        let status = put(InternalIP, json!({"addresses": own, "$setElementOrder/addresses": order}));
        let there = json!([{"type": "Hostname", "address": "edge-1"}, {"type": "InternalIP", "address": "10.0.0.9"},
            {"type": "ExternalIP", "address": "192.0.2.5"}]);
        assert_eq!(status["addresses"], there);
        let order = json!([{"type": "InternalIP"}, {"type": "Hostname"}, {"type": "ExternalIP"}]);
        assert_eq!(status["$setElementOrder/addresses"], order);

        let status = put(Hostname, json!({"conditions": []}));
        assert_eq!(status["addresses"], json!([{"type": "Hostname", "address": "10.0.0.9"}]));
        assert_eq!(put(Hostname, Value::Null)["addresses"], status["addresses"]);
    }
}
