//! Topics and filters: validity and matching (MQTT 3.1.1 section 4.7).

use crate::limits::{TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX};

fn text_is_valid(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= TOPIC_BYTES_MAX
        && !text.contains('\0')
        && text.split('/').count() <= TOPIC_LEVELS_MAX
}

/// True for a topic that a message may be published to. One pass: it is asked for every message.
pub fn topic_is_valid(topic: &str) -> bool {
    let mut levels = 1;
    for byte in topic.bytes() {
        match byte {
            b'/' => levels += 1,
            b'+' | b'#' | 0 => return false,
            _ => {}
        }
    }
    !topic.is_empty() && topic.len() <= TOPIC_BYTES_MAX && levels <= TOPIC_LEVELS_MAX
}

/// True for a filter: wildcards fill a whole level, and `#` is the last one.
pub fn filter_is_valid(filter: &str) -> bool {
    if !text_is_valid(filter) {
        return false;
    }
    let levels = filter.split('/').count();
    filter.split('/').enumerate().all(|(at, level)| match level {
        "+" => true,
        "#" => at + 1 == levels,
        other => !other.contains(['+', '#']),
    })
}

/// True when `filter` selects `topic`. Both must be valid.
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut topic_levels = topic.split('/');
    for level in filter.split('/') {
        if level == "#" {
            return true;
        }
        match topic_levels.next() {
            Some(have) if level == "+" || level == have => {}
            _ => return false,
        }
    }
    topic_levels.next().is_none()
}

/// True when there is a topic that both filters select. Both must be valid.
pub fn filters_overlap(a: &str, b: &str) -> bool {
    if a.starts_with('$') != b.starts_with('$') {
        return false;
    }
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            // `a/#` selects `a` itself too.
            (Some("#"), _) | (_, Some("#")) => return true,
            (Some(x), Some(y)) if x == y || x == "+" || y == "+" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matching_follows_the_specification() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("#", "a/b", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$hw/events/device/default/d/twin/update", false),
            ("+/events/#", "$hw/events/x", false),
            ("$hw/events/device/+/+/twin/+", "$hw/events/device/default/d/twin/update", true),
            ("$hw/events/device/+/+/twin/+", "$hw/events/device/default/d/twin/update/result", false),
            ("$SYS/#", "$SYS/", true),
            ("a/b", "a/b/c", false),
            ("a/b/c", "a/b", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} against {topic}");
        }
    }

    #[test]
    fn overlaps() {
        for (a, b, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/c", false),
            ("a/+", "+/b", true),
            ("a/#", "a", true),
            ("a/#", "b/#", false),
            ("a/b/#", "a/+/c/d", true),
            ("a/+", "a/b/c", false),
            ("#", "$hw/x", false),
            ("$hw/#", "$hw/+/x", true),
        ] {
            assert_eq!((filters_overlap(a, b), filters_overlap(b, a)), (expected, expected), "{a} and {b}");
        }
    }

    #[test]
    fn validity() {
        for good in ["#", "+", "a/+/b/#", "/", "$hw/#", "+/tennis/#"] {
            assert!(filter_is_valid(good), "{good}");
        }
        for bad in [
            "",
            "a#",
            "a/#/b",
            "a+",
            "sport+",
            "a\0",
            &"x".repeat(TOPIC_BYTES_MAX + 1),
            &"/".repeat(TOPIC_LEVELS_MAX + 1),
        ] {
            assert!(!filter_is_valid(bad), "{bad}");
        }
        assert!(
            topic_is_valid("$hw/events/x")
                && topic_is_valid("/")
                && !topic_is_valid("a/+")
                && !topic_is_valid("#")
        );
    }
}
