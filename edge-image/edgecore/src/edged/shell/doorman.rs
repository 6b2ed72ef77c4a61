//! The shell's part of admission: what the gate knows of the node, and device plugins.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::sync::mpsc;
use wire::{Message, Operation};

use super::{Happening, Shell};
use crate::{
    config,
    contract::{Condition, Handles, NodeImage},
    edged::{
        Settings,
        admission::NodeView,
        cri::images::Image,
        device_plugin::{
            self,
            book::{Book, Claim, News},
        },
        limits,
        manager::{Input, Manager},
        pod::Taint,
        unix_ms,
    },
};

const PLUGINS: &str = "DevicePluginsUnavailable";

const LINK_TAINTS: [&str; 2] = ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"];

/// What a future for the gate ended with.
pub(super) enum GateNews {
    Plugin(mpsc::Receiver<News>, Option<News>),
    /// The plugins' preferences: claims by their place in the list.
    Preferred(String, Vec<(usize, Vec<String>)>),
    Allocated(String, Result<(), String>),
    /// The cloud was asked for the Node object, for this pod's sake.
    Node(String),
    /// What the Node's status shows; `None`: the runtime did not say.
    Images(Option<Vec<NodeImage>>),
}

pub(super) struct Doorman {
    view: NodeView,
    /// What the node has of itself, whatever the cloud says.
    labels: BTreeMap<String, String>,
    /// Resources that the store knows of.
    remembered: Vec<String>,
}

/// What counts of the Node object as the cloud has it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeObject {
    metadata: NodeMetadata,
    spec: NodeSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeMetadata {
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    taints: Option<Vec<Taint>>,
}

impl Doorman {
    pub fn new(handles: &Handles, settings: &Settings, manager: &mut Manager) -> Doorman {
        let policy = &settings.policy;
        let mut allocatable = policy.allocatable.huge.clone();
        // A figure that could not be read refuses nobody.
        for (name, amount) in [
            ("cpu", policy.allocatable.cpu_milli),
            ("memory", policy.allocatable.memory_bytes),
            ("ephemeral-storage", policy.allocatable.disk_bytes),
        ] {
            if amount > 0 {
                allocatable.insert(name.into(), amount);
            }
        }
        let (held, remembered) = device_plugin::load(&*handles.meta);
        manager.gate.devices = Book::new(held, remembered.clone());
        Doorman {
            view: NodeView {
                name: handles.node_name.to_string(),
                allocatable,
                pods_max: policy.pods_max as u64,
                labels: None,
                taints: Vec::new(),
                allowed_unsafe_sysctls: policy.allowed_unsafe_sysctls.clone(),
                apparmor: has_apparmor(Path::new("/sys/module/apparmor/parameters/enabled")),
            },
            labels: config::node_labels(&handles.node_name, config::architecture(), &policy.labels),
            remembered,
        }
    }

    /// Takes labels and taints of the Node object that the cloud pushed, if it did.
    pub fn look(&self, handles: &Handles, manager: &mut Manager) {
        let mut view = self.view.clone();
        let resource = wire::Resource::new("null", "node", &handles.node_name);
        let object = handles.meta.get(&resource);
        if let Some(node) = object.and_then(|object| serde_json::from_slice::<NodeObject>(&object.body).ok())
        {
            let mut labels = self.labels.clone();
            labels.extend(node.metadata.labels);
            view.labels = Some(labels);
            // What the cloud thinks of the link is over when it can say so; kept from before a cut it would refuse every newcomer.
            let of_link = |taint: &Taint| LINK_TAINTS.contains(&taint.key.as_str());
            view.taints = node.spec.taints.unwrap_or_default();
            view.taints.retain(|taint| !of_link(taint));
        }
        manager.gate.node = view;
    }

    /// Shows the devices in the Node's status.
    pub fn tell(&mut self, handles: &Handles, manager: &Manager, now: Duration) {
        let counts = manager.gate.devices.counts(now);
        handles.devices.send_if_modified(|told| {
            let changed = *told != counts;
            *told = counts;
            changed
        });
    }
}

/// The largest images, as kubelet shows them: digests first, at most so many names.
fn shown(images: Vec<Image>, most: usize) -> Vec<NodeImage> {
    let shown = |image: Image| {
        let names = image.repo_digests.into_iter().chain(image.repo_tags);
        NodeImage { names: names.take(limits::NODE_IMAGE_NAMES_MAX).collect(), size_bytes: image.size }
    };
    let mut images: Vec<NodeImage> = images.into_iter().map(shown).collect();
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
    images.truncate(most);
    images
}

/// As kubelet looks for it.
fn has_apparmor(parameter: &Path) -> bool {
    fs::read_to_string(parameter).is_ok_and(|text| text.starts_with('Y'))
}

impl Shell {
    /// Opens the door to device plugins.
    pub(super) fn start_gate(&mut self) {
        let (news, receiver) = mpsc::channel(limits::DEVICE_NEWS_WAITING_MAX);
        let (plugins, conditions) = (self.executor.plugins.clone(), self.handles.conditions.clone());
        let dir = self.settings.kubelet_dir.join("device-plugins");
        self.work.push(Box::pin(async move {
            if let Err(error) = plugins.serve(news).await {
                conditions.set(Condition {
                    condition_type: PLUGINS.into(),
                    status: true,
                    reason: "SocketUnusable".into(),
                    message: format!(
                        "cannot serve device plugins at {}/kubelet.sock ({error}); make the folder writable and restart edgecore",
                        dir.display()
                    ),
                });
            }
            Happening::Nothing
        }));
        self.hear(receiver);
        self.watch_images(false);
    }

    /// Lists the images for the Node's status, now and then again.
    fn watch_images(&mut self, wait: bool) {
        let most = self.settings.policy.images_max;
        if most == 0 {
            return;
        }
        let executor = self.executor.clone();
        self.work.push(Box::pin(async move {
            if wait {
                tokio::time::sleep(limits::NODE_IMAGES_POLL).await;
            }
            let images = executor.cri.list_images().await.ok().map(|images| shown(images, most));
            Happening::Gate(GateNews::Images(images))
        }));
    }

    fn hear(&mut self, mut receiver: mpsc::Receiver<News>) {
        self.work.push(Box::pin(async move {
            let news = receiver.recv().await;
            Happening::Gate(GateNews::Plugin(receiver, news))
        }));
    }

    pub(super) fn gate_news(&mut self, news: GateNews) {
        match news {
            GateNews::Plugin(receiver, Some(news)) => {
                self.handle(Input::Devices(news));
                self.remember();
                self.hear(receiver);
            }
            GateNews::Plugin(_, None) => {}
            GateNews::Preferred(incarnation, preferred) => {
                let claims = self.manager.gate.devices.settle(&incarnation, &preferred);
                self.ask_plugins(incarnation, claims);
            }
            GateNews::Images(images) => {
                if let Some(images) = images {
                    self.handles.images.send_if_modified(|told| {
                        let changed = *told != images;
                        *told = images;
                        changed
                    });
                }
                self.watch_images(true);
            }
            GateNews::Node(incarnation) => {
                self.doorman.look(&self.handles, &mut self.manager);
                self.handle(Input::NodeAsked { incarnation });
            }
            GateNews::Allocated(incarnation, result) => self.handle(Input::Allocated { incarnation, result }),
        }
    }

    fn remember(&mut self) {
        let names: Vec<String> = self.manager.gate.devices.names().cloned().collect();
        if names != self.doorman.remembered {
            self.doorman.remembered.clone_from(&names);
            let meta = self.handles.meta.clone();
            self.work.push(Box::pin(async move {
                device_plugin::remember(&*meta, names).await;
                Happening::Nothing
            }));
        }
    }

    /// Asks for preferences first: what is given must be what is stored.
    pub(super) fn allocate(&mut self, incarnation: String, claims: Vec<Claim>) {
        let free: Vec<Vec<String>> =
            claims.iter().map(|claim| self.manager.gate.devices.free(&claim.resource)).collect();
        let plugins = self.executor.plugins.clone();
        self.work.push(Box::pin(async move {
            let preferred = plugins.prefer(&claims, &free).await;
            Happening::Gate(GateNews::Preferred(incarnation, preferred))
        }));
    }

    fn ask_plugins(&mut self, incarnation: String, claims: Vec<Claim>) {
        let (plugins, meta) = (self.executor.plugins.clone(), self.handles.meta.clone());
        self.work.push(Box::pin(async move {
            let work = async {
                let answers = plugins.allocate(&claims).await?;
                let stored = device_plugin::store(&*meta, &incarnation, &claims, &answers).await;
                stored.map_err(|error| rt::error_chain(&error))
            };
            let result = work.await;
            Happening::Gate(GateNews::Allocated(incarnation, result))
        }));
    }

    /// The hub stores the answer before it hands it out. Without a link what is known must do.
    pub(super) fn ask_node(&mut self, incarnation: String) {
        let uplink = self.handles.uplink.clone();
        let node = wire::Resource::new("null", "node", &self.handles.node_name).to_string();
        let query = Message::new(unix_ms(), wire::source::EDGED, "meta", Operation::QUERY, &node);
        self.work.push(Box::pin(async move {
            let _ = uplink.request(query, limits::NODE_ASKED).await;
            Happening::Gate(GateNews::Node(incarnation))
        }));
    }

    pub(super) fn release(&mut self, incarnation: String) {
        let meta = Arc::clone(&self.handles.meta);
        self.work.push(Box::pin(async move {
            if let Err(error) = meta.delete_local(device_plugin::KIND, &incarnation).await {
                // It is released again at the next start.
                tracing::warn!("{}", rt::error_chain(&error));
            }
            Happening::Nothing
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_images_are_shown_by_few_names() {
        let image = |name: &str, size: u64| Image {
            repo_tags: (0..9).map(|n| format!("{name}:{n}")).collect(),
            repo_digests: vec![format!("{name}@sha256:1")],
            size,
            ..Image::default()
        };
        let shown = shown(vec![image("small", 1), image("large", 3), image("middle", 2)], 2);
        assert_eq!(shown.iter().map(|image| image.size_bytes).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(shown[0].names, ["large@sha256:1", "large:0", "large:1", "large:2", "large:3"]);
    }
}
