//! get and list.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use kapi::selector::{Fields, Labels};
use kapi::table::{self, Include};
use kapi::{ApiError, Kind, meta};
use serde_json::{Value, json};
use store::Record;

use crate::backend::Backend;
use crate::body::{Body, ListBody, json_bytes, respond};
use crate::object::parse;
use crate::pages::Token;
use crate::query::Query;
use crate::server::{Answer, Call, Format, Server};

/// What a list or watch selects.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    namespace: Option<String>,
    labels: Labels,
    fields: Fields,
}

impl Selection {
    pub fn of(call: &Call<'_>) -> Result<Selection, ApiError> {
        let mut fields = call.query.text("fieldSelector").to_string();
        // A watch of one object by its path.
        if let Some(name) = &call.target.name {
            fields = format!("metadata.name={name},{fields}");
        }
        Ok(Selection {
            namespace: call.target.namespace.clone(),
            labels: Labels::parse(call.query.text("labelSelector"))?,
            fields: Fields::parse(&fields, call.target.kind)?,
        })
    }

    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    pub fn selects_all(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, record: &Record) -> bool {
        let key = &record.key;
        if self.namespace.as_deref().is_some_and(|namespace| *namespace != *key.namespace) {
            return false;
        }
        if !self.fields.matches_names(&key.namespace, &key.name) {
            return false;
        }
        if !self.labels.is_empty() && !self.labels.matches(meta::view(&record.value).labels.as_ref()) {
            return false;
        }
        self.fields.needs_only_names()
            || serde_json::from_slice(&record.value).is_ok_and(|object| self.fields.matches(&object))
    }
}

impl<B: Backend> Server<B> {
    pub(crate) fn get(&self, call: &Call<'_>) -> Answer {
        let (kind, name) = (call.target.kind, call.target.name());
        let record =
            self.inner.backend.get(&self.key(call.target)).ok_or_else(|| ApiError::not_found(kind, name))?;
        let asked = call.query.number("resourceVersion")?.unwrap_or(0);
        let current = self.inner.backend.revision();
        if asked > current {
            return Err(ApiError::version_in_future(asked, current));
        }
        self.show(StatusCode::OK, call, record.value.clone())
    }

    /// One object in the form that the client asked for.
    pub(crate) fn show(&self, code: StatusCode, call: &Call<'_>, value: Bytes) -> Answer {
        let kind = call.target.kind;
        if call.format == Format::Json {
            return Ok(json_bytes(code, value));
        }
        let object: Value = serde_json::from_slice(&value)
            .map_err(|error| ApiError::internal(format!("an object is not JSON: {error}")))?;
        let text = match call.format {
            Format::Partial => table::partial(&object).to_string(),
            _ => {
                let metadata = json!({"resourceVersion": meta::text(&object, "metadata.resourceVersion")});
                let row = table::row(kind, &object, include(call.query)?, self.now());
                format!("{}{row}]}}", table::head(kind, &metadata, true))
            }
        };
        Ok(json_bytes(code, text))
    }

    pub(crate) fn list(&self, call: &Call<'_>) -> Answer {
        let kind = call.target.kind;
        let selection = Selection::of(call)?;
        let asked = check_version_rules(call.query)?;
        let limit = call.query.number("limit")?.unwrap_or(0) as usize;
        let (revision, mut records) = match call.query.text("continue") {
            "" => self.first_page(kind, &selection, asked, call.query)?,
            token => self.next_page(kind, &selection, token)?,
        };
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if limit > 0 && records.len() > limit {
            let rest = records.split_off(limit);
            let last = &records[limit - 1].key;
            let (ns, name) = (last.namespace.to_string(), last.name.to_string());
            if selection.selects_all() {
                metadata["remainingItemCount"] = rest.len().into();
            }
            let id = self.inner.pages.keep(&kind.resource(), rest);
            metadata["continue"] = Token { rv: revision, id, ns, name }.encode().into();
        }
        self.show_list(kind, call, &metadata, records)
    }

    fn first_page(
        &self,
        kind: &Kind,
        selection: &Selection,
        asked: u64,
        query: &Query,
    ) -> Result<(u64, Vec<Arc<Record>>), ApiError> {
        let mut snapshot = self.inner.backend.list(&kind.resource(), selection.namespace());
        if asked > snapshot.revision {
            return Err(ApiError::version_in_future(asked, snapshot.revision));
        }
        if query.text("resourceVersionMatch") == "Exact" && asked != snapshot.revision {
            return Err(ApiError::too_old(asked, snapshot.revision));
        }
        if !selection.selects_all() {
            snapshot.records.retain(|record| selection.matches(record));
        }
        Ok((snapshot.revision, snapshot.records))
    }

    /// The page after a token's: from the kept snapshot, or, when the client took the offer to go on inconsistently, from now.
    fn next_page(
        &self,
        kind: &Kind,
        selection: &Selection,
        token: &str,
    ) -> Result<(u64, Vec<Arc<Record>>), ApiError> {
        let token = Token::decode(token).ok_or_else(|| {
            ApiError::bad_request("continue key is not valid: it was not made by this server")
        })?;
        let after = |record: &Arc<Record>| {
            (&*record.key.namespace, &*record.key.name) > (token.ns.as_str(), token.name.as_str())
        };
        if token.rv == 0 {
            let snapshot = self.inner.backend.list(&kind.resource(), selection.namespace());
            let records =
                snapshot.records.into_iter().filter(|record| after(record) && selection.matches(record));
            return Ok((snapshot.revision, records.collect()));
        }
        if let Some(rest) = self.inner.pages.find(&kind.resource(), token.id) {
            return Ok((token.rv, rest.into_iter().filter(after).collect()));
        }
        let mut error = ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
             results. Continuing with the provided token results in an inconsistent list - objects that were created, \
             modified, or deleted between the time the first chunk was returned and now may show up in the list.",
        );
        error.details.continue_token = Some(Token { rv: 0, ..token }.encode());
        Err(error)
    }

    pub(crate) fn show_list(
        &self,
        kind: &'static Kind,
        call: &Call<'_>,
        metadata: &Value,
        records: Vec<Arc<Record>>,
    ) -> Result<Response<Body>, ApiError> {
        let items = records.into_iter();
        let body = match call.format {
            Format::Json => {
                let head = format!(
                    "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                    kind.kind,
                    kind.api_version()
                );
                ListBody::boxed(head, items.map(|record| record.value.clone()), "]}")
            }
            Format::Partial => {
                let head = format!(
                    "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/v1\",\
                     \"metadata\":{metadata},\"items\":["
                );
                let items = items.filter_map(|record| parse(&record).ok());
                ListBody::boxed(
                    head,
                    items.map(|object| Bytes::from(table::partial(&object).to_string())),
                    "]}",
                )
            }
            Format::Table => {
                let (include, now) = (include(call.query)?, self.now());
                let items = items.filter_map(|record| parse(&record).ok());
                let rows =
                    items.map(move |object| Bytes::from(table::row(kind, &object, include, now).to_string()));
                ListBody::boxed(table::head(kind, metadata, true), rows, "]}")
            }
        };
        Ok(respond(StatusCode::OK, "application/json", body))
    }
}

pub(crate) fn include(query: &Query) -> Result<Include, ApiError> {
    let text = query.text("includeObject");
    Include::parse(text)
        .ok_or_else(|| ApiError::bad_request(format!("unrecognized includeObject value: \"{text}\"")))
}

/// The rules between the version parameters of a list. Returns the version asked for, 0 for any.
fn check_version_rules(query: &Query) -> Result<u64, ApiError> {
    let version = query.text("resourceVersion");
    let matching = query.text("resourceVersionMatch");
    let rule =
        |why: &str| Err(ApiError::unprocessable(format!("ListOptions.meta.k8s.io \"\" is invalid: {why}")));
    if query.get("sendInitialEvents").is_some() {
        return rule("sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list");
    }
    match matching {
        "" => {}
        _ if version.is_empty() => {
            return rule(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            );
        }
        _ if !query.text("continue").is_empty() => {
            return rule(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided",
            );
        }
        "Exact" if version == "0" => {
            return rule(
                "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            );
        }
        "Exact" | "NotOlderThan" => {}
        _ => {
            return rule(
                "resourceVersionMatch: Unsupported value: supported values: \"Exact\", \"NotOlderThan\"",
            );
        }
    }
    Ok(query.number("resourceVersion")?.unwrap_or(0))
}
