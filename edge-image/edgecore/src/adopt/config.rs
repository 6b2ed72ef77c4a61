//! KubeEdge's edgecore.yaml, kept as it is but for the three files of the certificate.

use std::{fs, path::Path};

use super::{AdoptError, Places, file};
use crate::config::Config;

const KEYS: [&str; 3] = ["tlsCaFile", "tlsCertFile", "tlsPrivateKeyFile"];

/// Writes the configuration that our agent runs with. Where the file is written so that its lines cannot be changed safely, the
/// three files of KubeEdge go on being used.
pub fn switch(places: &Places, cfg: &Config) -> Result<(), AdoptError> {
    let source = places.backup.join("edgecore.yaml");
    let text = fs::read_to_string(&source).map_err(file("read", &source))?;
    let ours = with_bundle(&text, &places.bundle);
    let text = match Config::parse(&places.config, &ours) {
        Ok(loaded) if is_only_the_bundle(&loaded.config, cfg, &places.bundle) => ours,
        _ => text,
    };
    rt::atomic_write(&places.config, text.as_bytes())
        .map_err(|error| AdoptError::Store(rt::error_chain(&error)))
}

/// The keys below `edgeHub:` name the bundle; all other lines stay, comments too.
pub fn with_bundle(text: &str, bundle: &Path) -> String {
    let value = serde_json::to_string(&bundle.to_string_lossy()).expect("a path is text");
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut out = vec![
        "# Taken over by `edgecore adopt`; KubeEdge's file is in the folder `adopted` beside its database."
            .to_owned(),
    ];
    let mut hub: Option<usize> = None;
    for line in text.lines() {
        let content = line.trim();
        let is_content = !content.is_empty() && !content.starts_with('#');
        if let Some(depth) = hub
            && is_content
            && indent(line) <= depth
        {
            hub = None;
        }
        if hub.is_some()
            && KEYS.iter().any(|key| content.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))
        {
            continue;
        }
        out.push(line.to_owned());
        if content == "edgeHub:" {
            hub = Some(indent(line));
            let inner = " ".repeat(indent(line) + 2);
            out.extend(KEYS.iter().map(|key| format!("{inner}{key}: {value}")));
        }
    }
    out.join("\n") + "\n"
}

fn is_only_the_bundle(ours: &Config, theirs: &Config, bundle: &Path) -> bool {
    let hub = &ours.modules.edge_hub;
    let mut back = ours.clone();
    back.modules.edge_hub.tls_ca_file = theirs.modules.edge_hub.tls_ca_file.clone();
    back.modules.edge_hub.tls_cert_file = theirs.modules.edge_hub.tls_cert_file.clone();
    back.modules.edge_hub.tls_private_key_file = theirs.modules.edge_hub.tls_private_key_file.clone();
    [&hub.tls_ca_file, &hub.tls_cert_file, &hub.tls_private_key_file].iter().all(|path| *path == bundle)
        && format!("{back:?}") == format!("{theirs:?}")
}
