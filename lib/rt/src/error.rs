//! Errors as one line.

use std::{error::Error, fmt::Write};

use crate::limits::{ERROR_CHAIN_LEN, ERROR_TEXT_LEN};

/// An error and its causes, `what: why: why`, without line breaks. A cause that its error's text ends with already is left out.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    let mut next = Some(error);
    for _ in 0..ERROR_CHAIN_LEN {
        let Some(error) = next else { break };
        let mut text = String::new();
        // Only a broken Display fails; then what it wrote so far is used.
        let _ = write!(text, "{error}");
        let text = one_line(&text);
        if !line.ends_with(&text) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&text);
        }
        next = error.source();
    }
    line
}

fn one_line(text: &str) -> String {
    let end = text.floor_char_boundary(ERROR_TEXT_LEN);
    let mut line =
        text[..end].lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    line.retain(|c| !c.is_control());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_one_line_without_repetition() {
        let source = std::io::Error::other("no such file\n  or directory");
        let error = anyhow::Error::from(source).context("cannot read /etc/x").context("cannot start");
        assert_eq!(
            error_chain(error.as_ref()),
            "cannot start: cannot read /etc/x: no such file; or directory"
        );
        let repeats = anyhow::anyhow!("broken").context("it is broken");
        assert_eq!(error_chain(repeats.as_ref()), "it is broken");
    }
}
