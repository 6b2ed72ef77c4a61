//! Service-account tokens: `serviceaccounts/<name>/token` makes them, `Authorization: Bearer` shows them.
//!
//! A token names the account (and the pod or node it is bound to) by uid: it is worth nothing once they are gone, whatever its
//! time. A token that is bound to a pod is of the account that the pod runs as.

use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use kapi::decode::{self, Findings};
use kapi::{ApiError, kinds, meta, schema, time};
use serde_json::{Value, json};

use crate::admission::TOKEN_SECONDS;
use crate::auth::Identity;
use crate::backend::Backend;
use crate::body::json as json_response;
use crate::limits::{
    TOKEN_AUDIENCES_MAX, TOKEN_LIFE_S_DEFAULT, TOKEN_LIFE_S_EXTENDED, TOKEN_LIFE_S_MAX, TOKEN_LIFE_S_MIN,
};
use crate::object::{key, parse, read_any};
use crate::server::{Answer, Call, Server};

/// Signs and checks claims; knows the key.
pub trait Tokens: Send + Sync + 'static {
    /// The error is for the log and the client.
    fn sign(&self, claims: &Value) -> Result<String, String>;
    /// The claims of a token that [`Tokens::sign`] made.
    fn verify(&self, token: &str) -> Option<Value>;
}

/// Issuer, and the audience of tokens that are for this API.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

impl<B: Backend> Server<B> {
    pub(crate) fn request_token(&self, call: &Call<'_>) -> Answer {
        let (kind, name) = (call.target.kind, call.target.name());
        let tokens = self.inner.options.tokens.as_ref().ok_or_else(ApiError::method_not_allowed)?;
        let mut findings = Findings::default();
        let mut request = read_any(&call.parts.headers, call.body, &mut findings)?;
        let message = &schema::AUTHENTICATION_V1_TOKEN_REQUEST;
        decode::conform_to(message, "TokenRequest", "authentication.k8s.io/v1", &mut request, &mut findings)?;
        let account = self.inner.backend.get(&self.key(call.target));
        let account = account.ok_or_else(|| ApiError::not_found(kind, name))?;
        let life = lifetime(&request)?;
        let now = self.now();
        let audiences = match meta::at(&request, "spec.audiences") {
            Some(Value::Array(list)) if list.len() > TOKEN_AUDIENCES_MAX => {
                return Err(invalid(&format!(
                    "spec.audiences: Too many: {}: must have at most {TOKEN_AUDIENCES_MAX} items",
                    list.len()
                )));
            }
            Some(Value::Array(list)) if !list.is_empty() => list.clone(),
            _ => vec![ISSUER.into()],
        };
        let mut private = json!({
            "namespace": call.target.namespace(), "serviceaccount": {"name": name, "uid": &*account.uid},
        });
        for (part, claim) in self.bound_to(call, &request)? {
            private[part] = claim;
        }
        let for_us_only = audiences == [Value::from(ISSUER)];
        let mut expires = now + life;
        if life == TOKEN_SECONDS && private.get("pod").is_some() && for_us_only {
            private["warnafter"] = expires.into();
            expires = now + TOKEN_LIFE_S_EXTENDED;
        }
        let claims = json!({
            "iss": ISSUER, "sub": format!("system:serviceaccount:{}:{name}", call.target.namespace()),
            "aud": audiences, "iat": now, "nbf": now, "exp": expires, "jti": (self.inner.options.uid)(),
            "kubernetes.io": private,
        });
        let token = tokens.sign(&claims).map_err(ApiError::internal)?;
        request["kind"] = "TokenRequest".into();
        request["apiVersion"] = "authentication.k8s.io/v1".into();
        request["metadata"] = json!({"name": name, "namespace": call.target.namespace()});
        request["spec"]["audiences"] = audiences.into();
        request["spec"]["expirationSeconds"] = life.into();
        request["status"] = json!({"token": token, "expirationTimestamp": time::rfc3339(now + life)});
        Ok(json_response(StatusCode::CREATED, &request))
    }

    /// What the token is bound to, as claims. It must be there.
    fn bound_to(&self, call: &Call<'_>, request: &Value) -> Result<Vec<(&'static str, Value)>, ApiError> {
        let Some(bound) = meta::at(request, "spec.boundObjectRef") else { return Ok(Vec::new()) };
        let (name, uid) = (meta::text(bound, "name"), meta::text(bound, "uid"));
        let (plural, part) = match (meta::text(bound, "kind"), meta::text(bound, "apiVersion")) {
            ("Pod", "" | "v1") => ("pods", "pod"),
            ("Node", "" | "v1") => ("nodes", "node"),
            ("Secret", "" | "v1") => ("secrets", "secret"),
            (kind, version) => {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token to object of type {version}, Kind={kind}; pods, nodes and secrets can be bound to"
                )));
            }
        };
        let kind = kinds::by_path("", "v1", plural).expect("the table has the kinds above");
        let namespace = if kind.namespaced { call.target.namespace() } else { "" };
        let record = self.inner.backend.get(&key(kind, namespace, name));
        let record = record.ok_or_else(|| ApiError::not_found(kind, name))?;
        if !uid.is_empty() && *uid != *record.uid {
            let found = &record.uid;
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been \
                 deleted and then recreated ({found})"
            );
            return Err(ApiError::conflict(kind, name, why));
        }
        let mut claims = vec![(part, json!({"name": name, "uid": &*record.uid}))];
        if part == "pod" {
            let pod = parse(&record)?;
            let account = match meta::text(&pod, "spec.serviceAccountName") {
                "" => "default",
                account => account,
            };
            if account != call.target.name() {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name.",
                    call.target.name()
                )));
            }
            claims.extend(self.node_claim(meta::text(&pod, "spec.nodeName")));
        }
        Ok(claims)
    }

    /// Where a bound pod runs: told with its token, and not checked later (the pod is).
    fn node_claim(&self, node: &str) -> Option<(&'static str, Value)> {
        let nodes = kinds::by_path("", "v1", "nodes").expect("the table has nodes");
        let record = self.inner.backend.get(&key(nodes, "", node)).filter(|_| !node.is_empty())?;
        Some(("node", json!({"name": node, "uid": &*record.uid})))
    }

    /// Whom a request's bearer token names. `None`: it shows none. Refused: it shows one that is worth nothing.
    pub(crate) fn bearer(&self, headers: &HeaderMap) -> Result<Option<Identity>, ApiError> {
        let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
        let token = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
        let tokens = self.inner.options.tokens.as_ref();
        let claims = token.and_then(|token| tokens?.verify(token.trim()));
        claims.and_then(|claims| self.holder(&claims)).map(Some).ok_or_else(ApiError::unauthorized)
    }

    fn holder(&self, claims: &Value) -> Option<Identity> {
        let now = self.now();
        let number = |name: &str| claims.get(name).and_then(Value::as_i64);
        let for_us = claims.get("aud")?.as_array()?.iter().any(|audience| audience == ISSUER);
        if !for_us || number("exp")? <= now || number("nbf")? > now || claims.get("iss")? != ISSUER {
            return None;
        }
        let private = claims.get("kubernetes.io")?;
        let namespace = meta::text(private, "namespace");
        let is_there = |plural: &str, part: &str| {
            let kind = kinds::by_path("", "v1", plural)?;
            let namespace = if kind.namespaced { namespace } else { "" };
            let record =
                self.inner.backend.get(&key(kind, namespace, meta::text(private.get(part)?, "name")))?;
            (*record.uid == *meta::text(private.get(part)?, "uid")).then_some(())
        };
        is_there("serviceaccounts", "serviceaccount")?;
        let bound = [("pods", "pod"), ("secrets", "secret"), ("nodes", "node")];
        // Of a pod's token the node is only told: the pod is what it hangs on.
        if let Some((plural, part)) = bound.into_iter().find(|(_, part)| private.get(*part).is_some()) {
            is_there(plural, part)?;
        }
        let name = meta::text(private, "serviceaccount.name");
        Some(Identity {
            user: format!("system:serviceaccount:{namespace}:{name}"),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".into(),
            ],
        })
    }
}

/// The seconds that a request asks for, within bounds.
fn lifetime(request: &Value) -> Result<i64, ApiError> {
    let asked = meta::at(request, "spec.expirationSeconds").and_then(Value::as_i64);
    let life = asked.unwrap_or(TOKEN_LIFE_S_DEFAULT);
    let refused = |why: &str| invalid(&format!("spec.expirationSeconds: Invalid value: {life}: {why}"));
    match life {
        i64::MIN..TOKEN_LIFE_S_MIN => Err(refused("may not specify a duration less than 10 minutes")),
        life if life > 1 << 32 => Err(refused("may not specify a duration larger than 2^32 seconds")),
        life => Ok(life.min(TOKEN_LIFE_S_MAX)),
    }
}

fn invalid(why: &str) -> ApiError {
    ApiError::unprocessable(format!("TokenRequest.authentication.k8s.io \"\" is invalid: {why}"))
}
