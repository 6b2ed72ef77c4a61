//! Our store, made whole beside its place and then moved there.

use std::{fs, io};

use bytes::Bytes;
use serde_json::value::RawValue;
use wire::{Message, Operation};

use super::{AdoptError, Places, file, plan::Plan};
use crate::{
    config::Config,
    contract::{Applied, Inbox, Meta},
    edged::{cri::adopted, record, static_pods},
    meta::MetaStore,
    node, twin,
};

pub async fn fill(plan: &Plan, cfg: &Config, places: &Places) -> Result<(), AdoptError> {
    let dir = &places.store_in_work;
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file("remove", dir)(error)),
        _ => {}
    }
    // A step that was cut off after the move is done.
    match fs::remove_dir_all(&places.store) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(file("remove", &places.store)(error));
        }
        _ => {}
    }
    let failed = |error: &dyn std::error::Error| AdoptError::Store(error.to_string());
    let store = MetaStore::open(dir, &cfg.kinglet.cloud_id)
        .map_err(|error| AdoptError::Store(rt::error_chain(&error)))?;
    for object in &plan.contents.objects {
        let body: Box<RawValue> = serde_json::from_str(&object.body).map_err(|error| failed(&error))?;
        let message =
            Message::new(1, "edgecontroller", "resource", Operation::INSERT, &object.resource.to_string())
                .with_content(&body);
        match store.apply(&message).await.map_err(|error| AdoptError::Store(rt::error_chain(&error)))? {
            Applied::Ignored(why) => return Err(AdoptError::Store(format!("{}: {why}", object.resource))),
            Applied::Stored | Applied::Deleted | Applied::Unchanged => {}
        }
    }
    let put = async |kind: &str, name: &str, body: Bytes| {
        store
            .put_local(kind, name, body, true)
            .await
            .map_err(|error| AdoptError::Store(rt::error_chain(&error)))
    };
    for bound in &plan.binding.bound {
        let id = &bound.record.incarnation;
        put(record::KIND, id, json(&bound.record)).await?;
        put(adopted::KIND, id, json(&bound.adopted)).await?;
    }
    for (name, object) in &plan.statics {
        put(static_pods::KIND, name, json(object)).await?;
    }
    for (id, device) in &plan.contents.devices {
        let named = |object: &&super::stock::Object| {
            object.resource.kind == "device"
                && format!("{}/{}", object.resource.namespace, object.resource.name) == *id
        };
        let uid = plan.contents.objects.iter().find(named).map_or("", |object| object.uid.as_str());
        let body = twin::record::taken_over(uid, device.twins.clone(), &device.state, &device.last_online);
        put(twin::RECORD_KIND, id, body).await?;
    }
    // What the cloud delivered to the agent before is here: its Node is no other device's.
    let (kind, name) = node::REGISTERED;
    put(kind, name, Bytes::from_static(b"{}")).await?;
    store.close();
    drop(store);
    fs::rename(dir, &places.store).map_err(file("make", &places.store))?;
    if let Some(parent) = places.store.parent() {
        let _ = fs::File::open(parent).and_then(|folder| folder.sync_all());
    }
    Ok(())
}

fn json(value: &impl serde::Serialize) -> Bytes {
    serde_json::to_vec(value).expect("a record serialises").into()
}
