//! What every implementation of `gpio::Chips` does. The unit tests run it on the fake, the guest on the kernel's gpio-sim.

use std::time::{Duration, Instant};

use mapper::{
    gpio::{Chips, EdgeEvent, Line},
    limits::INPUT_BUFFER_EDGES,
    plan::{
        gpio::{Bias, Direction, Drive, Edge, Function, LineRef, LineSpec},
        safety::Safety,
    },
};

/// The other end of the wires. The chip has 8 lines; line 3 is called `pump`, line 7 is used by `camera`.
pub trait Wires {
    fn label(&self) -> String;
    /// What is outside of the chip pulls the line there.
    fn pull(&mut self, line: u32, high: bool);
    fn is_high(&mut self, line: u32) -> bool;
    /// Takes the chip away although its lines are in use.
    fn unplug(&mut self);
}

pub type Verdict = Result<(), String>;
pub type Row = (&'static str, fn(&mut dyn Chips, &mut dyn Wires) -> Verdict);

/// The last takes the chip away.
pub const ROWS: &[Row] = &[
    ("edges come in order, numbered and stamped", edges),
    ("active-low is applied below", active_low),
    ("a line without edges is read", polled),
    ("an input is not driven", not_driven),
    ("an output has its first level at once, and what is set", output),
    ("an output without a first level keeps the one it has", kept),
    ("an open drain lets go", open_drain),
    ("a line is found by its name", by_name),
    ("who uses a line is named", busy),
    ("a chip or line that is not there is named with those that are", unknown),
    ("edges that had no room leave a gap in the numbers", overflow),
    ("a glitch is debounced, or it is said that it is not", debounce),
    ("a counted line has room for a storm", counted),
    ("a chip that is taken away is an error", unplugged),
];

fn spec(wires: &dyn Wires, line: u32, direction: Direction) -> LineSpec {
    LineSpec {
        chip: Some(wires.label()),
        line: LineRef::Offset(line),
        direction,
        function: Function::Level,
        bias: Bias::AsIs,
        active_low: false,
        edge: Edge::Both,
        debounce_us: 0,
        drive: Drive::PushPull,
        initial: None,
        safety: Safety::default(),
    }
}

fn take(chips: &mut dyn Chips, spec: &LineSpec) -> Result<Box<dyn Line>, String> {
    chips.request(spec).map_err(|error| error.to_string())
}

fn refusal(chips: &mut dyn Chips, spec: &LineSpec) -> Result<String, String> {
    match chips.request(spec) {
        Ok(_) => Err("it was taken".into()),
        Err(error) => Ok(error.to_string()),
    }
}

fn expect(condition: bool, what: &str) -> Verdict {
    if condition { Ok(()) } else { Err(what.to_owned()) }
}

fn get(line: &mut dyn Line) -> Result<bool, String> {
    line.get().map_err(|error| error.to_string())
}

fn set(line: &mut dyn Line, active: bool) -> Verdict {
    line.set(active).map_err(|error| error.to_string())
}

/// Edges until there were none for a while; an interrupt takes its time.
fn drain(line: &mut dyn Line, quiet: Duration) -> Result<Vec<EdgeEvent>, String> {
    let (mut edges, mut last) = (Vec::new(), Instant::now());
    while last.elapsed() < quiet {
        match line.next_edge().map_err(|error| error.to_string())? {
            Some(edge) => {
                edges.push(edge);
                last = Instant::now();
            }
            None => std::thread::yield_now(),
        }
    }
    Ok(edges)
}

const QUIET: Duration = Duration::from_millis(60);

fn edges(chips: &mut dyn Chips, wires: &mut dyn Wires) -> Verdict {
    wires.pull(5, false);
    let mut button = take(chips, &spec(wires, 5, Direction::Input))?;
    expect(!get(button.as_mut())? && drain(button.as_mut(), QUIET)?.is_empty(), "low, and no edge yet")?;
    let mut seen = Vec::new();
    for high in [true, false, true] {
        wires.pull(5, high);
        // A simulated interrupt that is pending is not raised twice.
        seen.extend(drain(button.as_mut(), QUIET)?);
    }
    let levels: Vec<bool> = seen.iter().map(|edge| edge.active).collect();
    expect(levels == [true, false, true], &format!("levels {levels:?}"))?;
    expect(seen.windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1), "a number is missing")?;
    expect(seen.windows(2).all(|pair| pair[1].timestamp_ns >= pair[0].timestamp_ns), "time goes back")?;
    expect(get(button.as_mut())?, "it ends high")
}

fn active_low(chips: &mut dyn Chips, wires: &mut dyn Wires) -> Verdict {
    wires.pull(5, true);
    let mut button = take(chips, &LineSpec { active_low: true, ..spec(wires, 5, Direction::Input) })?;
    expect(!get(button.as_mut())?, "high is inactive")?;
    wires.pull(5, false);
    let seen = drain(button.as_mut(), QUIET)?;
    expect(seen.len() == 1 && seen[0].active, "the falling edge is the active one")?;
    drop(button);
    let lamp = LineSpec { active_low: true, initial: Some(1), ..spec(wires, 2, Direction::Output) };
    let mut lamp = take(chips, &lamp)?;
    expect(!wires.is_high(2) && get(lamp.as_mut())?, "active is low")
}

fn polled(chips: &mut dyn Chips, wires: &mut dyn Wires) -> Verdict {
    wires.pull(5, false);
    let mut line = take(chips, &LineSpec { edge: Edge::None, ..spec(wires, 5, Direction::Input) })?;
    expect(line.fd().is_none() && !get(line.as_mut())?, "low, and nothing to wait for")?;
    wires.pull(5, true);
    expect(get(line.as_mut())?, "high")
}

fn not_driven(chips: &mut dyn Chips, wires: &mut dyn Wires) -> Verdict {
    let mut line = take(chips, &spec(wires, 5, Direction::Input))?;
    expect(line.set(true).is_err(), "it was")
}

fn output(chips: &mut dyn Chips, wires: &mut dyn Wires) -> Verdict {
    let mut lamp = take(chips, &LineSpec { initial: Some(1), ..spec(wires, 2, Direction::Output) })?;
    expect(wires.is_high(2) && get(lamp.as_mut())?, "on at once")?;
    set(lamp.as_mut(), false)?;
    expect(!wires.is_high(2) && !get(lamp.as_mut())?, "off")?;
    expect(lamp.fd().is_none(), "nothing to wait for")
}

fn kept(chips: &mut dyn Chips, wires: &mut dyn Wires) -> Verdict {
    for high in [true, false] {
        wires.pull(2, high);
        let mut lamp = take(chips, &spec(wires, 2, Direction::Output))?;
        expect(wires.is_high(2) == high && get(lamp.as_mut())? == high, "another level")?;
    }
    Ok(())
}

fn open_drain(chips: &mut dyn Chips, wires: &mut dyn Wires) -> Verdict {
    wires.pull(2, true);
    let spec = LineSpec { drive: Drive::OpenDrain, initial: Some(0), ..spec(wires, 2, Direction::Output) };
    let mut line = take(chips, &spec)?;
    expect(!wires.is_high(2), "pulled to ground")?;
    set(line.as_mut(), true)?;
    wires.pull(2, true);
    expect(wires.is_high(2), "let go, the resistor pulls it up")?;
    wires.pull(2, false);
    expect(!get(line.as_mut())?, "somebody else on the wire pulls it down, and that is read")
}

fn by_name(chips: &mut dyn Chips, wires: &mut dyn Wires) -> Verdict {
    let named = LineSpec { line: LineRef::Name("pump".into()), ..spec(wires, 0, Direction::Output) };
    let mut pump = take(chips, &LineSpec { initial: Some(1), ..named })?;
    expect(wires.is_high(3), "line 3 is on")?;
    set(pump.as_mut(), false)
}

fn busy(chips: &mut dyn Chips, wires: &mut dyn Wires) -> Verdict {
    let held = take(chips, &spec(wires, 5, Direction::Input))?;
    let ours = refusal(chips, &spec(wires, 5, Direction::Input))?;
    expect(ours.contains("is used by kinglet"), &ours)?;
    drop(held);
    drop(take(chips, &spec(wires, 5, Direction::Input))?);
    let other = refusal(chips, &spec(wires, 7, Direction::Output))?;
    expect(other.contains("is used by camera"), &other)
}

fn unknown(chips: &mut dyn Chips, wires: &mut dyn Wires) -> Verdict {
    let line = refusal(chips, &spec(wires, 999, Direction::Input))?;
    expect(line.contains("has no line 999; it has 0 to 7") && line.contains("pump"), &line)?;
    let named = LineSpec { line: LineRef::Name("nobody".into()), ..spec(wires, 0, Direction::Input) };
    let name = refusal(chips, &named)?;
    expect(name.contains("has no line nobody; it has 0 to 7"), &name)?;
    let other = LineSpec { chip: Some("nobody".into()), ..spec(wires, 0, Direction::Input) };
    let chip = refusal(chips, &other)?;
    expect(chip.contains("label nobody; there are: ") && chip.contains(&wires.label()), &chip)
}

/// Level changes that nobody reads, each with time for its interrupt.
fn storm(wires: &mut dyn Wires, edges: u32) {
    for at in 0..edges {
        wires.pull(5, at % 2 == 0);
        std::thread::sleep(Duration::from_micros(500));
    }
}

fn overflow(chips: &mut dyn Chips, wires: &mut dyn Wires) -> Verdict {
    wires.pull(5, false);
    let mut line = take(chips, &spec(wires, 5, Direction::Input))?;
    storm(wires, 200);
    let seen = drain(line.as_mut(), QUIET)?;
    let (first, last) = (seen.first().ok_or("no edge at all")?, seen.last().ok_or("no edge at all")?);
    expect(seen.len() == INPUT_BUFFER_EDGES as usize, &format!("{} edges were kept", seen.len()))?;
    expect(!last.active && first.sequence > 1, "the oldest ones went, and their numbers with them")
}

fn debounce(chips: &mut dyn Chips, wires: &mut dyn Wires) -> Verdict {
    wires.pull(5, false);
    let mut line = take(chips, &LineSpec { debounce_us: 40_000, ..spec(wires, 5, Direction::Input) })?;
    wires.pull(5, true);
    wires.pull(5, false);
    let glitch = drain(line.as_mut(), Duration::from_millis(120))?;
    if !line.debounces() {
        return expect(glitch.len() == 2, "the driver debounces, and needs each edge");
    }
    expect(glitch.is_empty(), "a glitch came through")?;
    wires.pull(5, true);
    let press = drain(line.as_mut(), Duration::from_millis(200))?;
    expect(press.len() == 1 && press[0].active, "the press did not")
}

fn counted(chips: &mut dyn Chips, wires: &mut dyn Wires) -> Verdict {
    wires.pull(5, false);
    let counted = LineSpec { function: Function::Count { scale: 1.0 }, ..spec(wires, 5, Direction::Input) };
    let mut line = take(chips, &counted)?;
    storm(wires, 200);
    let seen = drain(line.as_mut(), QUIET)?;
    let last = seen.last().map_or(0, |edge| edge.sequence);
    expect(seen.len() > INPUT_BUFFER_EDGES as usize, &format!("{} edges were kept", seen.len()))?;
    expect(last as usize == seen.len(), "one was lost")
}

fn unplugged(chips: &mut dyn Chips, wires: &mut dyn Wires) -> Verdict {
    let label = wires.label();
    let mut line = take(chips, &spec(wires, 5, Direction::Input))?;
    wires.unplug();
    expect(line.get().is_err(), "it is read")?;
    expect(line.next_edge().is_err(), "edges are waited for")?;
    drop(line);
    let error = refusal(chips, &spec(wires, 5, Direction::Input))?;
    expect(error.contains(&format!("no GPIO chip with the label {label}")), &error)
}
