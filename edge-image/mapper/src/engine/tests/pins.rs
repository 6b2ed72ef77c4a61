//! What a technician writes for a pin, and what the pin then does: the whole way but for sockets and the kernel.

use super::*;
use crate::limits::EDGE_TROUBLE_MS;

impl Bench {
    fn pin(&mut self, now_ms: u64, name: &str, config: Value, desired: Option<Value>) {
        let mut property = json!({"name": name, "visitors": {"configData": config}});
        if let Some(desired) = desired {
            property["desired"] = desired;
        }
        let device = json!({"metadata": {"name": "d", "namespace": "default"}, "spec": {
            "protocol": {"protocolName": "gpio", "configData": {"chip": LABEL}}, "properties": [property]}});
        self.describe(now_ms, &json!({"version": 1, "device": device}));
    }

    /// Both clocks go on, each as its own process would see it.
    fn run(&mut self, now_ms: u64) {
        self.outputs.tick(now_ms * 1000);
        self.engine.tick(now_ms);
    }

    fn last_state(&mut self) -> String {
        let messages = self.messages();
        messages.into_iter().rfind(|message| message.contains("state/update")).unwrap_or_default()
    }
}

#[test]
fn a_lost_link_brings_the_fail_safe_value_after_its_time_and_its_return_the_wish() {
    let mut bench = Bench::new();
    bench.engine.link(0, true, 0);
    let config =
        json!({"line": 2, "direction": "output", "failsafe": 0, "linkLostMs": 5000, "deadlineMs": 0});
    bench.pin(0, "pump", config, Some(json!({"value": "1"})));
    bench.messages();
    bench.run(1000);
    bench.engine.link(1000, false, 1000);
    bench.run(5999);
    assert!(bench.world.high(2));
    bench.outputs.tick(6_000_000);
    assert!(!bench.world.high(2), "the line-holder does it, whether the mapper lives or not");
    bench.run(6001);
    bench.run(12_000);
    assert_eq!(
        bench.messages(),
        [
            "default/d/state/update unhealthy pump is at its fail-safe value 0: the link to the cloud has been gone for more than 5000 ms",
            "default/d/twin/update pump=0",
        ]
    );
    // A wish that comes now waits for the link; the agent's restart does not begin the time anew.
    bench.pin(
        13_000,
        "pump",
        json!({"line": 2, "direction": "output", "failsafe": 0, "linkLostMs": 5000, "deadlineMs": 0}),
        Some(json!({"value": "on"})),
    );
    bench.engine.link(14_000, false, 14_000);
    assert!(!bench.world.high(2));
    bench.engine.link(15_000, true, 15_000);
    assert!(bench.world.high(2));
    assert!(bench.last_state().ends_with("online "));
}

#[test]
fn a_dead_agent_brings_the_fail_safe_value_although_the_mapper_lives() {
    let mut bench = Bench::new();
    bench.engine.link(0, true, 0);
    let config = json!({"line": 2, "direction": "output", "failsafe": "off", "deadlineMs": 3000});
    bench.pin(0, "pump", config, Some(json!({"value": "1"})));
    for now_ms in (0..9000).step_by(500) {
        bench.run(now_ms);
    }
    assert!(bench.world.high(2), "as long as somebody speaks");
    bench.engine.disconnected(9000);
    for now_ms in (9000..13_000).step_by(500) {
        bench.run(now_ms);
    }
    assert!(!bench.world.high(2));
    bench.engine.connected(13_000);
    assert!(bench.world.high(2), "the agent is back, and so is what was wanted");
}

#[test]
fn a_wish_grows_old() {
    let mut bench = Bench::new();
    let config =
        json!({"line": 2, "direction": "output", "failsafe": 0, "desiredMaxAgeMs": 60_000, "deadlineMs": 0});
    let stamped = |age_ms: u64| {
        // As kubectl writes it: a text.
        json!({"value": "1", "metadata": {"timestamp": (crate::wall_ms() - age_ms).to_string()}})
    };
    bench.pin(0, "pump", config.clone(), Some(stamped(30_000)));
    bench.engine.link(0, true, 0);
    bench.run(25_000);
    assert!(bench.world.high(2));
    bench.run(30_001);
    assert!(!bench.world.high(2));
    bench.run(35_001);
    assert!(bench.last_state().contains("the desired value is older than 60000 ms"));
    // The same value with a new stamp is a new wish, and the line was never let go.
    bench.pin(40_000, "pump", config.clone(), Some(stamped(0)));
    assert!(bench.world.high(2) && bench.last_state().ends_with("online "));
    // One that is too old from the start is never applied.
    bench.engine.description(50_000, "gpio", "default/d", b"");
    let changes = bench.world.changes(2);
    bench.world.flip(2, false);
    bench.pin(50_000, "pump", config, Some(stamped(90_000)));
    assert_eq!((bench.world.high(2), bench.world.changes(2)), (false, changes), "not even for a moment");
    assert!(bench.last_state().contains("the desired value is older"));
}

#[test]
fn methods_of_an_output() {
    let mut bench = Bench::new();
    bench.pin(0, "door", json!({"line": 2, "direction": "output", "initial": 0}), None);
    bench.messages();
    bench.engine.call(0, "default/d", "pulse", "200").unwrap();
    assert_eq!(
        (bench.world.high(2), bench.messages()),
        (true, vec!["default/d/twin/update door=1".to_owned()])
    );
    // The mapper dies in it; its line-holder does not.
    let opener = FakeOpener { world: bench.world.clone(), outputs: bench.outputs.clone() };
    drop(std::mem::replace(&mut bench.engine, Engine::new(Box::new(opener))));
    bench.outputs.tick(200_000);
    assert!(!bench.world.high(2));
    bench.engine.connected(300);
    bench.pin(300, "door", json!({"line": 2, "direction": "output", "initial": 0}), None);
    bench.messages();
    bench.engine.call(300, "default/d", "toggle", "door").unwrap();
    bench.engine.call(300, "default/d", "pulse", "door 50").unwrap();
    bench.outputs.tick(350_000);
    let at = bench.engine.deadline_ms().unwrap();
    assert!(at <= 451, "the end of the pulse is looked at when it comes: {at}");
    bench.run(at);
    assert_eq!(bench.messages().last().unwrap(), "default/d/twin/update door=1");
    for (method, argument, expected) in [
        ("pulse", "", "pulse needs a time of 1 to 3600000 milliseconds"),
        ("pulse", "window 5", "pulse needs a time"),
        ("blink", "door 1 1", "blink needs a time of 20"),
        ("reset", "", "no property of this device can do that"),
        ("sing", "", "no such method: sing; there are pulse, blink, toggle and reset"),
    ] {
        let error = bench.engine.call(500, "default/d", method, argument).unwrap_err();
        assert!(error.starts_with(expected), "{method} {argument}: {error}");
    }
    assert!(bench.messages().is_empty(), "the device goes on");
}

#[test]
fn a_meter_and_its_power_are_one_line() {
    let mut bench = Bench::new();
    let property = |name: &str, config: Value| json!({"name": name, "collectCycle": 1000, "visitors": {"configData": config}});
    let energy = json!({"line": 5, "function": "count", "scale": 0.001});
    let power = json!({"line": 5, "function": "frequency", "scale": 3600});
    let device = json!({"metadata": {"name": "d", "namespace": "default"}, "spec": {
        "protocol": {"protocolName": "gpio", "configData": {"chip": LABEL}},
        "properties": [property("energy", energy), property("power", power)]}});
    bench.describe(0, &json!({"version": 1, "device": device}));
    bench.run(0);
    assert_eq!(
        bench.messages(),
        ["default/d/state/update online ", "default/d/twin/update energy=0 power=0"]
    );
    let pulses = |bench: &mut Bench, from_ms: u64, count: u64| {
        for pulse in 0..count {
            let now_ms = from_ms + pulse * 500;
            *bench.world.now_ns.borrow_mut() = now_ms * 1_000_000;
            bench.world.flip(5, true);
            bench.world.flip(5, false);
            bench.outputs.tick(now_ms * 1000);
        }
    };
    pulses(&mut bench, 1000, 11);
    bench.engine.tick(6000);
    assert_eq!(bench.messages(), ["default/d/twin/update energy=0.011 power=7200"]);
    bench.outputs.tick(6_100_000);
    bench.engine.tick(7000);
    assert!(bench.messages().is_empty(), "no change, no message");
    // A line-holder that was killed has lost its count since it last saved it. The mapper has not.
    bench.outputs.restart(&bench.world);
    bench.engine.tick(8000);
    pulses(&mut bench, 8500, 1);
    bench.engine.tick(9000);
    assert!(bench.messages().last().unwrap().contains("energy=0.012"));
    bench.engine.call(9000, "default/d", "reset", "energy 42000").unwrap();
    assert_eq!(bench.messages(), ["default/d/twin/update energy=42"]);
}

#[test]
fn a_storm_on_a_line_is_bounded_told_and_over() {
    let mut bench = Bench::new();
    bench.pin(0, "button", json!({"line": 5}), None);
    bench.messages();
    let (mut reports, mut turns) = (0, 0);
    for at in 0..100_000u64 {
        bench.world.flip(5, at % 2 == 0);
        // Ten edges a millisecond; the loop wakes when the line's descriptor is among those that it waits for.
        let mut waits = Vec::new();
        bench.engine.waits(&mut waits);
        let now_ms = at / 10;
        if !waits.is_empty() {
            turns += 1;
            bench.engine.ready(now_ms, "default/d");
        } else if bench.engine.deadline_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            turns += 1;
            bench.engine.tick(now_ms);
        }
        reports += bench.messages().len();
    }
    assert!(reports < 700 && turns < 2500, "{reports} reports, {turns} turns in ten seconds");
    bench.engine.tick(10_200);
    bench.engine.tick(10_300);
    let button = bench.engine.devices["default/d"].last[0].as_ref().unwrap().reading.value.clone();
    assert_eq!(button, "0", "the last level is known");
    assert!(bench.engine.devices["default/d"].reason.contains("button: more than 50 edges a second"));
    bench.engine.tick(10_300 + EDGE_TROUBLE_MS);
    assert!(bench.last_state().ends_with("online "));
}

#[test]
fn a_contact_is_debounced_here_when_the_kernel_refuses_and_by_the_clock_without_interrupts() {
    let mut bench = Bench::new();
    bench.pin(0, "button", json!({"line": 5, "debounceMs": 20}), None);
    bench.messages();
    for (at_ms, level) in [(100, true), (103, false), (105, true)] {
        *bench.world.now_ns.borrow_mut() = at_ms * 1_000_000;
        bench.world.flip(5, level);
        bench.engine.ready(at_ms, "default/d");
    }
    assert!(bench.messages().is_empty());
    assert_eq!(bench.engine.deadline_ms(), Some(125));
    bench.engine.tick(125);
    assert_eq!(bench.messages(), ["default/d/twin/update button=1"]);
    bench.engine.description(200, "gpio", "default/d", b"");
    *bench.world.no_interrupts.borrow_mut() = true;
    bench.pin(200, "button", json!({"line": 5, "debounceMs": 20}), None);
    bench.messages();
    bench.world.flip(5, false);
    bench.engine.tick(1200);
    bench.world.flip(5, true);
    assert_eq!(bench.engine.deadline_ms(), Some(1220));
    bench.engine.tick(1220);
    assert!(bench.messages().is_empty(), "it went back before it had settled");
}
