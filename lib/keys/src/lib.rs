//! Which keys of a YAML configuration file are known: those with an effect, those accepted without one and why, and the rest,
//! each with its line and the key that was probably meant.
//!
//! Not here: the values. edgecore and cloudcore each have a [`Table`] of KubeEdge's keys and their own (design decision 14).

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

/// The keys of one kind of file. Paths are dotted; one that ends in `.*` (honoured) or `.**` (accepted) covers all below it.
#[derive(Debug)]
pub struct Table {
    /// Paths with an effect.
    pub honoured: &'static [&'static str],
    /// Paths that are read over, and why.
    pub accepted: &'static [(&'static str, &'static str)],
    /// Accepted groups below this path are open: they grow with every release of what they belong to, but a key in them that differs
    /// from an honoured one only by a slip is still refused. Empty: none.
    pub open: &'static str,
    /// Where a person finds the known keys.
    pub help: &'static str,
}

/// A key that is not in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// Dotted path, for example `modules.edgeHub.hartbeat`.
    pub path: String,
    pub line: u64,
    remedy: String,
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: unknown key {}; {}", self.line, self.path, self.remedy)
    }
}

impl Table {
    /// Every key of `text` that is neither honoured nor accepted, in the order of the file. An error when it is not YAML.
    pub fn unknown_keys(&self, text: &str) -> Result<Vec<Unknown>, serde_saphyr::Error> {
        let tree: Tree = serde_saphyr::from_str(text)?;
        let mut unknown = Vec::new();
        self.walk(&tree, "", &mut unknown);
        Ok(unknown)
    }

    fn walk(&self, tree: &Tree, prefix: &str, unknown: &mut Vec<Unknown>) {
        for (key, child) in &tree.0 {
            let path = if prefix.is_empty() { key.value.clone() } else { format!("{prefix}.{}", key.value) };
            if self.is_known(&path) {
                continue;
            }
            if !child.0.is_empty() && self.is_group(&path) {
                self.walk(child, &path, unknown);
            } else if !self.is_group(&path) {
                let remedy =
                    self.nearest(&path).map_or(self.help.into(), |known| format!("did you mean {known}?"));
                unknown.push(Unknown { path, line: key.referenced.line(), remedy });
            }
        }
    }

    fn is_known(&self, path: &str) -> bool {
        let honoured = self.honoured.iter().any(|pattern| covers(pattern, path));
        let accepted = self.accepted.iter().any(|(pattern, _)| {
            let open = !self.open.is_empty() && pattern.starts_with(self.open) && pattern.ends_with(".**");
            covers(pattern, path) && !(open && (self.is_group(path) || self.nearest(path).is_some()))
        });
        honoured || accepted
    }

    /// True when known keys lie below this path.
    fn is_group(&self, path: &str) -> bool {
        let below = |pattern: &str| pattern.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
        self.honoured.iter().any(|pattern| below(pattern))
            || self.accepted.iter().any(|(pattern, _)| below(pattern))
    }

    /// An honoured key that was probably meant: at most two letters apart, or equal but for case.
    fn nearest(&self, path: &str) -> Option<&'static str> {
        let (group, key) = path.rsplit_once('.').unwrap_or(("", path));
        self.honoured
            .iter()
            .filter_map(|known| {
                let (known_group, known_key) = known.rsplit_once('.').unwrap_or(("", known));
                let distance = if known_key.eq_ignore_ascii_case(key) { 0 } else { edits(known_key, key) };
                (known_group == group && distance <= 2 && key.len() > 3).then_some((distance, *known))
            })
            .min()
            .map(|(_, known)| known)
    }
}

fn covers(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix(".**").or_else(|| pattern.strip_suffix(".*")) {
        Some(group) => path == group || path.strip_prefix(group).is_some_and(|rest| rest.starts_with('.')),
        None => path == pattern,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Table = Table {
        honoured: &["hub.server", "hub.heartbeat", "pods.kubelet.maxPods", "labels.*"],
        accepted: &[("hub.quic.**", "no"), ("pods.kubelet.**", "open")],
        open: "pods.",
        help: "look it up",
    };

    #[test]
    fn unknown_keys_have_a_line_and_a_remedy() {
        let text = "hub:\n  server: a\n  hartbeat: 15\n  quic: {enable: true}\nlabels: {a: b}\npods:\n  kubelet:\n    maxPodz: 1\n    evictionHard: {}\nother: 1\n";
        let lines: Vec<String> = TABLE.unknown_keys(text).unwrap().iter().map(Unknown::to_string).collect();
        assert_eq!(
            lines,
            [
                "line 3: unknown key hub.hartbeat; did you mean hub.heartbeat?",
                "line 8: unknown key pods.kubelet.maxPodz; did you mean pods.kubelet.maxPods?",
                "line 10: unknown key other; look it up",
            ]
        );
        assert!(TABLE.unknown_keys("a: [").is_err());
    }
}
