use std::{fs, path::Path};

use super::{sysfs::SysfsPwm, *};
use crate::plan::safety::Safety;

/// A chip as the kernel shows it; the channel is there already, because plain files cannot make it at `export`.
pub fn tree(root: &Path, label: &str) {
    let (chip, device) = (root.join("class/pwmchip2"), root.join("devices").join(label));
    fs::create_dir_all(chip.join("pwm1")).unwrap();
    fs::create_dir_all(&device).unwrap();
    std::os::unix::fs::symlink(&device, chip.join("device")).unwrap();
    for (file, text) in [
        ("npwm", "2\n"),
        ("export", ""),
        ("pwm1/enable", "0\n"),
        ("pwm1/period", "0\n"),
        ("pwm1/duty_cycle", "0\n"),
        ("pwm1/polarity", "normal\n"),
    ] {
        fs::write(chip.join(file), text).unwrap();
    }
}

fn spec() -> PwmSpec {
    PwmSpec {
        chip: None,
        channel: 1,
        period_ns: 1_000_000,
        inverted: false,
        initial: None,
        safety: Safety::default(),
    }
}

#[test]
fn a_channel_is_found_by_its_chip_s_label_and_keeps_its_duty() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path(), "fe20c000.pwm");
    let has = |file: &str| fs::read_to_string(dir.path().join("class/pwmchip2/pwm1").join(file)).unwrap();
    let mut chips = SysfsPwm::new(dir.path().join("class"));
    let mut fan = chips.request(&spec()).unwrap();
    assert_eq!((has("period").as_str(), has("enable").as_str(), fan.get().unwrap()), ("1000000", "1", 0));
    for millionths in [75_000, 333_333, 1_000_000, 0, 500_000] {
        fan.set(millionths).unwrap();
        assert_eq!(fan.get().unwrap(), millionths);
    }
    assert_eq!(has("duty_cycle"), "500000");
    drop(fan);
    let mut again = chips.request(&spec()).unwrap();
    assert_eq!(again.get().unwrap(), 500_000, "a new line-holder adopts the channel as it is");
    drop(again);
    let slower = PwmSpec { period_ns: 20_000_000, inverted: true, ..spec() };
    let mut servo = chips.request(&slower).unwrap();
    assert_eq!(servo.get().unwrap(), 500_000, "another frequency, the same duty cycle");
    assert_eq!((has("duty_cycle").as_str(), has("polarity").as_str()), ("10000000", "inversed"));
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut chips = SysfsPwm::new(dir.path().join("class"));
    let error = |chips: &mut SysfsPwm, spec: PwmSpec| match chips.request(&spec) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it opens"),
    };
    assert!(error(&mut chips, spec()).contains("there are: none"));
    tree(dir.path(), "30000000.pwm");
    assert!(error(&mut chips, spec()).contains("there are: 30000000.pwm"));
    let named = PwmSpec { chip: Some("fe20c000.pwm".into()), ..spec() };
    assert!(error(&mut chips, named).contains("no PWM chip fe20c000.pwm; there are: 30000000.pwm"));
    let channel = PwmSpec { chip: Some("30000000.pwm".into()), channel: 7, ..spec() };
    assert!(error(&mut chips, channel).contains("channels 0 to 1, not 7"));
}
