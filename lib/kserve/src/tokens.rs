//! Service-account tokens: `serviceaccounts/<name>/token` makes them, `Authorization: Bearer` shows them.
//!
//! A token names the account (and a pod, if bound to one) by uid: it is worth nothing once they are gone, whatever its time.

use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use kapi::decode::{self, Findings};
use kapi::{ApiError, kinds, meta, schema, time};
use serde_json::{Value, json};

use crate::auth::Identity;
use crate::backend::Backend;
use crate::body::json as json_response;
use crate::limits::{TOKEN_LIFE_S_DEFAULT, TOKEN_LIFE_S_MAX, TOKEN_LIFE_S_MIN};
use crate::object::{key, read_any};
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
        let asked = meta::at(&request, "spec.expirationSeconds").and_then(Value::as_i64);
        let life = asked.unwrap_or(TOKEN_LIFE_S_DEFAULT);
        if life < TOKEN_LIFE_S_MIN {
            return Err(ApiError::unprocessable(format!(
                "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: {life}: may not \
                 specify a duration less than 10 minutes"
            )));
        }
        let (now, life) = (self.now(), life.min(TOKEN_LIFE_S_MAX));
        let audiences = match meta::at(&request, "spec.audiences") {
            Some(Value::Array(list)) if !list.is_empty() => list.clone(),
            _ => vec![ISSUER.into()],
        };
        let mut private = json!({
            "namespace": call.target.namespace(), "serviceaccount": {"name": name, "uid": account.uid},
        });
        if let Some(pod) = self.bound_pod(call, &request)? {
            private["pod"] = pod;
        }
        let claims = json!({
            "iss": ISSUER, "sub": format!("system:serviceaccount:{}:{name}", call.target.namespace()),
            "aud": audiences, "iat": now, "nbf": now, "exp": now + life, "jti": (self.inner.options.uid)(),
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

    /// The pod that the token is bound to, which must be there.
    fn bound_pod(&self, call: &Call<'_>, request: &Value) -> Result<Option<Value>, ApiError> {
        let Some(bound) = meta::at(request, "spec.boundObjectRef") else { return Ok(None) };
        let pods = kinds::by_path("", "v1", "pods").expect("the table has pods");
        let (name, uid) = (meta::text(bound, "name"), meta::text(bound, "uid"));
        if meta::text(bound, "kind") != "Pod" {
            return Err(ApiError::bad_request("spec.boundObjectRef: only pods can be bound to"));
        }
        let pod = self.inner.backend.get(&key(pods, call.target.namespace(), name));
        let pod = pod.ok_or_else(|| ApiError::not_found(pods, name))?;
        if !uid.is_empty() && uid != pod.uid {
            let why =
                format!("the UID in the bound object reference ({uid}) does not match the UID in record");
            return Err(ApiError::conflict(pods, name, why));
        }
        Ok(Some(json!({"name": name, "uid": pod.uid})))
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
            let record =
                self.inner.backend.get(&key(kind, namespace, meta::text(private.get(part)?, "name")))?;
            (record.uid == meta::text(private.get(part)?, "uid")).then_some(())
        };
        is_there("serviceaccounts", "serviceaccount")?;
        if private.get("pod").is_some() {
            is_there("pods", "pod")?;
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
