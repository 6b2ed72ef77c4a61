//! Device plugins (v1beta1): programs on the node that offer devices to pods by a resource name.
//!
//! A plugin registers at `device-plugins/kubelet.sock` below the kubelet's folder, lists its devices, and is asked for what a
//! container needs to use some of them. Invariants: see [`book`]; an allocation is durable before its pod's first container,
//! and kept over restarts of the agent and of the plugin.
//!
//! Start at [`book::Book`] (decides) and [`host::Plugins`] (talks). Source: the Kubernetes documentation "Device Plugins".

pub mod book;
pub mod host;
pub mod messages;
pub mod register;
#[cfg(test)]
pub mod tests;

use std::collections::{BTreeMap, HashMap};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use prost::Message;
use serde::{Deserialize, Serialize};

use super::{cri::messages as cri, render::Devices};
use crate::contract::{Meta, MetaError};
use book::Claim;
use messages::ContainerAllocateResponse;

/// Kind of the local records: one for each pod that holds devices.
pub const KIND: &str = "devicealloc";
/// Kind and name of the record of all resources that were ever told to the cloud.
const RESOURCES: (&str, &str) = ("deviceresources", "all");

/// What a pod was given, as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Stored {
    claims: Vec<StoredClaim>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct StoredClaim {
    #[serde(flatten)]
    claim: Claim,
    /// The plugin's answer: protobuf in base64.
    answer: String,
}

fn parse(body: &[u8]) -> Option<Stored> {
    serde_json::from_slice(body).ok()
}

/// What pods hold, and which resources there were, from the store.
pub fn load(meta: &dyn Meta) -> (BTreeMap<String, Vec<Claim>>, Vec<String>) {
    let mut held = BTreeMap::new();
    for (incarnation, body) in meta.list_local(KIND) {
        match parse(&body) {
            Some(stored) => {
                held.insert(incarnation, stored.claims.into_iter().map(|stored| stored.claim).collect());
            }
            None => tracing::error!("record {KIND}/{incarnation} cannot be read; its devices count as free"),
        }
    }
    let known = meta.get_local(RESOURCES.0, RESOURCES.1);
    let known = known.and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
    (held, known)
}

/// Remembers which resources the cloud was told of, so that they can be told to be gone.
pub async fn remember(meta: &dyn Meta, names: Vec<String>) {
    let body = serde_json::to_vec(&names).expect("names serialise");
    if let Err(error) = meta.put_local(RESOURCES.0, RESOURCES.1, body.into(), false).await {
        tracing::warn!("{}", rt::error_chain(&error));
    }
}

pub async fn store(
    meta: &dyn Meta,
    incarnation: &str,
    claims: &[Claim],
    answers: &[ContainerAllocateResponse],
) -> Result<(), MetaError> {
    let stored = |(claim, answer): (&Claim, &ContainerAllocateResponse)| StoredClaim {
        claim: claim.clone(),
        answer: BASE64.encode(answer.encode_to_vec()),
    };
    let stored = Stored { claims: claims.iter().zip(answers).map(stored).collect() };
    let body = serde_json::to_vec(&stored).expect("an allocation serialises");
    meta.put_local(KIND, incarnation, body.into(), true).await
}

/// What a container gets of its pod's devices, and which these are.
pub fn of_container(meta: &dyn Meta, incarnation: &str, container: &str) -> (Vec<Claim>, Devices) {
    let stored = meta.get_local(KIND, incarnation).and_then(|body| parse(&body)).unwrap_or_default();
    let (mut claims, mut devices) = (Vec::new(), Devices::default());
    for StoredClaim { claim, answer } in stored.claims {
        if claim.container != container {
            continue;
        }
        let answer = BASE64.decode(&answer).ok();
        if let Some(answer) = answer.and_then(|bytes| ContainerAllocateResponse::decode(&bytes[..]).ok()) {
            add(&mut devices, answer);
        }
        claims.push(claim);
    }
    devices.env.sort();
    (claims, devices)
}

/// Where two plugins set the same thing the first one wins, as with kubelet.
fn add(to: &mut Devices, answer: ContainerAllocateResponse) {
    for (key, value) in answer.envs {
        if !to.env.iter().any(|(known, _)| *known == key) {
            to.env.push((key, value));
        }
    }
    for mount in answer.mounts {
        if !to.mounts.iter().any(|known| known.container_path == mount.container_path) {
            to.mounts.push(cri::Mount {
                container_path: mount.container_path,
                host_path: mount.host_path,
                readonly: mount.read_only,
                propagation: cri::MountPropagation::Private.into(),
            });
        }
    }
    for device in answer.devices {
        if !to.devices.iter().any(|known| known.container_path == device.container_path) {
            to.devices.push(cri::Device {
                container_path: device.container_path,
                host_path: device.host_path,
                permissions: device.permissions,
            });
        }
    }
    let new: HashMap<String, String> =
        answer.annotations.into_iter().filter(|(key, _)| !to.annotations.contains_key(key)).collect();
    to.annotations.extend(new);
    to.cdi.extend(answer.cdi_devices.into_iter().map(|device| cri::CdiDevice { name: device.name }));
}

/// Entry for a fuzzer: what plugins send and what is stored. Total.
pub fn fuzz_device_plugin(data: &[u8]) {
    if let Ok(message) = register::unframe(data)
        && let Ok(request) = messages::RegisterRequest::decode(message)
    {
        let _ = register::check(&request);
    }
    let _ = messages::ListAndWatchResponse::decode(data);
    let mut devices = Devices::default();
    if let Ok(answer) = ContainerAllocateResponse::decode(data) {
        add(&mut devices, answer);
    }
    let _ = parse(data);
}
