//! The command line of `mapper` (on a node) and `kinglet-mapper` (on a laptop): arguments, and one of the jobs.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};

use crate::{
    check, gpio, holder, pwm,
    run::{self, Settings},
    scan,
};

const DEFAULT_BROKER: &str = "127.0.0.1:1883";
const DEFAULT_SOCKET: &str = "/run/kinglet/line-holder.sock";
const USAGE: &str = "\
mapper [--broker HOST:PORT] [--username U --password-file F] [--lines-socket S]   drives devices from the node's MQTT bus
mapper --dmi /etc/kubeedge/dmi.sock [--dmi-listen S] [--dmi-protocols gpio,modbus]   the same at an edgecore's DMI (kinglet-mapper-dmi only)
mapper hold-lines [--socket S] [--counts FILE]   the line-holder; counts of meters are kept in FILE
mapper lines [--socket S]            what the line-holder holds
mapper check FILE [MODEL_FILE]       what Devices (YAML or JSON) would read and write
mapper scan                          board, GPIO lines, serial ports, 1-Wire sensors and I2C addresses of this machine
mapper scan modbus serialPort=/dev/ttyUSB0 baudRate=9600 parity=none units=1-32   which addresses answer (or ip=ADDRESS)
mapper new --list                    the library of models (kinglet-mapper only)
mapper new MODEL [--name NAME] [--node NODE]   prints the model and a Device of it, to be edited (kinglet-mapper only)
";

/// The whole program.
pub fn main() -> ExitCode {
    match job() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mapper: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn job() -> anyhow::Result<()> {
    use lexopt::prelude::*;
    let mut arguments = lexopt::Parser::from_env();
    let mut words: Vec<String> = Vec::new();
    let mut socket = PathBuf::from(DEFAULT_SOCKET);
    let mut counts: Option<PathBuf> = None;
    let mut order = Order::default();
    let mut settings = Settings {
        broker: DEFAULT_BROKER.into(),
        username: None,
        password: None,
        lines_socket: PathBuf::new(),
        client_id: "kinglet-mapper".into(),
    };
    #[cfg(feature = "dmi")]
    let mut dmi: (Option<PathBuf>, PathBuf, String) =
        (None, "/etc/kubeedge/kinglet-mapper.sock".into(), crate::plan::PROTOCOLS.join(","));
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("broker") => settings.broker = arguments.value()?.string()?,
            Long("username") => settings.username = Some(arguments.value()?.string()?),
            Long("password-file") => {
                let path = PathBuf::from(arguments.value()?);
                let text = std::fs::read_to_string(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                settings.password = Some(text.trim_end_matches(['\r', '\n']).to_owned());
            }
            Long("client-id") => settings.client_id = arguments.value()?.string()?,
            Long("socket" | "lines-socket") => socket = arguments.value()?.into(),
            #[cfg(feature = "dmi")]
            Long("dmi") => dmi.0 = Some(arguments.value()?.into()),
            #[cfg(feature = "dmi")]
            Long("dmi-listen") => dmi.1 = arguments.value()?.into(),
            #[cfg(feature = "dmi")]
            Long("dmi-protocols") => dmi.2 = arguments.value()?.string()?,
            Long("counts") => counts = Some(arguments.value()?.into()),
            Long("list") => order.list = true,
            Long("name") => order.name = Some(arguments.value()?.string()?),
            Long("node") => order.node = Some(arguments.value()?.string()?),
            Long("version") | Short('V') => {
                println!("mapper {}", env!("CARGO_PKG_VERSION"));
                return Ok(());
            }
            Long("help") | Short('h') => {
                print!("{USAGE}");
                return Ok(());
            }
            Value(word) => words.push(word.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    settings.lines_socket = socket.clone();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        #[cfg(feature = "dmi")]
        [] if dmi.0.is_some() => crate::dmi::run(&crate::dmi::Settings {
            edgecore: dmi.0.unwrap_or_default(),
            listen: dmi.1,
            name: settings.client_id,
            protocols: dmi.2.split(',').map(|protocol| protocol.trim().to_owned()).collect(),
            lines_socket: socket,
        }),
        [] => run::run(&settings),
        ["hold-lines"] => {
            // Before anything else: SIGTERM is a message to `serve`, which writes the counts.
            let mut terminate = SigSet::empty();
            terminate.add(Signal::SIGTERM);
            terminate.thread_block().context("SIGTERM cannot be blocked")?;
            let before = counts.as_deref().map(holder::counts::load).transpose();
            let before = before.unwrap_or_else(|error| {
                eprintln!("line-holder: counts from before cannot be read: {error}; counting begins at 0");
                None
            });
            let pwm = Box::new(pwm::sysfs::SysfsPwm::default());
            let holder =
                holder::Holder::new(Box::new(gpio::linux::KernelChips), pwm, before.unwrap_or_default());
            holder::serve(&socket, holder, counts.as_deref(), &false.into())
                .with_context(|| format!("cannot serve {}", socket.display()))
        }
        ["lines"] => {
            let lines = holder::SocketOutputs::new(&socket).list().map_err(anyhow::Error::msg)?;
            lines.iter().for_each(|line| println!("{line}"));
            Ok(())
        }
        ["check", device, models @ ..] if models.len() <= 1 => {
            let read =
                |path: &str| std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
            let model = models.first().map(|path| read(path)).transpose()?;
            let said = check::check(&read(device)?, model.as_deref());
            print!("{}", said.map_err(|error| anyhow::anyhow!("{device}: {error}"))?);
            Ok(())
        }
        ["scan"] => {
            print!("{}", scan::report());
            Ok(())
        }
        ["scan", "modbus", words @ ..] => scan_modbus(words),
        ["new"] if order.list => library(&order, None),
        ["new", model] => library(&order, Some(model)),
        _ => bail!("unknown command; these are known:\n{USAGE}"),
    }
}

fn scan_modbus(words: &[&str]) -> anyhow::Result<()> {
    let order = scan::modbus::Order::parse(words).map_err(anyhow::Error::msg)?;
    let last = *order.units.end();
    let found = scan::modbus::scan(&order, |unit, text| match text {
        // Progress goes where it is not in the way of the result.
        None => eprint!("\rasking {unit} of {last} "),
        Some(text) => println!("\rslaveID: {unit} {text}"),
    });
    eprintln!("\r{} of {} addresses answer", found.as_ref().unwrap_or(&0), order.units.len());
    found.map(drop).map_err(anyhow::Error::msg)
}

/// What `new` is asked for.
#[derive(Default)]
struct Order {
    list: bool,
    name: Option<String>,
    node: Option<String>,
}

#[cfg(feature = "laptop")]
fn library(order: &Order, model: Option<&str>) -> anyhow::Result<()> {
    use crate::new;
    let text = match model {
        None => new::list(),
        Some(model) => {
            new::new(model, order.name.as_deref(), order.node.as_deref()).map_err(anyhow::Error::msg)?
        }
    };
    print!("{text}");
    Ok(())
}

#[cfg(not(feature = "laptop"))]
fn library(_order: &Order, _model: Option<&str>) -> anyhow::Result<()> {
    bail!("the library of models is in kinglet-mapper, the build for a laptop (docs/devices.md)")
}
