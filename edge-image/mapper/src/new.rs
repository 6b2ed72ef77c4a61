//! The library of models (top folder `devices/`), which the laptop's program carries: 40 kB of text, so nothing has to be found
//! beside it. A node has no use for it.

/// The text of a model's file, by its name.
macro_rules! models {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../devices/", $name, ".yaml")))),*]
    };
}

/// By name. Each file is a DeviceModel and an example Device `<model>-1`; its first line says in a few words what it is.
pub const MODELS: &[(&str, &str)] =
    models!["arduino-lines", "button", "contact", "led", "pir", "relay-board-4"];

/// `new --list`.
pub fn list() -> String {
    let width = MODELS.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    MODELS.iter().map(|(name, text)| format!("{name:width$}  {}\n", about(text))).collect()
}

/// What a model is, in a line.
pub fn about(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim_start_matches("# ")
}

/// `new MODEL`: the file, with the Device's name and node as asked for.
pub fn new(model: &str, name: Option<&str>, node: Option<&str>) -> Result<String, String> {
    let Some((known, text)) = MODELS.iter().find(|(known, _)| *known == model) else {
        let like: Vec<&str> =
            MODELS.iter().map(|(known, _)| *known).filter(|known| is_like(known, model)).collect();
        let like = if like.is_empty() { String::new() } else { format!(", or {}", like.join(", ")) };
        return Err(format!("there is no model {model:?}; see kinglet-mapper new --list{like}"));
    };
    let mut text = (*text).to_owned();
    if let Some(name) = name {
        text = text
            .replace(&format!("metadata: {{name: {known}-1}}"), &format!("metadata: {{name: \"{name}\"}}"));
    }
    if let Some(node) = node {
        let reference = format!("deviceModelRef: {{name: {known}}}\n");
        text = text.replace(&reference, &format!("{reference}  nodeName: \"{node}\"\n"));
    }
    Ok(text)
}

fn is_like(known: &str, wanted: &str) -> bool {
    let wanted = wanted.to_ascii_lowercase();
    known.split('-').any(|part| part.len() > 2 && wanted.contains(part))
        || (wanted.len() > 2 && known.contains(&wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;

    #[test]
    fn every_file_of_the_library_is_in_it_and_makes_sense() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../devices");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".yaml")?.to_owned()))
            .collect();
        files.sort();
        let names: Vec<&str> = MODELS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, files, "MODELS in new.rs and the folder devices/ are the same, in this order");
        for (name, text) in MODELS {
            let said = check::check(text, None).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(said.starts_with(&format!("device default/{name}-1\n")), "{said}");
            assert!(
                about(text).len() > 10 && text.lines().nth(1).unwrap().starts_with("# Wiring: "),
                "{name}"
            );
        }
    }

    #[test]
    fn a_device_gets_the_name_and_node_that_were_asked_for() {
        let text = new("relay-board-4", Some("pumps"), Some("line3-0001")).unwrap();
        let objects = check::objects(&text).unwrap();
        assert_eq!(objects[0]["metadata"]["name"], "relay-board-4");
        assert_eq!(objects[1]["metadata"]["name"], "pumps");
        assert_eq!(objects[1]["spec"]["nodeName"], "line3-0001");
        for (name, _) in MODELS {
            let objects = check::objects(&new(name, Some("other"), Some("n")).unwrap()).unwrap();
            assert_eq!(objects[1]["metadata"]["name"], "other", "{name}");
            assert_eq!(objects[1]["spec"]["nodeName"], "n", "{name}");
        }
        let error = new("relay", None, None).unwrap_err();
        assert!(error.contains("relay-board-4"), "{error}");
        assert!(list().contains("\nbutton "), "{}", list());
    }
}
