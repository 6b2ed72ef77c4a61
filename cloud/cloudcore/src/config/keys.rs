//! The keys of a `cloudcore.yaml`: which have an effect, which are accepted without one and why, and which nobody knows.

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

/// A key that this program does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// Dotted path, for example `modules.cloudHub.nodeLimits`.
    pub path: String,
    pub line: u64,
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: unknown key {}", self.line, self.path)?;
        match nearest(&self.path) {
            Some(known) => write!(f, "; did you mean {known}?"),
            None => write!(f, "; remove it (`cloudcore config keys` prints the known ones)"),
        }
    }
}

/// Paths with an effect.
pub const HONOURED: &[&str] = &[
    "kinglet.apiAddress",
    "kinglet.apiPort",
    "kinglet.dataDir",
    "kinglet.leaseGraceSeconds",
    "kubeAPIConfig.kubeConfig",
    "modules.cloudHub.advertiseAddress",
    "modules.cloudHub.dnsNames",
    "modules.cloudHub.https.address",
    "modules.cloudHub.https.port",
    "modules.cloudHub.keepaliveInterval",
    "modules.cloudHub.nodeLimit",
    "modules.cloudHub.websocket.address",
    "modules.cloudHub.websocket.port",
    "modules.cloudHub.writeTimeout",
];

/// Paths of KubeEdge that are read over, and why. `.**` covers all that lies below.
pub const ACCEPTED: &[(&str, &str)] = &[
    ("apiVersion", "KubeEdge's versions v1alpha1 and v1alpha2 are the same to us"),
    ("kind", "the file is a CloudCore by its place"),
    ("commonConfig.**", "there is no tunnel port to negotiate and no monitor server yet"),
    ("featureGates.**", "node certificates and requests are always checked"),
    ("kubeAPIConfig.burst", "requests are bounded by the number of nodes"),
    ("kubeAPIConfig.contentType", "JSON is used"),
    ("kubeAPIConfig.master", "the address is taken from the kubeconfig"),
    ("kubeAPIConfig.qps", "requests are bounded by the number of nodes"),
    ("modules.cloudHub.authorization.**", "every message is checked against the node's certificate"),
    ("modules.cloudHub.edgeCertSigningDuration", "node certificates are valid for a year; nodes renew them"),
    ("modules.cloudHub.enable", "the hub is what this program is for"),
    ("modules.cloudHub.https.enable", "nodes cannot join without it"),
    (
        "modules.cloudHub.quic.**",
        "KubeEdge's QUIC is a draft that no other library speaks; the WebSocket is used",
    ),
    ("modules.cloudHub.tlsCAFile", "the data directory holds the certificate authority"),
    ("modules.cloudHub.tlsCAKeyFile", "the data directory holds the certificate authority"),
    ("modules.cloudHub.tlsCertFile", "the server certificate is made from advertiseAddress and dnsNames"),
    (
        "modules.cloudHub.tlsPrivateKeyFile",
        "the server certificate is made from advertiseAddress and dnsNames",
    ),
    ("modules.cloudHub.tokenRefreshDuration", "tokens are made on demand with `cloudcore token`"),
    ("modules.cloudHub.unixsocket.**", "CSI calls from the cloud are not built yet"),
    ("modules.cloudHub.websocket.enable", "nodes cannot connect without it"),
    ("modules.cloudStream.**", "logs and exec through the tunnel are not built yet"),
    ("modules.deviceController.**", "workers and buffers are not needed; devices are always served"),
    ("modules.dynamicController.**", "the API of the nodes is not built yet"),
    ("modules.edgeController.**", "workers and buffers are not needed; nodes and pods are always served"),
    ("modules.iptablesManager.**", "there is no tunnel to route to"),
    ("modules.router.**", "rules are not built yet"),
    ("modules.syncController.**", "delivery is always tracked"),
    ("modules.taskManager.**", "updates are done by the image's own updater"),
];

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

fn is_known(path: &str) -> bool {
    HONOURED.iter().any(|pattern| covers(pattern, path))
        || ACCEPTED.iter().any(|(pattern, _)| covers(pattern, path))
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
