//! The server: from request to response.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, HeaderValue, UPGRADE, WARNING};
use http::request::Parts;
use http::{Method, Request, Response};
use kapi::ApiError;
use store::Key;
use tokio::sync::Semaphore;

use crate::auth::{Attributes, Authorize, Decision, Identity, MASTERS, MastersOnly};
use crate::backend::Backend;
use crate::body::{Body, failure};
use crate::limits::WATCHES_MAX;
use crate::metrics;
use crate::misc;
use crate::nodes::NodeCalls;
use crate::pages::Pages;
use crate::query::Query;
use crate::route::{Route, Target, route};
use crate::tokens::Tokens;

/// What a server is told at its start.
pub struct Options {
    pub authorizer: Box<dyn Authorize>,
    /// Without it there are no service-account tokens.
    pub tokens: Option<Box<dyn Tokens>>,
    /// Pods get what their service account gives them, and must name one that is there. Somebody has to make the account
    /// `default` in every namespace.
    pub service_accounts: bool,
    /// Without it pods have no `log`, `exec`, `attach` and `portforward`, and nodes no `proxy`.
    pub nodes: Option<Arc<dyn NodeCalls>>,
    /// Seconds since the epoch, for timestamps in objects and ages in tables.
    pub now: fn() -> i64,
    /// Makes tokens, pages and uids; tests give a counter.
    pub uid: fn() -> String,
    /// `v1.NN.P+suffix`, as `/version` says it.
    pub version: String,
    /// What `serverAddressByClientCIDRs` says.
    pub address: String,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            authorizer: Box::new(MastersOnly),
            tokens: None,
            service_accounts: false,
            nodes: None,
            now: || {
                let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                since.map_or(0, |since| since.as_secs() as i64)
            },
            uid: || uuid::Uuid::new_v4().to_string(),
            version: concat!("v1.32.0+kinglet.", env!("CARGO_PKG_VERSION")).into(),
            address: String::new(),
        }
    }
}

/// Cheap to clone; clones are the same server.
pub struct Server<B> {
    pub(crate) inner: Arc<Inner<B>>,
}

impl<B> Clone for Server<B> {
    fn clone(&self) -> Server<B> {
        Server { inner: self.inner.clone() }
    }
}

pub(crate) struct Inner<B> {
    pub backend: B,
    pub options: Options,
    pub pages: Pages,
    pub watches: Arc<Semaphore>,
}

/// A response with the warnings that go into its headers.
pub(crate) type Answer = Result<Response<Body>, ApiError>;

/// What a handler needs to know of a request.
pub(crate) struct Call<'a> {
    pub target: &'a Target,
    pub query: &'a Query,
    pub parts: &'a Parts,
    pub body: &'a Bytes,
    pub format: Format,
}

/// What the client wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Table,
    /// Only metadata.
    Partial,
}

impl<B: Backend> Server<B> {
    pub fn new(backend: B, options: Options) -> Server<B> {
        let watches = Arc::new(Semaphore::new(WATCHES_MAX));
        Server { inner: Arc::new(Inner { backend, options, pages: Pages::default(), watches }) }
    }

    pub fn backend(&self) -> &B {
        &self.inner.backend
    }

    /// Answers a request. Never fails: errors are responses.
    pub async fn handle(&self, request: Request<Bytes>, identity: &Identity) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let outcome = match self.caller(&parts, identity) {
            Ok(None) => self.answer(&parts, &body, identity).await,
            Ok(Some(other)) => self.answer(&parts, &body, &other).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(response) => response,
            Err(error) => failure(&error),
        }
    }

    /// Who asks, if it is not the connection's peer: the holder of a token, or whom an administrator acts as.
    fn caller(&self, parts: &Parts, peer: &Identity) -> Result<Option<Identity>, ApiError> {
        let anonymous = peer.groups.iter().any(|group| group == "system:unauthenticated");
        let holder = if anonymous { self.bearer(&parts.headers)? } else { None };
        let other = impersonated(parts, holder.as_ref().unwrap_or(peer))?;
        Ok(other.or(holder))
    }

    async fn answer(&self, parts: &Parts, body: &Bytes, identity: &Identity) -> Answer {
        let path = parts.uri.path();
        let query = Query::parse(parts.uri.query());
        match route(path).ok_or_else(ApiError::no_such_path)? {
            Route::Path(path) => {
                let verb = parts.method.as_str().to_ascii_lowercase();
                self.allow(&Attributes { path: &path, ..attributes(identity, &verb) })?;
                misc::path(self, &path, parts, &query)
            }
            Route::Review { group, resource } => {
                // What someone may do, anybody who is known may ask.
                if identity.groups.iter().any(|name| name == "system:unauthenticated") {
                    return Err(ApiError::unauthorized());
                }
                misc::review(self, &group, &resource, parts, body, identity)
            }
            Route::Metrics(target) => {
                metrics::check(&query)?;
                let call = Call { target: &target, query: &query, parts, body, format: format(parts)? };
                self.metrics(&call, identity).await
            }
            Route::ApiServices(target) => {
                let call = Call { target: &target, query: &query, parts, body, format: format(parts)? };
                self.api_services(&call, identity)
            }
            Route::Objects(target) => {
                let mut verb = verb(&parts.method, &target, &query)?;
                // A kubelet runs commands by GET too.
                if target.subresource() == "proxy" && parts.headers.contains_key(UPGRADE) {
                    verb = "create";
                }
                self.allow(&Attributes {
                    group: target.kind.group,
                    resource: target.kind.plural,
                    subresource: target.subresource(),
                    namespace: target.namespace(),
                    name: target.name(),
                    path,
                    ..attributes(identity, verb)
                })?;
                if connects(&target) {
                    return self.connect(&target, &query, parts, body).await;
                }
                let call = Call { target: &target, query: &query, parts, body, format: format(parts)? };
                self.objects(verb, &call).await
            }
        }
    }

    pub(crate) fn allow(&self, attributes: &Attributes<'_>) -> Result<(), ApiError> {
        match self.inner.options.authorizer.authorize(attributes) {
            Decision::Allow => Ok(()),
            Decision::Deny(_)
                if attributes.identity.groups.iter().any(|group| group == "system:unauthenticated") =>
            {
                Err(ApiError::unauthorized())
            }
            Decision::Deny(why) => {
                let kind = kapi::kinds::KINDS
                    .iter()
                    .find(|kind| kind.group == attributes.group && kind.plural == attributes.resource);
                Err(ApiError::forbidden(kind, attributes.name, why))
            }
        }
    }

    async fn objects(&self, verb: &str, call: &Call<'_>) -> Answer {
        match verb {
            "get" => self.get(call),
            "list" => self.list(call),
            "watch" => self.watch(call),
            "create" => self.create(call).await,
            "update" => self.update(call).await,
            "patch" => self.patch(call).await,
            "delete" => self.delete(call).await,
            _ => self.delete_collection(call).await,
        }
    }

    pub(crate) fn now(&self) -> i64 {
        (self.inner.options.now)()
    }

    pub(crate) fn key(&self, target: &Target) -> Key {
        crate::object::key(target.kind, target.namespace(), target.name())
    }
}

/// Whom an administrator wants to act as (`kubectl --as`). Ignoring the wish would give more rights than were asked for.
fn impersonated(parts: &Parts, identity: &Identity) -> Result<Option<Identity>, ApiError> {
    let all = |name: &str| -> Vec<String> {
        let values = parts.headers.get_all(name).iter();
        values.filter_map(|value| value.to_str().ok()).map(str::to_string).collect()
    };
    let asked = parts.headers.keys().any(|name| name.as_str().starts_with("impersonate-"));
    if !asked {
        return Ok(None);
    }
    let user = all("impersonate-user").into_iter().next().unwrap_or_default();
    if user.is_empty() {
        return Err(ApiError::bad_request("impersonation needs a user (Impersonate-User, kubectl --as)"));
    }
    if !identity.groups.iter().any(|group| group == MASTERS) {
        let why =
            format!("User \"{}\" cannot impersonate resource \"users\" in API group \"\"", identity.user);
        return Err(ApiError::forbidden(None, &user, why));
    }
    let mut groups = all("impersonate-group");
    groups.push("system:authenticated".into());
    Ok(Some(Identity { user, groups }))
}

fn attributes<'a>(identity: &'a Identity, verb: &'a str) -> Attributes<'a> {
    Attributes { identity, verb, group: "", resource: "", subresource: "", namespace: "", name: "", path: "" }
}

/// Whether the answer comes from the node.
fn connects(target: &Target) -> bool {
    matches!(target.subresource(), "log" | "exec" | "attach" | "portforward" | "proxy")
}

fn verb(method: &Method, target: &Target, query: &Query) -> Result<&'static str, ApiError> {
    let named = target.name.is_some();
    let sub = target.subresource();
    // Whoever may only read must not be able to run commands, whatever the method.
    let verb = match *method {
        Method::GET | Method::POST if named && matches!(sub, "exec" | "attach" | "portforward") => "create",
        Method::GET if named && sub == "log" => "get",
        Method::GET | Method::HEAD | Method::OPTIONS if named && sub == "proxy" => "get",
        Method::POST if named && sub == "proxy" => "create",
        Method::PUT if named && sub == "proxy" => "update",
        Method::PATCH if named && sub == "proxy" => "patch",
        Method::DELETE if named && sub == "proxy" => "delete",
        Method::GET | Method::HEAD if sub.is_empty() && query.flag("watch") => "watch",
        Method::GET | Method::HEAD if named && matches!(sub, "" | "status" | "ephemeralcontainers") => "get",
        Method::GET | Method::HEAD if !named => "list",
        Method::POST if !named || matches!(sub, "binding" | "eviction" | "token") => "create",
        Method::PUT if named && matches!(sub, "" | "status" | "finalize" | "ephemeralcontainers") => "update",
        Method::PATCH if named && matches!(sub, "" | "status" | "ephemeralcontainers") => "patch",
        Method::DELETE if named && sub.is_empty() => "delete",
        Method::DELETE if !named => "deletecollection",
        _ => return Err(ApiError::method_not_allowed()),
    };
    // Objects of all namespaces can be read, not made or deleted.
    let writes = !matches!(verb, "get" | "list" | "watch");
    if writes && target.kind.namespaced && target.namespace.is_none() {
        return Err(ApiError::method_not_allowed());
    }
    Ok(verb)
}

/// The first form in `Accept` that we write.
fn format(parts: &Parts) -> Result<Format, ApiError> {
    let accept = parts.headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    for entry in accept.split(',') {
        let mut words = entry.split(';').map(str::trim);
        let media = words.next().unwrap_or_default();
        if !matches!(media, "application/json" | "*/*" | "application/*" | "") {
            continue;
        }
        let mut kind = "";
        let mut known = true;
        for word in words {
            match word.split_once('=') {
                Some(("as", value)) => kind = value,
                Some(("g", value)) => known &= value == "meta.k8s.io",
                Some(("v", value)) => known &= matches!(value, "v1" | "v1beta1"),
                _ => {}
            }
        }
        match kind {
            "" => return Ok(Format::Json),
            "Table" if known => return Ok(Format::Table),
            "PartialObjectMetadata" | "PartialObjectMetadataList" if known => return Ok(Format::Partial),
            _ => {}
        }
    }
    Err(ApiError::not_acceptable("application/json"))
}

/// Puts warnings where clients look for them.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}
