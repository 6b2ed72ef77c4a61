//! delete, deletecollection, eviction.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use kapi::decode::{self, Findings};
use kapi::{ApiError, Kind, meta, schema, time};
use serde_json::{Value, json};
use store::{Expect, Op, Record};

use crate::backend::Backend;
use crate::body::{Body, json as json_response};
use crate::limits::PATCH_ATTEMPTS_MAX;
use crate::object::{commit_error, parse, read_any};
use crate::query::Query;
use crate::read::Selection;
use crate::server::{Answer, Call, Server};
use crate::write::{finished, put};

/// What a deletion asks for, from the body and the query.
#[derive(Debug, Default)]
pub(crate) struct DeleteOptions {
    grace_seconds: Option<i64>,
    uid: Option<String>,
    version: Option<String>,
    dry_run: bool,
    policy: Policy,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Policy {
    #[default]
    Background,
    Foreground,
    Orphan,
}

enum Deleted {
    Gone(Value),
    /// Something holds it: a grace period or finalizers.
    Marked(Bytes),
}

impl DeleteOptions {
    fn of(call: &Call<'_>) -> Result<DeleteOptions, ApiError> {
        let mut body = json!({});
        if !call.body.is_empty() {
            let mut findings = Findings::default();
            body = read_any(&call.parts.headers, call.body, &mut findings)?;
            let message = &schema::META_V1_DELETE_OPTIONS;
            decode::conform_to(message, "DeleteOptions", "v1", &mut body, &mut findings)?;
        }
        DeleteOptions::read(&body, call.query)
    }

    fn read(body: &Value, query: &Query) -> Result<DeleteOptions, ApiError> {
        let text = |path: &str| Some(meta::text(body, path).to_string()).filter(|text| !text.is_empty());
        let grace_seconds = match body.get("gracePeriodSeconds").and_then(Value::as_i64) {
            Some(seconds) => Some(seconds),
            None => {
                query.number("gracePeriodSeconds")?.map(|seconds| i64::try_from(seconds).unwrap_or(i64::MAX))
            }
        };
        if grace_seconds.is_some_and(|seconds| seconds < 0) {
            return Err(ApiError::unprocessable("gracePeriodSeconds must be 0 or more"));
        }
        let policy = match text("propagationPolicy").as_deref().unwrap_or(query.text("propagationPolicy")) {
            "" | "Background" => Policy::Background,
            "Foreground" => Policy::Foreground,
            "Orphan" => Policy::Orphan,
            other => {
                return Err(ApiError::unprocessable(format!(
                    "propagationPolicy: Unsupported value: \"{other}\": supported values: \"Background\", \"Foreground\", \"Orphan\""
                )));
            }
        };
        Ok(DeleteOptions {
            grace_seconds,
            uid: text("preconditions.uid"),
            version: text("preconditions.resourceVersion"),
            dry_run: query.dry_run()? || body.get("dryRun").is_some_and(|list| *list == json!(["All"])),
            policy,
        })
    }
}

impl<B: Backend> Server<B> {
    pub(crate) async fn delete(&self, call: &Call<'_>) -> Answer {
        let kind = call.target.kind;
        let options = DeleteOptions::of(call)?;
        let record = self.inner.backend.get(&self.key(call.target));
        let record = record.ok_or_else(|| ApiError::not_found(kind, call.target.name()))?;
        match self.delete_one(kind, record, &options).await? {
            Deleted::Marked(bytes) => self.show(StatusCode::OK, call, bytes),
            Deleted::Gone(object) => Ok(success(kind, &object)),
        }
    }

    pub(crate) async fn delete_collection(&self, call: &Call<'_>) -> Answer {
        let kind = call.target.kind;
        let options = DeleteOptions::of(call)?;
        let selection = Selection::of(call)?;
        let records = self.inner.backend.list(&kind.resource(), selection.namespace()).records;
        for record in records.into_iter().filter(|record| selection.matches(record)) {
            match self.delete_one(kind, record, &options).await {
                // Somebody else was faster: it is gone, which is what was asked for.
                Err(error) if error.reason == "NotFound" => {}
                other => drop(other?),
            }
        }
        self.list(call)
    }

    /// `pods/eviction`: a deletion that budgets could refuse; there are none here.
    pub(crate) async fn evict(&self, call: &Call<'_>) -> Answer {
        let kind = call.target.kind;
        let mut findings = Findings::default();
        let mut body = read_any(&call.parts.headers, call.body, &mut findings)?;
        decode::conform_to(&schema::POLICY_V1_EVICTION, "Eviction", "policy/v1", &mut body, &mut findings)?;
        let options = DeleteOptions::read(body.get("deleteOptions").unwrap_or(&Value::Null), call.query)?;
        let record = self.inner.backend.get(&self.key(call.target));
        let record = record.ok_or_else(|| ApiError::not_found(kind, call.target.name()))?;
        self.delete_one(kind, record, &options).await?;
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(json_response(StatusCode::CREATED, &status))
    }

    async fn delete_one(
        &self,
        kind: &'static Kind,
        mut record: Arc<Record>,
        options: &DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        let name = record.key.name.to_string();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let old = parse(&record)?;
            check(kind, &name, &old, options)?;
            let new = self.marked(kind, &old, options);
            let gone = finished(kind, &new);
            if options.dry_run {
                return Ok(if gone { Deleted::Gone(new) } else { Deleted::Marked(new.to_string().into()) });
            }
            if !gone && new == old {
                return Ok(Deleted::Marked(record.value.clone()));
            }
            let expect = Expect::Revision(record.revision);
            let op = if gone {
                Op::Delete(record.key.clone(), expect)
            } else {
                Op::Put(put(record.key.clone(), new.clone()), expect)
            };
            let durability = crate::object::durability(kind, "");
            match self.inner.backend.commit(vec![op], durability).await {
                Ok(_) if gone => {
                    return Ok(Deleted::Gone(new));
                }
                Ok(records) => {
                    let record =
                        records.first().ok_or_else(|| ApiError::internal("the store returned no record"))?;
                    return Ok(Deleted::Marked(record.value.clone()));
                }
                Err(store::CommitError::Conflict { current, .. }) if attempts < PATCH_ATTEMPTS_MAX => {
                    record = current;
                }
                Err(store::CommitError::Absent { .. }) => return Err(ApiError::not_found(kind, &name)),
                Err(error) => return Err(commit_error(kind, &name, &error)),
            }
        }
    }

    /// The object as a deletion leaves it. [`finished`] says whether it then is gone.
    fn marked(&self, kind: &Kind, old: &Value, options: &DeleteOptions) -> Value {
        let mut new = old.clone();
        let grace = grace(kind, old, options);
        let now = self.now();
        let finalizer = match options.policy {
            Policy::Background => None,
            Policy::Foreground => Some("foregroundDeletion"),
            Policy::Orphan => Some("orphan"),
        };
        let metadata = meta::metadata(&mut new);
        // A second deletion can shorten the grace period, not lengthen it.
        let had = metadata.get("deletionGracePeriodSeconds").and_then(Value::as_i64);
        let first = !metadata.contains_key("deletionTimestamp");
        if first || had.is_some_and(|had| grace < had) {
            let started = metadata
                .get("deletionTimestamp")
                .and_then(Value::as_str)
                .and_then(time::parse)
                .map_or(now, |at| at - had.unwrap_or(0));
            metadata.insert("deletionTimestamp".into(), time::rfc3339(started.saturating_add(grace)).into());
            metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
            if first && kind.has_generation {
                let generation = metadata.get("generation").and_then(Value::as_i64).unwrap_or(1);
                metadata.insert("generation".into(), (generation + 1).into());
            }
        }
        if let Some(finalizer) = finalizer.filter(|_| first) {
            let list = metadata.entry("finalizers").or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut()
                && !list.contains(&json!(finalizer))
            {
                list.push(finalizer.into());
            }
        }
        if kind.kind == "Namespace" {
            meta::child(&mut new, "status").insert("phase".into(), "Terminating".into());
        }
        new
    }
}

/// Seconds that the object may live on.
fn grace(kind: &Kind, object: &Value, options: &DeleteOptions) -> i64 {
    if kind.kind != "Pod" {
        return 0;
    }
    // Nothing runs on a node, so there is nobody to wait for.
    let unscheduled = meta::text(object, "spec.nodeName").is_empty();
    if unscheduled || matches!(meta::text(object, "status.phase"), "Succeeded" | "Failed") {
        return 0;
    }
    let own = meta::at(object, "spec.terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30);
    // A negative period of the pod's own means the shortest.
    options.grace_seconds.unwrap_or(if own < 0 { 1 } else { own })
}

fn check(kind: &Kind, name: &str, object: &Value, options: &DeleteOptions) -> Result<(), ApiError> {
    for (what, wanted, path) in [
        ("UID", &options.uid, "metadata.uid"),
        ("ResourceVersion", &options.version, "metadata.resourceVersion"),
    ] {
        let found = meta::text(object, path);
        if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != found) {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
            );
            return Err(ApiError::conflict(kind, name, why));
        }
    }
    Ok(())
}

fn success(kind: &Kind, object: &Value) -> Response<Body> {
    let mut details = json!({
        "name": meta::text(object, "metadata.name"), "kind": kind.plural, "uid": meta::text(object, "metadata.uid"),
    });
    if !kind.group.is_empty() {
        details["group"] = kind.group.into();
    }
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    });
    json_response(StatusCode::OK, &status)
}
