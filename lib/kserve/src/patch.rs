//! patch in its three languages, with retries against concurrent writers.

use http::StatusCode;
use kapi::decode::{self, Findings};
use kapi::{ApiError, Kind, meta, patch};
use serde_json::Value;

use crate::backend::Backend;
use crate::limits::PATCH_ATTEMPTS_MAX;
use crate::object::{Strictness, check_type, media_type, parse};
use crate::server::{Answer, Call, Server, warn};
use crate::write::Change;

/// What patches of a kind may be written in.
fn accepted(kind: &Kind) -> &'static str {
    if kind.builtin {
        "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json"
    } else {
        "application/json-patch+json, application/merge-patch+json"
    }
}

impl<B: Backend> Server<B> {
    pub(crate) async fn patch(&self, call: &Call<'_>) -> Answer {
        let kind = call.target.kind;
        let media = media_type(&call.parts.headers);
        if media.starts_with("application/apply-patch") {
            let mut error = ApiError::unsupported_media_type(accepted(kind));
            error.message = format!(
                "server-side apply is not supported by this server; use client-side apply (kubectl apply without \
                 --server-side). Accepted media types for patches: {}",
                accepted(kind)
            );
            return Err(error);
        }
        let mut findings = Findings::default();
        let body = decode::json(call.body, &mut findings)?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let old = self.inner.backend.get(&self.key(call.target));
            let old = old.ok_or_else(|| ApiError::not_found(kind, call.target.name()))?;
            let mut new = parse(&old)?;
            let before = meta::text(&new, "metadata.resourceVersion").to_string();
            match media.as_str() {
                "application/json-patch+json" => patch::json::apply(&mut new, &body)?,
                "application/merge-patch+json" => patch::merge::apply(&mut new, body.clone()),
                "application/strategic-merge-patch+json" if kind.builtin => {
                    patch::strategic::apply(&mut new, body.clone(), kind.schema)?;
                }
                _ => return Err(ApiError::unsupported_media_type(accepted(kind))),
            }
            let mut found = Findings { texts: findings.texts.clone() };
            check_type(kind, &new)?;
            decode::conform(kind, &mut new, &mut found)?;
            meta::set_type(&mut new, kind);
            let warnings = Strictness::of(call.query)?.judge(kind.kind, &kind.api_version(), found)?;
            let names_a_version = meta::text(&new, "metadata.resourceVersion") != before
                || meta::at(&body, "metadata.resourceVersion").is_some_and(Value::is_string);
            self.place(call, &mut new)?;
            let change = Change {
                kind,
                subresource: call.target.subresource(),
                old: &old,
                new,
                dry_run: call.query.dry_run()?,
            };
            match self.change(change).await {
                Err(error)
                    if error.reason == "Conflict" && !names_a_version && attempts < PATCH_ATTEMPTS_MAX => {}
                outcome => {
                    let mut response = self.show(StatusCode::OK, call, outcome?)?;
                    warn(&mut response, &warnings);
                    return Ok(response);
                }
            }
        }
    }
}
