use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use mqtt::broker::testing::Random;

use super::*;
use crate::{
    gpio::fake::{LABEL, World, output},
    limits::HOLDER_LINES_MAX,
    plan::gpio::LineRef,
};

fn holder() -> (Holder, World) {
    let world = World::default();
    (Holder::new(Box::new(world.clone())), world)
}

#[test]
fn a_line_keeps_its_level_and_is_adopted() {
    let (mut holder, world) = holder();
    let request = format!("request default/d/lamp chip={LABEL} line=2 initial=1");
    assert_eq!(holder.handle(0, &request), "ok 1");
    assert_eq!(holder.handle(0, "set default/d/lamp 0"), "ok 0");
    assert!(!world.high(2));
    // The mapper comes back and asks again: the level stays, whatever its initial value is.
    assert_eq!(holder.handle(0, &request), "ok 0");
    assert_eq!(holder.handle(0, "list"), format!("ok 1\ndefault/d/lamp {LABEL} 2 0 held"));
    assert_eq!(holder.handle(0, &format!("request default/d/lamp chip={LABEL} line=3 initial=1")), "ok 1");
    assert!(!world.taken(2) && world.taken(3), "other settings: the line is taken anew");
    assert_eq!(holder.handle(0, "release default/d/lamp"), "ok");
    assert!(!world.taken(3));
}

#[test]
fn the_fail_safe_value_comes_when_nobody_speaks() {
    let (mut holder, world) = holder();
    holder.handle(0, &format!("request pump chip={LABEL} line=2 initial=1 failsafe=0 deadline-ms=1000"));
    assert_eq!(holder.deadline_ms(), Some(1000));
    assert_eq!(holder.handle(900, "refresh pump"), "ok 1");
    holder.tick(1899);
    assert!(world.high(2));
    holder.tick(1900);
    assert!(!world.high(2));
    assert_eq!(holder.handle(1901, "refresh pump"), "ok 0");
    assert!(holder.handle(1902, "list").ends_with("2 0 failsafe"));
    assert_eq!(holder.deadline_ms(), None);
    assert_eq!(holder.handle(2000, "set pump 1"), "ok 1");
    assert_eq!(holder.deadline_ms(), Some(3000));
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
        fuzz_requests(Box::new(World::default()), data.as_bytes());
    }
}

/// The real socket between both ends; the line-holder is restarted in the middle.
#[test]
fn the_mapper_s_end_survives_a_restart_of_the_line_holder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lines.sock");
    let spec = output(LineRef::Offset(2));
    let mut outputs = SocketOutputs::new(&path);
    let error = outputs.set("lamp", true).unwrap_err();
    assert!(error.contains("does not answer") && error.contains("mapper hold-lines --socket"), "{error}");
    for round in 0..2 {
        let stop = Arc::new(AtomicBool::new(false));
        let server = {
            let (path, stop) = (path.clone(), stop.clone());
            thread::spawn(move || serve(&path, Holder::new(Box::new(World::default())), &stop))
        };
        while outputs.ask("list").is_err() {
            thread::yield_now();
        }
        if round == 1 {
            assert!(
                outputs.refresh("lamp").unwrap_err().contains("unknown line lamp"),
                "the new one holds nothing"
            );
        }
        assert_eq!(outputs.request("lamp", &spec), Ok(false));
        assert_eq!(outputs.set("lamp", true), Ok(true));
        assert_eq!(outputs.refresh("lamp"), Ok(true));
        assert_eq!(outputs.list().unwrap(), [format!("lamp {LABEL} 2 1 held")]);
        assert!(outputs.ask(&"x".repeat(600)).unwrap_err().contains("too long"));
        stop.store(true, Ordering::Relaxed);
        server.join().unwrap().unwrap();
    }
}
