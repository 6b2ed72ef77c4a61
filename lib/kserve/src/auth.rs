//! Who asks, for what, and whether they may.

/// A caller, as its certificate or token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
}

impl Identity {
    pub fn new(user: &str, groups: &[&str]) -> Identity {
        Identity { user: user.into(), groups: groups.iter().map(|group| group.to_string()).collect() }
    }

    /// A caller inside this program.
    pub fn internal(name: &str) -> Identity {
        Identity::new(name, &[MASTERS])
    }

    pub fn anonymous() -> Identity {
        Identity::new("system:anonymous", &["system:unauthenticated"])
    }
}

pub const MASTERS: &str = "system:masters";

/// What is asked for. For paths that are no resources, `resource` is empty and `path` is set.
#[derive(Debug)]
pub struct Attributes<'a> {
    pub identity: &'a Identity,
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub path: &'a str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// With the reason.
    Deny(String),
}

/// The one place where rights are decided. Default: deny.
pub trait Authorize: Send + Sync + 'static {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision;
}

/// `system:masters` may everything; everybody may see health, version and, when authenticated, discovery.
#[derive(Clone, Copy, Debug, Default)]
pub struct MastersOnly;

impl Authorize for MastersOnly {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let identity = attributes.identity;
        if identity.groups.iter().any(|group| group == MASTERS) || open_path(attributes) {
            return Decision::Allow;
        }
        let what = if attributes.resource.is_empty() {
            format!("cannot {} path \"{}\"", attributes.verb, attributes.path)
        } else {
            let sub = if attributes.subresource.is_empty() {
                attributes.resource.to_string()
            } else {
                format!("{}/{}", attributes.resource, attributes.subresource)
            };
            let scope = if attributes.namespace.is_empty() {
                "at the cluster scope".to_string()
            } else {
                format!("in the namespace \"{}\"", attributes.namespace)
            };
            format!(
                "cannot {} resource \"{sub}\" in API group \"{}\" {scope}",
                attributes.verb, attributes.group
            )
        };
        Decision::Deny(format!("User \"{}\" {what}", identity.user))
    }
}

/// Paths that say nothing about objects.
fn open_path(attributes: &Attributes<'_>) -> bool {
    if !attributes.resource.is_empty() || attributes.verb != "get" {
        return false;
    }
    let path = attributes.path;
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let known = attributes.identity.groups.iter().any(|group| group != "system:unauthenticated");
    matches!(first, "healthz" | "livez" | "readyz" | "version")
        || known && matches!(first, "api" | "apis" | "openapi")
}
