//! The path-like `route.resource` of a message: `<namespace>/<type>/<name>`, with namespace `null` for cluster scope.

use std::fmt;

/// A parsed `<namespace>/<type>/<name>`. Device twins (`device/<ns>/<name>/twin/edge_updated`) and `membership` do not have
/// this form; look at the text for those.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// `null` for cluster-scoped objects.
    pub namespace: String,
    /// KubeEdge's type word: `pod`, `configmap`, `secret`, `node`, `lease`, `device`, `devicemodel`, `podpatch`, ...
    pub kind: String,
    pub name: String,
}

impl Resource {
    pub fn new(namespace: &str, kind: &str, name: &str) -> Resource {
        Resource { namespace: namespace.into(), kind: kind.into(), name: name.into() }
    }

    /// `None` unless the text has exactly three non-empty segments.
    pub fn parse(text: &str) -> Option<Resource> {
        let mut parts = text.split('/');
        let (namespace, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
        let whole = parts.next().is_none() && !namespace.is_empty() && !kind.is_empty() && !name.is_empty();
        whole.then(|| Resource::new(namespace, kind, name))
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.kind, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_segments_or_nothing() {
        assert_eq!(Resource::parse("default/pod/web").unwrap().to_string(), "default/pod/web");
        assert_eq!(Resource::parse("null/node/pi").unwrap().namespace, "null");
        for bad in ["", "membership", "a/b", "a//c", "a/b/c/d", "device/default/d/twin/edge_updated"] {
            assert_eq!(Resource::parse(bad), None, "{bad}");
        }
    }
}
