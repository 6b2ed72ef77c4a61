use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use mqtt::broker::testing::Random;

use super::*;
use crate::{
    gpio::fake::{LABEL, PwmWorld, World, output},
    limits::{COUNT_BUFFER_EDGES, HOLDER_LINES_MAX, SOFT_PWM_LINES_MAX},
    plan::gpio::LineRef,
};

const MS: u64 = 1000;

fn holder() -> (Holder, World) {
    let world = World::default();
    (Holder::new(Box::new(world.clone()), Box::new(PwmWorld::default()), BTreeMap::new()), world)
}

/// Lets the line-holder's clock run as its loop does: from deadline to deadline.
fn run(holder: &mut Holder, from_us: u64, until_us: u64) {
    let mut now_us = from_us;
    while let Some(due_us) = holder.deadline_us(now_us).filter(|due_us| *due_us <= until_us) {
        assert!(due_us > now_us, "a deadline that is past");
        now_us = due_us;
        holder.tick(now_us);
    }
    holder.tick(until_us);
}

#[test]
fn a_line_keeps_its_level_and_is_adopted() {
    let (mut holder, world) = holder();
    let request = format!("request default/d/lamp chip={LABEL} line=2 initial=1");
    assert_eq!(holder.handle(0, &request), "ok 1 held");
    assert_eq!(holder.handle(0, "set default/d/lamp 0"), "ok 0 held");
    assert!(!world.high(2));
    // The mapper comes back and asks again: the level stays, whatever its initial value is.
    assert_eq!(holder.handle(0, &request), "ok 0 held");
    assert_eq!(holder.handle(0, "list"), format!("ok 1\ndefault/d/lamp {LABEL} 2 0 held"));
    // Another fail-safe value: the line is not let go.
    let changes = world.changes(2);
    assert_eq!(holder.handle(0, &format!("{request} failsafe=1 deadline-ms=500")), "ok 0 held");
    run(&mut holder, 0, 500 * MS);
    assert!(world.high(2) && world.changes(2) == changes + 1);
    let elsewhere = format!("request default/d/lamp chip={LABEL} line=3 initial=1");
    assert_eq!(holder.handle(0, &elsewhere), "ok 1 held");
    assert!(!world.taken(2) && world.taken(3), "other settings: the line is taken anew");
    assert_eq!(holder.handle(0, "release default/d/lamp"), "ok");
    assert!(!world.taken(3));
}

#[test]
fn the_fail_safe_value_comes_when_nobody_speaks() {
    let (mut holder, world) = holder();
    holder.handle(0, &format!("request pump chip={LABEL} line=2 initial=1 failsafe=0 deadline-ms=1000"));
    assert_eq!(holder.deadline_us(0), Some(1000 * MS));
    assert_eq!(holder.handle(900 * MS, "refresh pump"), "ok 1 held");
    holder.tick(1899 * MS);
    assert!(world.high(2));
    holder.tick(1900 * MS);
    assert!(!world.high(2));
    assert_eq!(holder.handle(1901 * MS, "refresh pump"), "ok 0 failsafe silence");
    assert!(holder.handle(1902 * MS, "list").ends_with("2 0 failsafe silence"));
    assert_eq!(holder.deadline_us(1902 * MS), None);
    assert!(holder.handle(1903 * MS, "pulse pump 100").contains("it is at its fail-safe value (silence)"));
    assert_eq!(holder.handle(2000 * MS, "set pump 1"), "ok 1 held");
    assert_eq!(holder.deadline_us(2000 * MS), Some(3000 * MS));
}

#[test]
fn the_mapper_may_know_other_reasons_and_may_then_die() {
    let (mut holder, world) = holder();
    holder.handle(0, &format!("request pump chip={LABEL} line=2 initial=1 failsafe=0"));
    assert_eq!(holder.deadline_us(0), None, "no deadline of its own");
    assert_eq!(holder.handle(0, "refresh pump due-ms=700 why=link"), "ok 1 held");
    run(&mut holder, 0, 699 * MS);
    assert!(world.high(2));
    run(&mut holder, 699 * MS, 700 * MS);
    assert_eq!((world.high(2), holder.handle(701 * MS, "get pump").as_str()), (false, "ok 0 failsafe link"));
    assert_eq!(holder.handle(702 * MS, "set pump 1 due-ms=50 why=stale"), "ok 1 held");
    assert_eq!(holder.handle(703 * MS, "refresh pump"), "ok 1 held");
    assert_eq!(holder.deadline_us(703 * MS), None, "the reason went away");
    assert_eq!(holder.handle(704 * MS, "refresh pump due-ms=0 why=stale"), "ok 0 failsafe stale", "at once");
}

#[test]
fn a_pulse_ends_by_itself_and_the_line_goes_on_as_it_was() {
    let (mut holder, world) = holder();
    holder.handle(0, &format!("request door chip={LABEL} line=2 initial=0"));
    assert_eq!(holder.handle(0, "pulse door 200"), "ok 1 pulse 200");
    assert_eq!(holder.handle(150 * MS, "pulse door 200"), "ok 1 pulse 200", "begun anew");
    run(&mut holder, 150 * MS, 349 * MS);
    assert!(world.high(2));
    run(&mut holder, 349 * MS, 1000 * MS);
    assert_eq!((world.high(2), holder.handle(1000 * MS, "get door").as_str()), (false, "ok 0 held"));
    assert_eq!(holder.handle(1000 * MS, "toggle door"), "ok 1 held");
    assert_eq!(holder.handle(1000 * MS, "pulse door 100"), "ok 0 pulse 100", "off and on again");
    assert_eq!(holder.handle(1001 * MS, "set door 0"), "ok 0 held", "a value ends it");
    assert_eq!(holder.handle(2000 * MS, "blink door 50 50 3"), "ok 1 blink");
    let changes = world.changes(2);
    run(&mut holder, 2000 * MS, 3000 * MS);
    assert_eq!((world.changes(2) - changes, holder.handle(3000 * MS, "get door").as_str()), (5, "ok 0 held"));
}

#[test]
fn duty_cycles_by_software_and_by_a_chip() {
    let (mut holder, world) = holder();
    holder.handle(0, &format!("request fan chip={LABEL} line=2 period-us=10000 initial=250000"));
    let changes = world.changes(2);
    run(&mut holder, 0, 1000 * MS);
    assert_eq!(world.changes(2) - changes, 200, "a hundred periods");
    assert_eq!(holder.handle(1000 * MS, "set fan 1000000"), "ok 1000000 held");
    assert_eq!((world.high(2), holder.deadline_us(1000 * MS)), (true, None), "nothing to switch");
    assert_eq!(
        holder.handle(0, "request servo chip=c channel=1 period-ns=20000000 initial=75000 failsafe=0"),
        "ok 75000 held"
    );
    assert_eq!(holder.handle(0, "set servo 100000"), "ok 100000 held");
    assert!(holder.handle(0, "set servo 1000001").contains("the value is 0 to 1000000"));
    assert!(holder.handle(0, "pulse servo 100").contains("pulse is for an output line"));
    assert_eq!(holder.handle(0, "refresh servo due-ms=0 why=link"), "ok 0 failsafe link");
    for line in 0..SOFT_PWM_LINES_MAX {
        holder.handle(
            0,
            &format!("request s{line} chip={LABEL} line=LINE{} period-us=10000 initial=1", 100 + line),
        );
    }
    assert!(holder.handle(0, "set fan 5").contains("use a PWM chip"), "the bound");
}

#[test]
fn a_meter_is_counted_through_everything() {
    let (mut holder, world) = holder();
    let request = format!("request energy chip={LABEL} line=5 count=rising debounce-us=0");
    assert_eq!(holder.handle(0, &request), "ok 0 count 0 0");
    let pulses = |holder: &mut Holder, count: u64| {
        for pulse in 0..count {
            *world.now_ns.borrow_mut() += 100_000_000;
            world.flip(5, true);
            world.flip(5, false);
            if pulse % 20 == 0 {
                holder.count(0);
            }
        }
        holder.count(0);
    };
    pulses(&mut holder, 50);
    let now_us = *world.now_ns.borrow() / 1000;
    assert_eq!(holder.handle(now_us, "get energy"), "ok 50 count 0 10000");
    assert_eq!(holder.handle(now_us, "reset energy 1000"), "ok 1000 count 0 10000");
    // More than the kernel's buffer holds, unread: the loss is known.
    for _ in 0..COUNT_BUFFER_EDGES {
        world.flip(5, true);
        world.flip(5, false);
    }
    holder.count(now_us);
    assert_eq!(holder.handle(now_us, "get energy").split(' ').nth(3), Some("1024"));
    assert!(holder.handle(now_us, "set energy 0").contains("reset NAME COUNT"));
    assert!(holder.handle(0, "pulse energy 5").contains("for an output line"));
    // What outlives the process.
    let counts = holder.counts();
    drop(holder);
    let mut holder = Holder::new(Box::new(world.clone()), Box::new(PwmWorld::default()), counts.clone());
    assert_eq!(holder.counts(), counts, "not lost although nobody asks for it yet");
    assert_eq!(holder.handle(0, &request), format!("ok {} count 0 0", counts["energy"]));
    holder.handle(0, "release energy");
    assert!(holder.counts().is_empty(), "a device that was deleted begins anew");
    *world.no_interrupts.borrow_mut() = true;
    assert!(holder.handle(0, &request).contains("has no interrupts"));
}

#[test]
fn a_chip_that_was_unplugged_is_taken_anew_when_it_is_back() {
    let (mut holder, world) = holder();
    let request = format!("request lamp chip={LABEL} line=2 initial=1");
    assert_eq!(holder.handle(0, &request), "ok 1 held");
    *world.unplugged.borrow_mut() = true;
    assert!(holder.handle(0, "refresh lamp").starts_with("error there is no GPIO chip"));
    assert!(holder.handle(0, &request).starts_with("error there is no GPIO chip"));
    *world.unplugged.borrow_mut() = false;
    world.replug();
    assert_eq!(holder.handle(0, &request), "ok 1 held");
    assert_eq!(holder.handle(0, "toggle lamp"), "ok 0 held");
    world.replug();
    assert!(holder.handle(0, "refresh lamp").starts_with("error "));
    assert_eq!(holder.handle(0, &request), "ok 1 held", "out and in between two requests");
}

#[test]
fn what_makes_no_sense_is_answered() {
    let (mut holder, _) = holder();
    for (request, expected) in [
        ("", "error unknown request"),
        ("dance", "error unknown request"),
        ("set x 1", "error unknown line x; request it first"),
        ("request x", "error line= is missing"),
        ("request x line=1 colour=red", "error colour is unknown"),
        ("request x line=1 drive=fast", "error drive=fast has no meaning"),
        ("request x line=1 deadline-ms=3", "error deadline-ms is 0 or 500"),
        ("request x line=1 initial=2", "error initial is 0 to 1"),
        ("request x line=1 channel=1", "error line= and channel= are two things"),
        ("request x channel=1", "error period-ns= is missing"),
        ("request x line=1 period-us=10", "error period-us is at least 5000"),
        ("refresh x due-ms=5", "error unknown line x"),
        ("request x chip=nobody line=1", "error there is no GPIO chip with the label nobody"),
    ] {
        let answer = holder.handle(0, request);
        assert!(answer.starts_with(expected), "{request}: {answer}");
    }
    for at in 0..HOLDER_LINES_MAX {
        holder.handle(0, &format!("request n{at} chip={LABEL} line=LINE{}", 100 + at));
    }
    assert!(holder.handle(0, &format!("request one-more chip={LABEL} line=LINE99")).contains("release some"));
}

#[test]
fn any_bytes_are_answered() {
    let mut random = Random(3);
    let words = [
        "request",
        "set",
        "get",
        "list",
        "refresh",
        "release",
        "a",
        "b",
        "line=1",
        "chip=fake-chip",
        "initial=1",
        "failsafe=0",
        "deadline-ms=600",
        "due-ms=3",
        "why=link",
        "pulse",
        "blink",
        "toggle",
        "reset",
        "20",
        "period-us=5000",
        "period-ns=77",
        "channel=1",
        "count=both",
        "1",
        "\n",
        "\u{0}",
        "=",
    ];
    for _ in 0..2000 {
        let mut data = String::new();
        for _ in 0..random.below(40) {
            data.push_str(words[random.below(words.len())]);
            data.push([' ', ' ', ' ', '\n'][random.below(4)]);
        }
        data.split('\n').for_each(|line| {
            fuzz_words(line.split_once("request a").map_or(line, |(_, rest)| rest).as_bytes())
        });
        fuzz_requests(Box::new(World::default()), Box::new(PwmWorld::default()), data.as_bytes());
    }
}

/// The real socket between both ends; the line-holder is restarted in the middle.
#[test]
fn the_mapper_s_end_survives_a_restart_of_the_line_holder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lines.sock");
    let spec = Target::Line(output(LineRef::Offset(2)));
    let steady = |value| Ok(Answer { value, state: State::Steady });
    let mut outputs = SocketOutputs::new(&path);
    let error = outputs.set("lamp", 1, None).unwrap_err();
    assert!(error.contains("does not answer") && error.contains("mapper hold-lines --socket"), "{error}");
    for round in 0..2 {
        let stop = Arc::new(AtomicBool::new(false));
        let server = {
            let (path, stop) = (path.clone(), stop.clone());
            thread::spawn(move || {
                let holder =
                    Holder::new(Box::new(World::default()), Box::new(PwmWorld::default()), BTreeMap::new());
                serve(&path, holder, None, &stop)
            })
        };
        while outputs.ask("list").is_err() {
            thread::yield_now();
        }
        if round == 1 {
            assert!(
                outputs.refresh("lamp", None).unwrap_err().contains("unknown line lamp"),
                "the new one holds nothing"
            );
        }
        assert_eq!(outputs.request("lamp", &spec), steady(0));
        assert_eq!(outputs.set("lamp", 1, None), steady(1));
        assert_eq!(outputs.refresh("lamp", None), steady(1));
        assert_eq!(outputs.list().unwrap(), [format!("lamp {LABEL} 2 1 held")]);
        assert!(outputs.ask(&"x".repeat(600)).unwrap_err().contains("too long"));
        stop.store(true, Ordering::Relaxed);
        server.join().unwrap().unwrap();
    }
}
