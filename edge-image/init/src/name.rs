//! The node's name: a template with the board's serial, and what Kubernetes accepts as a name.

use crate::provision::Mistake;

/// Also what a host name may have.
const NAME_LEN_MAX: usize = 63;
const DEFAULT_TEMPLATE: &str = "kinglet-{serial}";

/// The last eight hexadecimal digits of the board's serial number, or of the network card's address where there is none.
pub fn serial(device_tree: &str, mac: Option<[u8; 6]>) -> String {
    let board: String =
        device_tree.chars().filter(char::is_ascii_hexdigit).collect::<String>().to_ascii_lowercase();
    let digits = if board.bytes().any(|digit| digit != b'0') {
        board
    } else {
        mac.unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    format!("{:0>8}", &digits[digits.len().saturating_sub(8)..])
}

/// Fills in a template such as `line3-{serial}`; an empty one is the default.
///
/// # Errors
/// What is wrong with the name and what to write instead.
pub fn render(template: &str, serial: &str) -> Result<String, Mistake> {
    let template = if template.is_empty() { DEFAULT_TEMPLATE } else { template };
    let mistake = |what: String, remedy: &str| Err(Mistake { line: None, what, remedy: remedy.to_owned() });
    let name = template.replace("{serial}", serial);
    if name.contains(['{', '}']) {
        return mistake(
            format!("node_name = {template:?} has an unknown placeholder"),
            "the only one is {serial}",
        );
    }
    if name.len() > NAME_LEN_MAX {
        return mistake(
            format!("node_name = {template:?} makes {name:?}, longer than {NAME_LEN_MAX} characters"),
            "shorten it",
        );
    }
    let is_part = |part: &str| {
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && part.chars().all(is_allowed) && !part.starts_with('-') && !part.ends_with('-')
    };
    if !name.split('.').all(is_part) {
        return mistake(
            format!("node_name = {template:?} is not a valid node name"),
            "use lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit; {serial} is replaced",
        );
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serial_is_the_boards_else_the_network_cards() {
        let mac = Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!(serial("10000000abCD1234\0", Some([1; 6])), "abcd1234");
        assert_eq!(serial("0000000000000000\0", mac), "00123456", "a board whose serial was never set");
        assert_eq!(serial("", mac), "00123456");
        assert_eq!(serial("7f", None), "0000007f");
        assert_eq!(serial("", None), "00000000");
    }

    #[test]
    fn templates() {
        assert_eq!(render("", "0a0b0c0d").as_deref(), Ok("kinglet-0a0b0c0d"));
        assert_eq!(render("line3-{serial}", "0a0b0c0d").as_deref(), Ok("line3-0a0b0c0d"));
        assert_eq!(render("a.b", "x").as_deref(), Ok("a.b"));
        for (bad, says) in [
            ("Line3", "lower-case"),
            ("-a", "beginning"),
            ("a..b", "lower-case"),
            ("a_b", "lower-case"),
            ("a-{mac}", "{serial}"),
            (&"x".repeat(64), "shorten"),
            ("zäh", "lower-case"),
        ] {
            let mistake = render(bad, "0a0b0c0d").expect_err(bad).to_string();
            assert!(
                mistake.contains(says) && mistake.contains("node_name") && !mistake.contains('\n'),
                "{bad}: {mistake}"
            );
        }
    }
}
