//! From message to pin and from pin to message: a broker's process, the mapper's loop and the line-holder with its socket, as on
//! a node. In memory are the lines only.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use mapper::{
    driver::{Driver, Reading},
    engine::{Engine, Opener},
    gpio::{Chips, GpioDriver, linux::KernelChips},
    holder::{Holder, Outputs, SharedOutputs, SocketOutputs, serve},
    limits::{DESCRIPTION_BYTES_MAX, EDGES_PER_SECOND_MAX},
    plan::Plan,
    run::{Loop, Settings},
};
use mqtt::{
    Qos,
    client::{Client, Event, Options},
};

use super::{
    conformance::Wires,
    loopback::{self, Loopback, NoPwm},
    sim::{self, Sim},
};

const ROUNDS: usize = 1000;
const EDGES: usize = 300;
const DEADLINE: Duration = Duration::from_secs(20);
const BUTTON: u32 = 5;
const LAMP: u32 = 2;

struct Broker(Child);

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn broker(program: &str) -> Result<(Broker, String), String> {
    let said = |error: std::io::Error| format!("{program}: {error}");
    // Free a moment ago: the broker has no way to tell which port it got.
    let address =
        TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).map_err(said)?.to_string();
    let child =
        Command::new(program).args(["--listen", &format!("tcp://{address}")]).spawn().map_err(said)?;
    let (broker, begun) = (Broker(child), Instant::now());
    while TcpStream::connect(&address).is_err() {
        if begun.elapsed() > DEADLINE {
            return Err(format!("{program} does not listen on {address}"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok((broker, address))
}

/// Opens GPIO devices only, on whatever chips.
struct BenchOpener<C> {
    chips: C,
    outputs: SharedOutputs,
}

impl<C: Chips> Opener for BenchOpener<C> {
    fn open(
        &mut self,
        now_ms: u64,
        device: &str,
        plan: &Plan,
        readings: &mut Vec<Reading>,
    ) -> Result<Box<dyn Driver>, String> {
        let outputs = self.outputs.clone();
        let driver = GpioDriver::open(now_ms, device, &plan.properties, &mut self.chips, outputs, readings)?;
        Ok(Box::new(driver))
    }

    fn release(&mut self, device: &str, properties: &[&str]) {
        for property in properties {
            let _ = self.outputs.release(&format!("{device}/{property}"));
        }
    }
}

/// Both processes of a node that have to do with pins, as threads.
fn start<C: Chips + Clone + Send + 'static>(chips: C, broker: &str, socket: &Path) {
    let (holds, path) = (chips.clone(), socket.to_owned());
    thread::spawn(move || {
        let holder = Holder::new(Box::new(holds), Box::new(NoPwm), BTreeMap::new());
        if let Err(error) = serve(&path, holder, None, &false.into()) {
            println!("lines: line-holder: {error}");
        }
    });
    let settings = Settings {
        broker: broker.into(),
        username: None,
        password: None,
        lines_socket: socket.to_owned(),
        client_id: "pins-mapper".into(),
    };
    thread::spawn(move || {
        let outputs: SharedOutputs =
            std::rc::Rc::new(std::cell::RefCell::new(SocketOutputs::new(&settings.lines_socket)));
        let engine = Engine::new(Box::new(BenchOpener { chips, outputs }));
        if let Err(error) = Loop::new(&settings, engine).run(|| false) {
            println!("lines: mapper: {error:#}");
        }
    });
}

/// edgecore's side of the bus.
struct Peer {
    client: Client,
    stream: TcpStream,
}

impl Peer {
    fn connect(address: &str) -> Result<Peer, String> {
        let mut client = Client::new(Options {
            client_id: "pins-peer".into(),
            username: None,
            password: None,
            keep_alive_s: 60,
            clean_session: true,
            will: None,
            packet_bytes_max: DESCRIPTION_BYTES_MAX,
        });
        client.subscribe("$hw/events/device/default/pins/twin/update");
        let stream = TcpStream::connect(address).map_err(|error| error.to_string())?;
        let _ = stream.set_nodelay(true);
        let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
        client.opened(mapper::monotonic_ms());
        let mut peer = Peer { client, stream };
        peer.send()?;
        let begun = Instant::now();
        while !peer.client.is_up() {
            peer.look_for("-")?;
            if begun.elapsed() > DEADLINE {
                return Err("the broker does not answer".into());
            }
        }
        Ok(peer)
    }

    fn send(&mut self) -> Result<(), String> {
        let output = self.client.output();
        self.stream.write_all(output).map_err(|error| error.to_string())?;
        output.clear();
        self.client.wrote(mapper::monotonic_ms());
        Ok(())
    }

    /// Reads once, and says whether a message has the words.
    fn look_for(&mut self, words: &str) -> Result<bool, String> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Err("the broker closed the connection".into()),
            Ok(len) => self.client.receive(&buffer[..len]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.to_string()),
        }
        let mut found = false;
        while let Some(event) = self.client.next_event().map_err(|error| error.to_string())? {
            if let Event::Message { payload, .. } = event {
                found |= payload.windows(words.len()).any(|window| window == words.as_bytes());
            }
        }
        self.send()?;
        Ok(found)
    }

    fn wait_for(&mut self, words: &str) -> Result<(), String> {
        let begun = Instant::now();
        while !self.look_for(words)? {
            if begun.elapsed() > DEADLINE {
                return Err(format!("no message with {words}"));
            }
        }
        Ok(())
    }

    /// The description as edgecore publishes it when the desired value changes.
    fn desire(&mut self, chip: &str, version: usize, lamp: bool) -> Result<(), String> {
        let description = format!(
            "{{\"version\":{version},\"device\":{{\"metadata\":{{\"name\":\"pins\",\"namespace\":\"default\"}},\"spec\":{{\
             \"protocol\":{{\"protocolName\":\"gpio\",\"configData\":{{\"chip\":\"{chip}\"}}}},\"properties\":[\
             {{\"name\":\"button\",\"visitors\":{{\"configData\":{{\"line\":{BUTTON}}}}}}},\
             {{\"name\":\"lamp\",\"desired\":{{\"value\":\"{}\"}},\"visitors\":{{\"configData\":{{\"line\":{LAMP},\"direction\":\"output\"}}}}}}]}}}}}}",
            u8::from(lamp)
        );
        let topic = "$kinglet/mapper/gpio/device/default/pins";
        self.client
            .publish(topic, description.as_bytes(), Qos::AtLeastOnce, true)
            .map_err(|error| error.to_string())?;
        self.send()
    }
}

fn told(what: &str, mut took: Vec<Duration>) {
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        println!("{{\"metric\":\"{what}, {name}\",\"unit\":\"us\",\"ours\":{:.0}}}", at(share));
    }
}

pub fn run(program: &str) -> Result<(), String> {
    let dir = std::env::temp_dir().join(format!("kinglet-pins-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
    let result = in_memory(program, &dir.join("lines.sock"));
    let result = result.and_then(|()| match Sim::is_there() {
        true => on_sim(program, &dir.join("sim.sock")),
        false => {
            eprintln!("lines: this kernel has no gpio-sim: the lines were in memory only");
            Ok(())
        }
    });
    let _ = std::fs::remove_dir_all(&dir);
    result
}

fn in_memory(program: &str, socket: &Path) -> Result<(), String> {
    let (_broker, address) = broker(program)?;
    let (chip, seen) = Loopback::new();
    start(chip.clone(), &address, socket);
    let mut peer = Peer::connect(&address)?;
    peer.desire(loopback::LABEL, 0, false)?;
    peer.wait_for("\"lamp\"")?;
    let line = |level: bool| level_told(&seen, level);
    told("message to line, lines in memory", desired(&mut peer, loopback::LABEL, line)?);
    told("edge to message, lines in memory", edges(&mut peer, |_| chip.flip(BUTTON))?);
    Ok(())
}

fn on_sim(program: &str, socket: &Path) -> Result<(), String> {
    let mut sim = Sim::make(None)?;
    let (_broker, address) = broker(program)?;
    start(Kernel, &address, socket);
    let mut peer = Peer::connect(&address)?;
    peer.desire(sim::LABEL, 0, false)?;
    peer.wait_for("\"lamp\"")?;
    let took = desired(&mut peer, sim::LABEL, |level| {
        let begun = Instant::now();
        while sim.is_high(LAMP) != level {
            if begun.elapsed() > DEADLINE {
                return Err("the line did not change".into());
            }
        }
        Ok(Instant::now())
    })?;
    told("message to line, gpio-sim", took);
    told("edge to message, gpio-sim", edges(&mut peer, |high| sim.pull(BUTTON, high))?);
    Ok(())
}

/// The kernel's chips, one for each thread.
#[derive(Clone, Copy)]
struct Kernel;

impl Chips for Kernel {
    fn request(
        &mut self,
        spec: &mapper::plan::gpio::LineSpec,
    ) -> Result<Box<dyn mapper::gpio::Line>, mapper::gpio::GpioError> {
        KernelChips.request(spec)
    }
}

fn level_told(seen: &mpsc::Receiver<(bool, Instant)>, level: bool) -> Result<Instant, String> {
    loop {
        match seen.recv_timeout(DEADLINE) {
            Ok((set, at)) if set == level => return Ok(at),
            Ok(_) => {}
            Err(_) => return Err("the line did not change".into()),
        }
    }
}

/// `line` waits for a level of the line and says when it came.
fn desired(
    peer: &mut Peer,
    chip: &str,
    mut line: impl FnMut(bool) -> Result<Instant, String>,
) -> Result<Vec<Duration>, String> {
    let mut took = Vec::with_capacity(ROUNDS);
    for round in 1..=ROUNDS {
        let level = round % 2 == 1;
        let sent = Instant::now();
        peer.desire(chip, round, level)?;
        took.push(line(level)?.saturating_duration_since(sent));
        // Acknowledgements and the report are read before the next round, as a client does.
        peer.wait_for(&format!("\"lamp\":{{\"actual\":{{\"value\":\"{}\"", u8::from(level)))?;
    }
    Ok(took)
}

fn edges(peer: &mut Peer, mut flip: impl FnMut(bool)) -> Result<Vec<Duration>, String> {
    let pause = Duration::from_micros(1_000_000 / EDGES_PER_SECOND_MAX + 1_000);
    let mut took = Vec::with_capacity(EDGES);
    for round in 1..=EDGES {
        let level = round % 2 == 1;
        let flipped = Instant::now();
        flip(level);
        peer.wait_for(&format!("\"button\":{{\"actual\":{{\"value\":\"{}\"", u8::from(level)))?;
        took.push(flipped.elapsed());
        // More than this is a storm, and would be put together.
        thread::sleep(pause.saturating_sub(flipped.elapsed()));
    }
    Ok(took)
}
