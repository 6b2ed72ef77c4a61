//! create and update, and what patches share with them.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use kapi::{ApiError, Kind, decode, defaults, ephemeral, kinds, meta, schema, time, validate};
use serde_json::{Value, json};
use store::{Expect, Op, Put, Record};

use crate::backend::Backend;
use crate::body::json as json_response;
use crate::limits::GENERATE_NAME_ATTEMPTS_MAX;
use crate::object::{commit_error, durability, key, parse, read, read_any};
use crate::server::{Answer, Call, Server, warn};

/// What a change does to the object.
pub(crate) struct Change<'a> {
    pub kind: &'static Kind,
    pub subresource: &'a str,
    pub old: &'a Arc<Record>,
    pub new: Value,
    pub dry_run: bool,
}

impl<B: Backend> Server<B> {
    pub(crate) async fn create(&self, call: &Call<'_>) -> Answer {
        match call.target.subresource() {
            "binding" => return self.bind(call).await,
            "eviction" => return self.evict(call).await,
            "token" => return self.request_token(call),
            _ => {}
        }
        let kind = call.target.kind;
        let (mut object, warnings) = read(&call.parts.headers, call.body, kind, call.query)?;
        let dry_run = call.query.dry_run()?;
        self.place(call, &mut object)?;
        if !meta::text(&object, "metadata.resourceVersion").is_empty() {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        self.check_namespace(kind, &object)?;
        if kind.kind == "Pod" {
            self.admit_pod(kind, &mut object).await?;
        }
        let generated = meta::text(&object, "metadata.name").is_empty()
            && !meta::text(&object, "metadata.generateName").is_empty();
        let attempts = if generated { GENERATE_NAME_ATTEMPTS_MAX } else { 1 };
        let mut outcome = Err(ApiError::internal("no attempt was made"));
        for _ in 0..attempts {
            let mut fresh = object.clone();
            self.prepare_new(kind, &mut fresh)?;
            outcome = self.store_new(kind, fresh, dry_run).await;
            match &outcome {
                Err(error) if error.reason == "AlreadyExists" => {}
                _ => break,
            }
        }
        let mut response = self.show(StatusCode::CREATED, call, outcome?)?;
        warn(&mut response, &warnings);
        Ok(response)
    }

    /// Makes name and namespace agree with the path.
    pub(crate) fn place(&self, call: &Call<'_>, object: &mut Value) -> Result<(), ApiError> {
        let given = meta::text(object, "metadata.namespace").to_string();
        let namespace = call.target.namespace();
        if !given.is_empty() && given != namespace {
            return Err(ApiError::bad_request(if call.target.kind.namespaced {
                format!(
                    "the namespace of the provided object does not match the namespace sent on the request: \"{given}\", \"{namespace}\""
                )
            } else {
                "namespace is not allowed on this type".to_string()
            }));
        }
        if call.target.kind.namespaced {
            meta::metadata(object).insert("namespace".into(), namespace.into());
        }
        let name = meta::text(object, "metadata.name").to_string();
        if call.target.name.is_some() {
            if !name.is_empty() && name != call.target.name() {
                return Err(ApiError::bad_request(format!(
                    "the name of the object ({name}) does not match the name on the URL ({})",
                    call.target.name()
                )));
            }
            meta::metadata(object).insert("name".into(), call.target.name().into());
        }
        Ok(())
    }

    fn check_namespace(&self, kind: &Kind, object: &Value) -> Result<(), ApiError> {
        if !kind.namespaced {
            return Ok(());
        }
        let namespaces = kinds::by_path("", "v1", "namespaces").expect("the table has namespaces");
        let name = meta::text(object, "metadata.namespace");
        let record = self.inner.backend.get(&key(namespaces, "", name));
        let record = record.ok_or_else(|| ApiError::not_found(namespaces, name))?;
        if meta::view(&record.value).deletion_timestamp.is_some() {
            return Err(ApiError::namespace_terminating(kind, meta::text(object, "metadata.name"), name));
        }
        Ok(())
    }

    /// Defaults, name, uid, times: everything that makes a body an object. Then it is checked.
    fn prepare_new(&self, kind: &'static Kind, object: &mut Value) -> Result<(), ApiError> {
        let uid = (self.inner.options.uid)();
        let metadata = meta::metadata(object);
        let prefix = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default().to_string();
        if metadata.get("name").and_then(Value::as_str).unwrap_or_default().is_empty() && !prefix.is_empty() {
            metadata.insert("name".into(), generated_name(&prefix, &(self.inner.options.uid)()).into());
        }
        for server_side in [
            "resourceVersion",
            "selfLink",
            "managedFields",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
        ] {
            metadata.remove(server_side);
        }
        metadata.insert("uid".into(), uid.into());
        metadata.insert("creationTimestamp".into(), time::rfc3339(self.now()).into());
        if kind.has_generation {
            metadata.insert("generation".into(), 1.into());
        }
        prune_empty(metadata);
        defaults::apply(kind, object);
        defaults::initial_status(kind, object);
        let mut causes = validate::object(kind, object);
        if kind.kind == "Pod" {
            causes.extend(ephemeral::on_creation(object));
        }
        if causes.is_empty() {
            Ok(())
        } else {
            Err(ApiError::invalid(kind, meta::text(object, "metadata.name"), causes))
        }
    }

    async fn store_new(&self, kind: &'static Kind, object: Value, dry_run: bool) -> Result<Bytes, ApiError> {
        let name = meta::text(&object, "metadata.name").to_string();
        let at = key(kind, meta::text(&object, "metadata.namespace"), &name);
        if dry_run {
            return match self.inner.backend.get(&at) {
                Some(_) => Err(ApiError::already_exists(kind, &name)),
                None => Ok(object.to_string().into()),
            };
        }
        let put = put(at, object);
        let commit = self.inner.backend.commit(vec![Op::Put(put, Expect::Absent)], durability(kind, ""));
        let records = commit.await.map_err(|error| commit_error(kind, &name, &error))?;
        first(&records)
    }

    pub(crate) async fn update(&self, call: &Call<'_>) -> Answer {
        let kind = call.target.kind;
        let (mut object, warnings) = read(&call.parts.headers, call.body, kind, call.query)?;
        self.place(call, &mut object)?;
        let Some(old) = self.inner.backend.get(&self.key(call.target)) else {
            // Kinds that are reported rather than made come into being by the first report.
            if matches!(kind.kind, "Lease" | "Event") && call.target.subresource().is_empty() {
                return self.create(call).await;
            }
            return Err(ApiError::not_found(kind, call.target.name()));
        };
        let change = Change {
            kind,
            subresource: call.target.subresource(),
            old: &old,
            new: object,
            dry_run: call.query.dry_run()?,
        };
        let bytes = self.change(change).await?;
        let mut response = self.show(StatusCode::OK, call, bytes)?;
        warn(&mut response, &warnings);
        Ok(response)
    }

    /// Puts `new` in the place of `old`, or says why not. The object as it is afterwards.
    pub(crate) async fn change(&self, change: Change<'_>) -> Result<Bytes, ApiError> {
        let Change { kind, subresource, old: record, mut new, dry_run } = change;
        let old = parse(record)?;
        let name = record.key.name.to_string();
        check_preconditions(kind, &name, &old, &new)?;
        if subresource == "ephemeralcontainers" {
            new = ephemeral::take_over(&old, &new);
        }
        keep_server_fields(kind, subresource, &old, &mut new);
        if matches!(subresource, "" | "ephemeralcontainers") {
            defaults::apply(kind, &mut new);
            let causes = if subresource.is_empty() {
                let mut causes = validate::object(kind, &new);
                causes.extend(validate::change(kind, &old, &new));
                causes
            } else {
                ephemeral::change(&old, &new)
            };
            if !causes.is_empty() {
                return Err(ApiError::invalid(kind, &name, causes));
            }
            if kind.has_generation && spec_differs(&old, &new) {
                let generation = meta::at(&old, "metadata.generation").and_then(Value::as_i64).unwrap_or(1);
                meta::metadata(&mut new).insert("generation".into(), (generation + 1).into());
            }
        }
        if same(&old, &new) {
            return Ok(record.value.clone());
        }
        if dry_run {
            return Ok(new.to_string().into());
        }
        if finished(kind, &new) {
            // The last finalizer went away: so does the object. The answer is its last state.
            let commit = self.inner.backend.commit(
                vec![Op::Delete(record.key.clone(), Expect::Revision(record.revision))],
                store::Durability::Sync,
            );
            commit.await.map_err(|error| commit_error(kind, &name, &error))?;
            return Ok(new.to_string().into());
        }
        let op = Op::Put(put(record.key.clone(), new), Expect::Revision(record.revision));
        let commit = self.inner.backend.commit(vec![op], durability(kind, subresource));
        let records = commit.await.map_err(|error| commit_error(kind, &name, &error))?;
        first(&records)
    }

    /// `pods/binding`: sets the node, once.
    async fn bind(&self, call: &Call<'_>) -> Answer {
        let kind = call.target.kind;
        let mut findings = decode::Findings::default();
        let mut binding = read_any(&call.parts.headers, call.body, &mut findings)?;
        decode::conform_to(&schema::CORE_V1_BINDING, "Binding", "v1", &mut binding, &mut findings)?;
        let node = meta::text(&binding, "target.name").to_string();
        if node.is_empty() {
            return Err(ApiError::bad_request("a Binding needs target.name, the node's name"));
        }
        let name = call.target.name();
        let record = self.inner.backend.get(&self.key(call.target));
        let record = record.ok_or_else(|| ApiError::not_found(kind, name))?;
        let mut pod = parse(&record)?;
        let uid = meta::text(&binding, "metadata.uid");
        if !uid.is_empty() && *uid != *record.uid {
            return Err(ApiError::conflict(kind, name, format!("the pod with uid {uid} is gone")));
        }
        if !meta::text(&pod, "metadata.deletionTimestamp").is_empty() {
            return Err(ApiError::conflict(
                kind,
                name,
                format!("pod {name} is being deleted, cannot be assigned to a host"),
            ));
        }
        let current = meta::text(&pod, "spec.nodeName");
        if !current.is_empty() {
            return Err(ApiError::conflict(
                kind,
                name,
                format!("pod {name} is already assigned to node \"{current}\""),
            ));
        }
        meta::child(&mut pod, "spec").insert("nodeName".into(), node.into());
        let scheduled = json!({"type": "PodScheduled", "status": "True",
            "lastProbeTime": null, "lastTransitionTime": time::rfc3339(self.now())});
        let conditions = meta::child(&mut pod, "status").entry("conditions").or_insert_with(|| json!([]));
        if let Some(list) = conditions.as_array_mut() {
            list.retain(|condition| meta::text(condition, "type") != "PodScheduled");
            list.push(scheduled);
        }
        if !call.query.dry_run()? {
            let op = Op::Put(put(record.key.clone(), pod), Expect::Revision(record.revision));
            let commit = self.inner.backend.commit(vec![op], store::Durability::Sync);
            commit.await.map_err(|error| commit_error(kind, name, &error))?;
        }
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(json_response(StatusCode::CREATED, &status))
    }
}

/// `prefix` and five characters that spell no words.
pub(crate) fn generated_name(prefix: &str, uid: &str) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const PREFIX_LEN_MAX: usize = 58;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in uid.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let mut cut = prefix.len().min(PREFIX_LEN_MAX);
    while !prefix.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut name = prefix[..cut].to_string();
    for _ in 0..5 {
        name.push(char::from(LETTERS[(hash >> 32) as usize % LETTERS.len()]));
        hash = hash.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
    }
    name
}

/// A put that writes its own revision into the object.
pub(crate) fn put(at: store::Key, mut object: Value) -> Put {
    let uid = meta::text(&object, "metadata.uid").into();
    let render = move |revision: u64| -> Bytes {
        meta::metadata(&mut object).insert("resourceVersion".into(), revision.to_string().into());
        // Kept for as long as the object: without the room that the text grew into.
        object.to_string().into_boxed_str().into_boxed_bytes().into()
    };
    Put { key: at, uid, upstream: None, key_id: 0, value: store::Value::Render(Box::new(render)) }
}

fn first(records: &[Arc<Record>]) -> Result<Bytes, ApiError> {
    let record = records.first().ok_or_else(|| ApiError::internal("the store returned no record"))?;
    Ok(record.value.clone())
}

/// Empty maps and lists are left out, as upstream's types do.
fn prune_empty(metadata: &mut serde_json::Map<String, Value>) {
    metadata.retain(|_, value| match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Null => false,
        _ => true,
    });
}

fn check_preconditions(kind: &Kind, name: &str, old: &Value, new: &Value) -> Result<(), ApiError> {
    let version = meta::text(new, "metadata.resourceVersion");
    if !version.is_empty() && version != "0" && version != meta::text(old, "metadata.resourceVersion") {
        return Err(ApiError::modified(kind, name));
    }
    let (uid, old_uid) = (meta::text(new, "metadata.uid"), meta::text(old, "metadata.uid"));
    if !uid.is_empty() && uid != old_uid {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}");
        return Err(ApiError::conflict(kind, name, why));
    }
    Ok(())
}

/// What a client cannot change through this resource stays as it was.
fn keep_server_fields(kind: &Kind, subresource: &str, old: &Value, new: &mut Value) {
    let old_metadata = old.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    // The status of a custom resource carries no metadata; pods and nodes may be labelled along with it.
    if subresource == "status" && !kind.builtin || subresource == "finalize" {
        meta::metadata(new).clone_from(&old_metadata);
    }
    let metadata = meta::metadata(new);
    let mut fixed = vec![
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
        "namespace",
        "name",
        "generateName",
    ];
    if subresource == "status" {
        fixed.extend(["ownerReferences", "finalizers"]);
    }
    for field in fixed {
        match old_metadata.get(field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    prune_empty(metadata);
    let map = new.as_object_mut().expect("it has metadata");
    let mut restore = |field: &str| {
        match old.get(field) {
            Some(value) => map.insert(field.into(), value.clone()),
            None => map.remove(field),
        };
    };
    match subresource {
        "status" => restore("spec"),
        "finalize" => restore("status"),
        _ if kind.has_status && !kind.status_in_main => {
            restore("status");
            if kind.kind == "Namespace" {
                restore("spec");
            }
        }
        _ => {}
    }
}

fn spec_differs(old: &Value, new: &Value) -> bool {
    let rest = |object: &Value| {
        let mut map = object.as_object().cloned().unwrap_or_default();
        map.remove("metadata");
        map.remove("status");
        map
    };
    rest(old) != rest(new)
}

/// Whether a change changes nothing. Numbers compare by value.
fn same(old: &Value, new: &Value) -> bool {
    old == new
}

/// Whether nothing holds a deleted object any more.
pub(crate) fn finished(kind: &Kind, object: &Value) -> bool {
    let list_empty = |path: &str| meta::at(object, path).and_then(Value::as_array).is_none_or(Vec::is_empty);
    if meta::text(object, "metadata.deletionTimestamp").is_empty() || !list_empty("metadata.finalizers") {
        return false;
    }
    match kind.kind {
        "Namespace" => list_empty("spec.finalizers"),
        // The node ends a pod by a deletion with no grace.
        "Pod" => {
            meta::at(object, "metadata.deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) == 0
        }
        _ => true,
    }
}
