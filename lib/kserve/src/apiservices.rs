//! APIServices: get and list of what `kapi::apiservices` makes.

use std::sync::Arc;

use http::{Method, StatusCode};
use kapi::apiservices::{API_SERVICE, GROUP, objects};
use kapi::{ApiError, meta};
use serde_json::json;
use store::{Key, Record};

use crate::auth::{Attributes, Identity};
use crate::backend::Backend;
use crate::object::{key, parse};
use crate::read::Selection;
use crate::server::{Answer, Call, Server};

impl<B: Backend> Server<B> {
    pub(crate) fn api_services(&self, call: &Call<'_>, identity: &Identity) -> Answer {
        // Nothing changes while the program runs, so there is nothing to watch either.
        if !matches!(call.parts.method, Method::GET | Method::HEAD) || call.query.flag("watch") {
            return Err(ApiError::method_not_allowed());
        }
        self.allow(&Attributes {
            identity,
            verb: if call.target.name.is_some() { "get" } else { "list" },
            group: GROUP,
            resource: API_SERVICE.plural,
            subresource: call.target.subresource(),
            namespace: "",
            name: call.target.name(),
            path: call.parts.uri.path(),
        })?;
        let selection = Selection::of(call)?;
        let records = self.served().into_iter().filter(|record| selection.matches(record));
        if call.target.name.is_none() {
            let metadata = json!({"resourceVersion": self.inner.backend.revision().to_string()});
            return self.show_list(&API_SERVICE, call, &metadata, records.collect());
        }
        let record = records.last().ok_or_else(|| ApiError::not_found(&API_SERVICE, call.target.name()))?;
        self.show(StatusCode::OK, call, record.value.clone())
    }

    fn served(&self) -> Vec<Arc<Record>> {
        // As old as the cluster, which is as old as its own namespace.
        let born = kapi::kinds::by_path("", "v1", "namespaces").map(|kind| key(kind, "", "kube-system"));
        let born = born.and_then(|key| parse(&*self.inner.backend.get(&key)?).ok());
        let created = born.map(|born| meta::text(&born, "metadata.creationTimestamp").to_owned());
        let objects = objects(self.inner.options.nodes.is_some(), &created.unwrap_or_default());
        let record = |(name, object): (String, serde_json::Value)| Record {
            key: Key::new(&API_SERVICE.resource(), "", &name),
            uid: std::sync::Arc::default(),
            revision: 1,
            upstream: None,
            key_id: 0,
            value: object.to_string().into(),
        };
        objects.into_iter().map(|object| Arc::new(record(object))).collect()
    }
}
