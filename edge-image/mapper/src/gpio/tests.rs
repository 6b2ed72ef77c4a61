use super::{
    fake::{World, input, output},
    *,
};
use crate::plan::gpio::{Edge, LineRef};

/// What every implementation of [`Chips`] does. `flip` and `high` are the other end of the wires: lines 5 (in) and 2 (out) of the
/// chip in the specs that `input` and `output` give.
fn conformance(chips: &mut dyn Chips, flip: &dyn Fn(u32, bool), high: &dyn Fn(u32) -> bool) {
    let mut button = chips.request(&input(LineRef::Offset(5))).unwrap();
    assert!(!button.get().unwrap());
    assert_eq!(button.next_edge().unwrap(), None);
    flip(5, true);
    flip(5, false);
    flip(5, true);
    let mut seen = Vec::new();
    while let Some(edge) = button.next_edge().unwrap() {
        seen.push(edge.active);
    }
    assert_eq!(seen, [true, false, true], "every edge, in order");
    assert!(button.get().unwrap());
    assert!(button.set(true).is_err(), "an input is not driven");
    let Err(error) = chips.request(&input(LineRef::Offset(5))) else { panic!("taken twice") };
    assert!(matches!(error, GpioError::Busy { .. }), "{error}");
    drop(button);
    let spec = LineSpec { active_low: true, ..input(LineRef::Offset(5)) };
    let mut inverted = chips.request(&spec).unwrap();
    assert!(!inverted.get().unwrap(), "high is inactive");
    flip(5, false);
    assert!(inverted.next_edge().unwrap().unwrap().active);
    drop(inverted);
    let mut polled = chips.request(&LineSpec { edge: Edge::None, ..input(LineRef::Offset(5)) }).unwrap();
    assert!(polled.fd().is_none() && !polled.get().unwrap());
    drop(polled);

    let mut lamp = chips.request(&LineSpec { initial: Some(1), ..output(LineRef::Offset(2)) }).unwrap();
    assert!(high(2) && lamp.get().unwrap());
    lamp.set(false).unwrap();
    assert!(!high(2));
    lamp.set(true).unwrap();
    drop(lamp);
    let mut kept = chips.request(&output(LineRef::Offset(2))).unwrap();
    assert!(kept.get().unwrap() && high(2), "without an initial value the level stays");
    drop(kept);
    let mut inverted = chips
        .request(&LineSpec { active_low: true, initial: Some(1), ..output(LineRef::Offset(2)) })
        .unwrap();
    assert!(!high(2) && inverted.get().unwrap());
    drop(inverted);

    let Err(error) = chips.request(&input(LineRef::Offset(999))) else { panic!("no such line") };
    assert!(error.to_string().contains("has no line 999"), "{error}");
    let Err(error) = chips.request(&LineSpec { chip: Some("nobody".into()), ..input(LineRef::Offset(0)) })
    else {
        panic!()
    };
    assert!(error.to_string().contains("label nobody"), "{error}");
}

#[test]
fn the_fake_conforms() {
    let world = World::default();
    conformance(&mut world.clone(), &|line, high| world.flip(line, high), &|line| world.high(line));
}
