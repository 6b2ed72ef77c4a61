//! The keys of an `edgecore.yaml`: which have an effect, which are accepted without one and why, and which nobody knows.

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

/// A key that this program does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// Dotted path, for example `modules.edgeHub.hartbeat`.
    pub path: String,
    pub line: u64,
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: unknown key {}", self.line, self.path)?;
        match nearest(&self.path) {
            Some(known) => write!(f, "; did you mean {known}?"),
            None => write!(f, "; remove it, or look at docs/config.md for the known keys"),
        }
    }
}

/// Paths with an effect. A path that ends in `.*` is a map with free keys.
const HONOURED: &[&str] = &[
    "database.dataSource",
    "kinglet.cloudID",
    "kinglet.preloadDir",
    "kinglet.runDir",
    "modules.deviceTwin.dmiSockPath",
    "modules.deviceTwin.enable",
    "modules.edgeHub.enable",
    "modules.edgeHub.heartbeat",
    "modules.edgeHub.httpServer",
    "modules.edgeHub.projectID",
    "modules.edgeHub.rotateCertificates",
    "modules.edgeHub.tlsCaFile",
    "modules.edgeHub.tlsCertFile",
    "modules.edgeHub.tlsPrivateKeyFile",
    "modules.edgeHub.websocket.enable",
    "modules.edgeHub.websocket.handshakeTimeout",
    "modules.edgeHub.websocket.server",
    "modules.edgeHub.websocket.writeDeadline",
    "modules.edged.enable",
    "modules.edged.hostnameOverride",
    "modules.edged.nodeIP",
    "modules.edged.nodeLabels.*",
    "modules.edged.podSandboxImage",
    "modules.edged.registerSchedulable",
    "modules.edged.reportEvent",
    "modules.edged.rootDirectory",
    "modules.edged.tailoredKubeletConfig.cgroupDriver",
    "modules.edged.tailoredKubeletConfig.clusterDNS",
    "modules.edged.tailoredKubeletConfig.clusterDomain",
    "modules.edged.tailoredKubeletConfig.containerLogMaxFiles",
    "modules.edged.tailoredKubeletConfig.containerLogMaxSize",
    "modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint",
    "modules.edged.tailoredKubeletConfig.kubeReserved.*",
    "modules.edged.tailoredKubeletConfig.maxPods",
    "modules.edged.tailoredKubeletConfig.nodeLeaseDurationSeconds",
    "modules.edged.tailoredKubeletConfig.nodeStatusReportFrequency",
    "modules.edged.tailoredKubeletConfig.nodeStatusUpdateFrequency",
    "modules.edged.tailoredKubeletConfig.podLogsDir",
    "modules.edged.tailoredKubeletConfig.registerNode",
    "modules.edged.tailoredKubeletConfig.resolvConf",
    "modules.edged.tailoredKubeletConfig.runtimeRequestTimeout",
    "modules.edged.tailoredKubeletConfig.systemReserved.*",
    "modules.eventBus.enable",
    "modules.eventBus.mqttMode",
    "modules.eventBus.mqttPassword",
    "modules.eventBus.mqttPubClientID",
    "modules.eventBus.mqttQOS",
    "modules.eventBus.mqttRetain",
    "modules.eventBus.mqttServerExternal",
    "modules.eventBus.mqttServerInternal",
    "modules.eventBus.mqttSessionQueueSize",
    "modules.eventBus.mqttSubClientID",
    "modules.eventBus.mqttUsername",
];

/// Paths accepted without effect, with the reason. `.**` covers everything below.
pub const ACCEPTED: &[(&str, &str)] = &[
    ("apiVersion", "names the file format"),
    ("kind", "names the file format"),
    ("edgecoreVersion", "written by keadm; the running program knows its own version"),
    ("database.aliasName", "the store is a log of our own, not SQLite"),
    ("database.driverName", "the store is a log of our own, not SQLite"),
    (
        "featureGates.**",
        "requireAuthorization follows the cloud; modules are always restarted; tasks are v1alpha2",
    ),
    ("modules.dbTest.**", "a test module of KubeEdge"),
    ("modules.edgeHub.messageBurst", "reports merge by key, so the link needs no rate limit"),
    ("modules.edgeHub.messageQPS", "reports merge by key, so the link needs no rate limit"),
    (
        "modules.edgeHub.quic.**",
        "KubeEdge's QUIC is a draft that no other library speaks; the WebSocket is used",
    ),
    ("modules.edgeHub.token", "only `join` uses a token, and it is not kept"),
    (
        "modules.edgeHub.websocket.readDeadline",
        "KubeEdge never applies it either; a dead link is found by its own timer",
    ),
    ("modules.edgeStream.**", "logs and exec through the tunnel are not built yet"),
    ("modules.edged.customInterfaceName", "the address of the default route, or nodeIP, is used"),
    ("modules.edged.maxContainerCount", "containers of a pod are kept one generation deep"),
    ("modules.edged.maxPerPodContainerCount", "containers of a pod are kept one generation deep"),
    ("modules.edged.registerNodeNamespace", "nodes are cluster-scoped"),
    ("modules.edged.tailoredKubeletConfig.**", "a kubelet setting that this agent does not need"),
    ("modules.edged.**", "a kubelet flag that this agent does not need"),
    ("modules.eventBus.eventBusTLS.**", "the broker listens on loopback"),
    ("modules.metaManager.**", "the API of the node is not built yet"),
    ("modules.serviceBus.**", "HTTP calls through the router are not built yet"),
    ("modules.taskManager.**", "updates are done by the image's own updater"),
];

/// docs/config.md.
#[cfg(test)]
pub fn page() -> String {
    let mut page = String::from(
        "# edgecore.yaml\n\nKubeEdge's file of v1.20 to v1.23, and the group `kinglet`. `edgecore config check FILE` names unknown keys; \
         `edgecore join` refuses them; a running agent logs them and raises the condition ConfigurationUnknownKeys.\n\n\
         ## Keys with an effect\n\n",
    );
    for key in HONOURED {
        page.push_str(&format!("- `{key}`\n"));
    }
    page.push_str("\n## Keys accepted without effect\n\n| key | why |\n| --- | --- |\n");
    for (key, why) in ACCEPTED {
        page.push_str(&format!("| `{key}` | {why} |\n"));
    }
    page
}

/// Every key of `text` that is neither honoured nor accepted, in the order of the file.
pub fn unknown_keys(text: &str) -> Result<Vec<Unknown>, serde_saphyr::Error> {
    let tree: Tree = serde_saphyr::from_str(text)?;
    let mut unknown = Vec::new();
    walk(&tree, "", &mut unknown);
    Ok(unknown)
}

fn walk(tree: &Tree, prefix: &str, unknown: &mut Vec<Unknown>) {
    for (key, child) in &tree.0 {
        let path = if prefix.is_empty() { key.value.clone() } else { format!("{prefix}.{}", key.value) };
        if is_known(&path) {
            continue;
        }
        if !child.0.is_empty() && is_group(&path) {
            walk(child, &path, unknown);
        } else if !is_group(&path) {
            unknown.push(Unknown { path, line: key.referenced.line() });
        }
    }
}

fn covers(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix(".**").or_else(|| pattern.strip_suffix(".*")) {
        Some(group) => path == group || path.strip_prefix(group).is_some_and(|rest| rest.starts_with('.')),
        None => path == pattern,
    }
}

/// The two kubelet groups are open (KubeletConfiguration has more than a hundred keys and grows with every release), but a
/// key that differs from an honoured one only by a slip is still refused.
fn is_known(path: &str) -> bool {
    let honoured = HONOURED.iter().any(|pattern| covers(pattern, path));
    let accepted = ACCEPTED.iter().any(|(pattern, _)| {
        let open_group = pattern.starts_with("modules.edged.") && pattern.ends_with(".**");
        covers(pattern, path) && !(open_group && (is_group(path) || nearest(path).is_some()))
    });
    honoured || accepted
}

/// True when known keys lie below this path.
fn is_group(path: &str) -> bool {
    let below = |pattern: &str| pattern.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
    HONOURED.iter().any(|pattern| below(pattern)) || ACCEPTED.iter().any(|(pattern, _)| below(pattern))
}

/// An honoured key that was probably meant: at most two letters apart, or equal but for case.
fn nearest(path: &str) -> Option<&'static str> {
    let (group, key) = path.rsplit_once('.').unwrap_or(("", path));
    HONOURED
        .iter()
        .filter_map(|known| {
            let (known_group, known_key) = known.rsplit_once('.').unwrap_or(("", known));
            let distance = if known_key.eq_ignore_ascii_case(key) { 0 } else { edits(known_key, key) };
            (known_group == group && distance <= 2 && key.len() > 3).then_some((distance, *known))
        })
        .min()
        .map(|(_, known)| known)
}

/// Levenshtein's distance; both words are keys, so short.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitution = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The mappings of a YAML file; scalars and lists are leaves.
struct Tree(Vec<(Spanned<String>, Tree)>);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

macro_rules! leaves {
    ($($method:ident: $value:ty),*) => {
        $(fn $method<E: Error>(self, _: $value) -> Result<Tree, E> {
            Ok(Tree(Vec::new()))
        })*
    };
}

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("YAML")
    }

    leaves!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str, visit_bytes: &[u8]);

    fn visit_unit<E: Error>(self) -> Result<Tree, E> {
        Ok(Tree(Vec::new()))
    }

    fn visit_none<E: Error>(self) -> Result<Tree, E> {
        Ok(Tree(Vec::new()))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Tree(Vec::new()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            entries.push((key, map.next_value()?));
        }
        Ok(Tree(entries))
    }
}
