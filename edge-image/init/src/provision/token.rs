//! Blanking the token where it lies: same length, same clusters, so that neither an old copy nor a half-written file is left behind.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

/// The one key that counts here; a file with mistakes elsewhere is blanked all the same.
#[derive(Deserialize)]
struct OnlyToken {
    token: Spanned<String>,
}

/// Where the token stands in the file, and what to write there instead: an empty text and spaces. `None` when there is no token.
///
/// Only these bytes are written: a power cut leaves the rest of the file as it was.
pub fn blank_token(bytes: &[u8]) -> Option<(Range<usize>, Vec<u8>)> {
    let content = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let offset = bytes.len() - content.len();
    let text = std::str::from_utf8(content).ok()?;
    let found: OnlyToken = toml::from_str(text).ok()?;
    let span = found.token.span();
    if found.token.get_ref().is_empty() || span.len() < 2 {
        return None;
    }
    let mut blank = b"\"\"".to_vec();
    // Spaces may follow a value, and so may line ends, if the token was written over several lines.
    blank.extend(content[span.clone()][2..].iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }));
    Some((span.start + offset..span.end + offset, blank))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_blanked_in_place_and_nothing_else() {
        for (before, after) in [
            ("cloud = \"c:1\"\ntoken = \"abc\" # mine\n", "cloud = \"c:1\"\ntoken = \"\"    # mine\n"),
            ("token = 'abc'\r\n", "token = \"\"   \r\n"),
            ("\u{feff}token=\"x\"\n", "\u{feff}token=\"\" \n"),
            ("\"token\" = \"x\"", "\"token\" = \"\" "),
            (
                "token = \"\"\"\nabc\"\"\"\n[labels]\ntoken = \"x\"\n",
                "token = \"\" \n      \n[labels]\ntoken = \"x\"\n",
            ),
        ] {
            let (span, blank) = blank_token(before.as_bytes()).expect(before);
            let mut bytes = before.as_bytes().to_vec();
            bytes[span].copy_from_slice(&blank);
            assert_eq!(String::from_utf8_lossy(&bytes), after);
            assert!(blank_token(&bytes).is_none(), "once is enough");
        }
        for none in ["", "token = \"\"\n", "# token = \"x\"\n", "[labels]\ntoken = \"x\"\n", "token"] {
            assert!(blank_token(none.as_bytes()).is_none(), "{none}");
        }
    }
}
