//! Paths that are no objects: discovery, OpenAPI, version, health; and reviews, which are answered and not kept.

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use kapi::decode::{self, Findings};
use kapi::{ApiError, discovery, meta, openapi, schema};
use serde_json::{Value, json};

use crate::auth::{Attributes, Decision, Identity};
use crate::backend::Backend;
use crate::body::{Body, full, json as json_response, respond, text};
use crate::object::read_any;
use crate::query::Query;
use crate::server::{Answer, Server};

pub(crate) fn path<B: Backend>(server: &Server<B>, path: &str, parts: &Parts, query: &Query) -> Answer {
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(ApiError::method_not_allowed());
    }
    let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    // Without a way to nodes nobody can say what they use.
    let measured = server.inner.options.nodes.is_some();
    match words.as_slice() {
        [] => Ok(json_response(StatusCode::OK, &json!({"paths": PATHS}))),
        [health @ ("healthz" | "livez" | "readyz"), check @ ..] => Ok(health_check(health, check, query)),
        ["version"] => Ok(version(&server.inner.options.version)),
        ["api"] => Ok(either(parts, true, measured, || discovery::versions(&server.inner.options.address))),
        ["apis"] => Ok(either(parts, false, measured, || discovery::group_list(measured))),
        ["api", version] => list(discovery::resource_list("", version, measured)),
        ["apis", group] => list(discovery::one_group(group, measured)),
        ["apis", group, version] => list(discovery::resource_list(group, version, measured)),
        // An empty document. Without one kubectl takes a kind that is not served for an error of the server.
        ["openapi", "v2"] => Ok(respond(StatusCode::OK, OPENAPI_V2_PROTOBUF, full(Bytes::new()))),
        ["openapi", "v3"] => Ok(cached(parts, openapi::index().to_string())),
        ["openapi", "v3", rest @ ..] => {
            let document = openapi::document(&rest.join("/")).ok_or_else(ApiError::no_such_path)?;
            Ok(cached(parts, document.to_string()))
        }
        _ => Err(ApiError::no_such_path()),
    }
}

const OPENAPI_V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

const PATHS: &[&str] = &["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"];

fn list(document: Option<Value>) -> Answer {
    document.map(|document| json_response(StatusCode::OK, &document)).ok_or_else(ApiError::no_such_path)
}

/// Being asked is being alive: the store answers from memory, and a store that cannot write says so per request.
fn health_check(what: &str, check: &[&str], query: &Query) -> Response<Body> {
    match check {
        [] if query.get("verbose").is_some() => {
            text(StatusCode::OK, &format!("[+]ping ok\n[+]store ok\n{what} check passed\n"))
        }
        [] | ["ping" | "store"] => text(StatusCode::OK, "ok"),
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

fn version(git_version: &str) -> Response<Body> {
    let mut numbers = git_version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    json_response(
        StatusCode::OK,
        &json!({
            "major": major, "minor": minor, "gitVersion": git_version, "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
            "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        }),
    )
}

/// The aggregated form in the version that is asked for, or the plain one.
fn either(parts: &Parts, core: bool, measured: bool, plain: impl Fn() -> Value) -> Response<Body> {
    let accept = parts.headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    for entry in accept.split(',') {
        let words: Vec<&str> = entry.split(';').map(str::trim).collect();
        if !words.contains(&"as=APIGroupDiscoveryList") {
            if words[0] == "application/json" {
                break;
            }
            continue;
        }
        for version in ["v2", "v2beta1"] {
            if words.contains(&format!("v={version}").as_str()) {
                let document = discovery::aggregated(core, version, measured).to_string();
                let media =
                    format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
                let mut response = cached(parts, document);
                if let Ok(media) = HeaderValue::from_str(&media) {
                    response.headers_mut().insert(CONTENT_TYPE, media);
                }
                return response;
            }
        }
    }
    cached(parts, plain().to_string())
}

/// With an ETag, so that clients need not read what they have.
fn cached(parts: &Parts, document: String) -> Response<Body> {
    let tag = format!("\"{}\"", openapi::hash(document.as_bytes()));
    let known = parts.headers.get(IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == tag.as_bytes());
    let mut response = if known {
        respond(StatusCode::NOT_MODIFIED, "application/json", full(Bytes::new()))
    } else {
        respond(StatusCode::OK, "application/json", full(document))
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

pub(crate) fn review<B: Backend>(
    server: &Server<B>,
    group: &str,
    resource: &str,
    parts: &Parts,
    body: &Bytes,
    identity: &Identity,
) -> Answer {
    let (message, kind) = match (group, resource) {
        ("authorization.k8s.io", "selfsubjectaccessreviews") => {
            (&schema::AUTHORIZATION_V1_SELF_SUBJECT_ACCESS_REVIEW, "SelfSubjectAccessReview")
        }
        ("authorization.k8s.io", "selfsubjectrulesreviews") => {
            (&schema::AUTHORIZATION_V1_SELF_SUBJECT_RULES_REVIEW, "SelfSubjectRulesReview")
        }
        ("authentication.k8s.io", "selfsubjectreviews") => {
            (&schema::AUTHENTICATION_V1_SELF_SUBJECT_REVIEW, "SelfSubjectReview")
        }
        _ => return Err(ApiError::no_such_path()),
    };
    if parts.method != Method::POST {
        return Err(ApiError::method_not_allowed());
    }
    let version = format!("{group}/v1");
    let mut findings = Findings::default();
    let mut review = read_any(&parts.headers, body, &mut findings)?;
    decode::conform_to(message, kind, &version, &mut review, &mut findings)?;
    let allowed = |attributes: &Attributes<'_>| server.inner.options.authorizer.authorize(attributes);
    review["status"] = match kind {
        "SelfSubjectReview" => json!({"userInfo": {"username": identity.user, "groups": identity.groups}}),
        "SelfSubjectAccessReview" => match allowed(&asked(&review, identity)) {
            Decision::Allow => json!({"allowed": true}),
            Decision::Deny(reason) => json!({"allowed": false, "reason": reason}),
        },
        _ => {
            let everything = Attributes { verb: "*", resource: "*", ..asked(&Value::Null, identity) };
            let all = allowed(&everything) == Decision::Allow;
            let resources = if all {
                json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}])
            } else {
                json!([])
            };
            let paths = if all { json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]) } else { json!([]) };
            json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
        }
    };
    review["kind"] = kind.into();
    review["apiVersion"] = version.into();
    Ok(json_response(StatusCode::CREATED, &review))
}

/// What an access review asks about.
fn asked<'a>(review: &'a Value, identity: &'a Identity) -> Attributes<'a> {
    let of = |key: &str| meta::at(review, "spec.resourceAttributes").map_or("", |map| meta::text(map, key));
    let path = meta::text(review, "spec.nonResourceAttributes.path");
    let verb = match of("verb") {
        "" => meta::text(review, "spec.nonResourceAttributes.verb"),
        verb => verb,
    };
    let of = |key: &str| match meta::at(review, "spec.resourceAttributes") {
        Some(map) => meta::text(map, key),
        None => "",
    };
    Attributes {
        identity,
        verb,
        group: of("group"),
        resource: of("resource"),
        subresource: of("subresource"),
        namespace: of("namespace"),
        name: of("name"),
        path,
    }
}
