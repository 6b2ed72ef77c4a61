//! The fuzzing crate stands outside the workspace (it needs a nightly compiler), so nothing else notices when a decoder is missing in
//! it or its lock file has grown old.

use std::path::Path;

use anyhow::Result;
use cargo_metadata::MetadataCommand;

use super::sources::rust_files;

pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut code = Vec::new();
    for file in rust_files(root)? {
        let name = file.strip_prefix(root)?.to_string_lossy().into_owned();
        // Tests call every decoder under seeds; that is not what is asked here.
        if !name.contains("/tests") && !name.starts_with("xtask/") || name.starts_with("tests/fuzz/") {
            code.push((name, std::fs::read_to_string(&file)?));
        }
    }
    let mut findings = unreached(&code);
    let manifest = root.join("tests/fuzz/Cargo.toml");
    if let Err(error) =
        MetadataCommand::new().manifest_path(manifest).other_options(["--locked".to_owned()]).exec()
    {
        findings.push(format!(
            "tests/fuzz/Cargo.lock: run `cargo metadata --manifest-path tests/fuzz/Cargo.toml` and commit it ({error})"
        ));
    }
    Ok(findings)
}

/// Functions for random bytes that no target calls, nor another such function in another file.
fn unreached(code: &[(String, String)]) -> Vec<String> {
    let mut findings = Vec::new();
    for (file, text) in code {
        for rest in text.split("pub fn fuzz_").skip(1) {
            // Those that need more than bytes are called by one that does not.
            let Some((name, _)) =
                rest.split_once("(data: &[u8])").or_else(|| rest.split_once("(bytes: &[u8])"))
            else {
                continue;
            };
            let call = format!("fuzz_{name}(");
            let calls = |text: &str| text.match_indices(&call).any(|(at, _)| !text[..at].ends_with("fn "));
            if !name.contains('(') && !code.iter().any(|(other, text)| other != file && calls(text)) {
                findings.push(format!("{file}: no target in tests/fuzz calls fuzz_{name}"));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_that_nobody_fuzzes_is_found() {
        let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let decoder = file("lib/a/src/lib.rs", "pub fn fuzz_a(data: &[u8]) {}\nfn test() { fuzz_a(b\"\") }");
        let exported = file("lib/b/src/lib.rs", "pub use a::fuzz_a;");
        assert_eq!(unreached(&[decoder.clone(), exported]).len(), 1);
        let target = file("tests/fuzz/fuzz_targets/a.rs", "fuzz_target!(|data: &[u8]| a::fuzz_a(data));");
        assert!(unreached(&[decoder, target]).is_empty());
    }
}
