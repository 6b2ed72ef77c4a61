//! The shell's part of static pods: looks at the folder, remembers what ran, and keeps mirrors in the cloud.

use std::path::PathBuf;

use serde_json::{Value, json};
use wire::{Message, Operation};

use super::{Happening, Shell};
use crate::{
    contract::{Condition, Handles, LinkState, Report},
    edged::{
        limits,
        manager::Wanted,
        static_pods::{
            self, KIND, StaticPods,
            mirror::{self, Mirror, Mirrors},
        },
        unix_ms,
    },
    watched_folder::Reading,
};

const CONDITION: &str = "StaticPodsInvalid";

pub(super) struct Statics {
    /// Empty: none.
    folder: PathBuf,
    pods: StaticPods,
    mirrors: Mirrors,
    problems: Option<Vec<String>>,
}

impl Statics {
    pub fn new(handles: &Handles, folder: PathBuf) -> Statics {
        let stored = handles.meta.list_local(KIND).into_iter().filter_map(|(name, body)| {
            let object = serde_json::from_slice::<Value>(&body).ok();
            // The file says it again, if it is still there.
            object
                .or_else(|| {
                    tracing::error!("record {KIND}/{name} cannot be read; it is read from the folder again");
                    None
                })
                .map(|object| (name, object))
        });
        // Without a folder the configuration says that there are no static pods.
        let stored: Vec<(String, Value)> =
            if folder.as_os_str().is_empty() { Vec::new() } else { stored.collect() };
        Statics {
            pods: StaticPods::new(&handles.node_name, stored),
            mirrors: Mirrors::default(),
            problems: None,
            folder,
        }
    }

    /// Splits mirrors off from the pods of the cloud, and adds those of the folder.
    pub fn join(&mut self, wanted: Vec<Wanted>) -> Vec<Wanted> {
        let mirror = |wanted: &Wanted| wanted.pod.as_ref().ok().and_then(|pod| Mirror::of(pod));
        let (mirrors, mut wanted): (Vec<Wanted>, Vec<Wanted>) =
            wanted.into_iter().partition(|wanted| mirror(wanted).is_some());
        self.mirrors.set(mirrors.iter().filter_map(mirror));
        wanted.extend(self.pods.pods().map(|pod| pod.wanted()));
        wanted
    }

    fn is_static(&self, uid: &str) -> bool {
        self.pods.pods().any(|pod| pod.uid() == uid)
    }

    /// The uid that the cloud knows a pod by; `None`: a static pod without a mirror.
    pub fn cloud_uid<'a>(&'a self, uid: &'a str) -> Option<&'a str> {
        if self.is_static(uid) { self.mirrors.uid_of(uid) } else { Some(uid) }
    }
}

impl Shell {
    /// Looks at the folder, now and then again.
    pub(super) fn watch_statics(&mut self, wait: bool) {
        let folder = self.statics.folder.clone();
        if folder.as_os_str().is_empty() {
            return;
        }
        let known = self.statics.pods.stamps();
        self.work.push(Box::pin(async move {
            if wait {
                tokio::time::sleep(limits::STATIC_PODS_POLL).await;
            }
            Happening::Folder(rt::blocking(move || static_pods::read(&folder, &known)).await)
        }));
    }

    pub(super) fn folder_read(&mut self, reading: std::io::Result<Reading>) {
        let was_read = self.statics.pods.is_read();
        let changes = self.statics.pods.take(&self.statics.folder, reading);
        let meta = self.handles.meta.clone();
        let (store, forget) = (changes.store, changes.forget);
        if !store.is_empty() || !forget.is_empty() {
            self.work.push(Box::pin(async move {
                for (name, object) in store {
                    if let Err(error) = meta.put_local(KIND, &name, object.to_string().into(), true).await {
                        tracing::warn!("static pod {name}: {}", rt::error_chain(&error));
                    }
                }
                for name in forget {
                    if let Err(error) = meta.delete_local(KIND, &name).await {
                        tracing::warn!("static pod {name}: {}", rt::error_chain(&error));
                    }
                }
                Happening::Nothing
            }));
        }
        self.tell_problems();
        if changes.pods || !was_read {
            self.desired();
        } else {
            self.follow_mirrors();
        }
        self.watch_statics(true);
    }

    fn tell_problems(&mut self) {
        let problems = self.statics.pods.problems();
        if self.statics.problems.as_ref() == Some(&problems) {
            return;
        }
        for problem in &problems {
            tracing::error!("static pods: {problem}");
            let event = crate::edged::events::Event::warning("FailedStaticPod", problem.clone());
            self.executor.events.node(event);
        }
        let broken = !problems.is_empty();
        self.handles.conditions.set(Condition {
            condition_type: CONDITION.into(),
            status: broken,
            reason: if broken { "FileUnusable" } else { "AllRead" }.into(),
            message: problems.join("; "),
        });
        self.statics.problems = Some(problems);
    }

    /// Brings the mirrors up to the pods, while there is a link.
    pub(super) fn follow_mirrors(&mut self) {
        if *self.handles.uplink.state().borrow() != LinkState::Connected {
            return;
        }
        let node = wire::Resource::new("null", "node", &self.handles.node_name);
        let node = self.handles.meta.get(&node).map_or_else(String::new, |node| node.uid);
        let now = self.now().mono;
        let Statics { pods, mirrors, .. } = &mut self.statics;
        let actions = mirrors.follow(now, pods.pods(), pods.is_read(), (&self.handles.node_name, &node));
        for action in actions {
            self.mirror(action);
        }
    }

    fn mirror(&mut self, action: mirror::Action) {
        let (namespace, name, operation, content) = match action {
            mirror::Action::Create { namespace, name, object } => {
                (namespace, name, Operation::INSERT, object)
            }
            mirror::Action::Delete { namespace, name, uid } => {
                let content = json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": uid } });
                (namespace, name, Operation::DELETE, content)
            }
            mirror::Action::Tell { uid } => {
                self.manager.tell_again(&uid);
                return self.look_within(std::time::Duration::ZERO);
            }
        };
        let resource = format!("{namespace}/pod/{name}");
        let message =
            Message::new(unix_ms(), wire::source::EDGED, "meta", operation, &resource).with_content(&content);
        // The newest word on a mirror is the right one.
        let key = format!("mirror/{namespace}/{name}");
        self.handles.uplink.report(Report { key, message, durable: false });
    }
}
