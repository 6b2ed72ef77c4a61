use super::*;

fn entry(expires: i64, lifetime_s: i64) -> Kept {
    Kept::of(&Entry { token: "t".into(), expires, lifetime_s, ..Entry::default() })
}

#[test]
fn renewal_is_due_at_eighty_percent_or_a_day() {
    let hour = entry(10_000 + 3600, 3600);
    assert!(!hour.is_due(10_000 + 2880, 0));
    assert!(hour.is_due(10_000 + 2881, 0));
    assert!(hour.is_due(10_000 + 2875, 7), "jitter only makes it earlier");
    let week = entry(7 * 86_400, 7 * 86_400);
    assert!(!week.is_due(86_400, 0));
    assert!(week.is_due(86_401, 0));
    assert!(!hour.has_expired(13_599) && hour.has_expired(13_600));
}
