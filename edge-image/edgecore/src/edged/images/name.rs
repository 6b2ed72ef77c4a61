//! Names of images: how they are read, and which pull policy follows from them.
//!
//! Source: the grammar of github.com/distribution/reference, and Kubernetes' "Images" page for the policies.

/// Why a name cannot be an image's, in the words of the reference library.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    #[error("repository name must not be more than 255 characters")]
    TooLong,
}

/// A name in its parts, registry and repository filled in as Docker does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `docker.io`, `127.0.0.1:5000`.
    pub registry: String,
    /// `library/busybox`.
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<String>,
}

const DOCKER_IO: &str = "docker.io";

impl Reference {
    pub fn parse(text: &str) -> Result<Reference, NameError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        let last = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[last..].split_once(':') {
            Some((_, tag)) => (&rest[..rest.len() - tag.len() - 1], Some(tag)),
            None => (rest, None),
        };
        if !tag.is_none_or(is_tag) || !digest.is_none_or(is_digest) {
            return Err(NameError::Format);
        }
        let (first, path) = name.split_once('/').unwrap_or(("", name));
        let has_registry = first.contains(['.', ':'])
            || first == "localhost"
            || first.contains(|c: char| c.is_ascii_uppercase());
        let (registry, repository) = match (has_registry, first) {
            (true, "index.docker.io") => (DOCKER_IO, path.to_string()),
            (true, _) => (first, path.to_string()),
            (false, "") => (DOCKER_IO, format!("library/{path}")),
            (false, _) => (DOCKER_IO, name.to_string()),
        };
        // `docker.io/busybox` is the library's, too.
        let repository = match registry == DOCKER_IO && !repository.contains('/') {
            true => format!("library/{repository}"),
            false => repository,
        };
        if !is_registry(registry)
            || !repository.split('/').all(|part| is_component(&part.to_ascii_lowercase()))
        {
            return Err(NameError::Format);
        }
        if repository.contains(|c: char| c.is_ascii_uppercase()) {
            return Err(NameError::Uppercase(repository));
        }
        if registry.len() + 1 + repository.len() > 255 {
            return Err(NameError::TooLong);
        }
        Ok(Reference {
            registry: registry.into(),
            repository,
            tag: tag.map(str::to_string),
            digest: digest.map(str::to_string),
        })
    }

    /// What Kubernetes takes when the pod names no policy.
    pub fn default_policy(&self) -> Policy {
        match (&self.tag, &self.digest) {
            (Some(tag), _) if tag == "latest" => Policy::Always,
            (None, None) => Policy::Always,
            _ => Policy::IfNotPresent,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Always,
    IfNotPresent,
    Never,
}

impl Policy {
    pub fn of(written: &str, name: &Reference) -> Policy {
        match written {
            "Always" => Policy::Always,
            "Never" => Policy::Never,
            "IfNotPresent" => Policy::IfNotPresent,
            _ => name.default_policy(),
        }
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        algorithm.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic())
            && algorithm
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'.' | b'_' | b'-'))
            && hex.len() >= 32
            && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => registry.split_once(':').map_or((registry, None), |(host, port)| (host, Some(port))),
    };
    let ip6 = registry.starts_with('[') && host.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    (ip6 || host.split('.').all(label))
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `[a-z0-9]+` joined by one of `.`, `_`, `__` or any number of `-`.
fn is_component(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = |byte: Option<u8>| byte.is_some_and(plain);
    let separators_fit = || {
        part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
        })
    };
    ends(part.bytes().next()) && ends(part.bytes().last()) && separators_fit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_their_parts() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let pinned = format!("ghcr.io/a/b:1@{digest}");
        for (text, registry, repository, tag) in [
            ("busybox", "docker.io", "library/busybox", None),
            ("docker.io/busybox:1.36", "docker.io", "library/busybox", Some("1.36")),
            ("index.docker.io/library/busybox", "docker.io", "library/busybox", None),
            ("team/app", "docker.io", "team/app", None),
            ("localhost/app:x", "localhost", "app", Some("x")),
            ("127.0.0.1:5000/team/app:1", "127.0.0.1:5000", "team/app", Some("1")),
            ("[::1]:5000/app", "[::1]:5000", "app", None),
            (&pinned, "ghcr.io", "a/b", Some("1")),
        ] {
            let name = Reference::parse(text).unwrap();
            assert_eq!(
                (&*name.registry, &*name.repository, name.tag.as_deref()),
                (registry, repository, tag),
                "{text}"
            );
        }
        for text in [
            "",
            "/",
            "a//b",
            "a:",
            "a:-x",
            "a@sha256:00",
            "a b",
            "-a",
            "a..b",
            "host:port/a",
            "a/b:c/d:",
            "ä",
        ] {
            assert_eq!(Reference::parse(text), Err(NameError::Format), "{text:?}");
        }
        assert_eq!(Reference::parse("Foo"), Err(NameError::Uppercase("library/Foo".into())));
        assert_eq!(Reference::parse(&"a".repeat(300)), Err(NameError::TooLong));
    }

    #[test]
    fn the_policy_follows_from_the_tag() {
        let policy = |text: &str| Reference::parse(text).unwrap().default_policy();
        assert_eq!(policy("a"), Policy::Always);
        assert_eq!(policy("a:latest"), Policy::Always);
        assert_eq!(policy("a:1"), Policy::IfNotPresent);
        assert_eq!(policy(&format!("a@sha256:{}", "1".repeat(64))), Policy::IfNotPresent);
        assert_eq!(Policy::of("Never", &Reference::parse("a").unwrap()), Policy::Never);
    }
}
