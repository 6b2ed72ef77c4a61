use std::{io::Write as _, process::ExitCode};

use edgecore::{
    adopt,
    cli::{self, Command},
    config::Config,
    device_call, doctor, join, notify, runtime_guard,
    status::{State, Status},
};
use rt::Drain;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let filter = std::env::var("KINGLET_LOG").unwrap_or_else(|_| "info".into());
    if let Err(error) = rt::log::init(&filter) {
        eprintln!("edgecore: KINGLET_LOG: {error}");
        return ExitCode::from(2);
    }
    let token = std::env::var("KINGLET_TOKEN").ok();
    let result = match cli::parse(std::env::args_os().skip(1).collect(), token) {
        Ok(Command::Help) => print(cli::HELP.trim_end()),
        Ok(Command::Version) => print(&format!("edgecore {VERSION} ({})", edgecore::node::KUBELET_VERSION)),
        Ok(Command::ConfigCheck { file }) => check(&file),
        Ok(Command::RuntimeCheck { root }) => check_runtime(&root),
        Ok(Command::RuntimeStart { root, command }) => {
            Err(rt::error_chain(&runtime_guard::start(&root, "/run/kinglet".as_ref(), &command)))
        }
        Ok(Command::Join(options)) => run_join(&options),
        Ok(Command::Alone(options)) => run_alone(&options),
        Ok(Command::Pins { dir }) => pins(&dir),
        Ok(Command::Adopt(options)) => run_adopt(&options),
        Ok(Command::Device { config, device, call }) => ask_device(&config, &device, &call),
        Ok(Command::Doctor { machine, config, json }) => run_doctor(&machine, config.as_deref(), json),
        Ok(Command::Run { config }) => run(&config),
        Err(error) => {
            eprintln!("edgecore: {error}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(line) => {
            eprintln!("edgecore: {line}");
            ExitCode::FAILURE
        }
    }
}

/// One line for the console.
type Outcome = Result<(), String>;

fn print(text: &str) -> Outcome {
    // A reader that has seen enough (`| head`) is no fault.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}

fn check(file: &std::path::Path) -> Outcome {
    let loaded = Config::load(file).map_err(|error| rt::error_chain(&error))?;
    for key in &loaded.unknown {
        println!("{}: {key}", file.display());
    }
    match loaded.unknown.len() {
        0 => print(&format!("{}: all keys are known", file.display())),
        count => Err(format!("{count} unknown keys in {}", file.display())),
    }
}

fn ask_device(config: &std::path::Path, device: &str, call: &device_call::Call) -> Outcome {
    let cfg = Config::load(config).map_err(|error| rt::error_chain(&error))?.config;
    print(&runtime()?.block_on(device_call::call(&cfg, device, call))?)
}

fn check_runtime(root: &std::path::Path) -> Outcome {
    let done = runtime_guard::check(root).map_err(|error| rt::error_chain(&error))?;
    done.iter().try_for_each(|line| print(line))
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    rt::runtime().map_err(|error| format!("cannot start: {error}"))
}

fn run_doctor(machine: &join::Options, config: Option<&std::path::Path>, json: bool) -> Outcome {
    let work = async {
        let cfg = match config {
            Some(file) => {
                Config::load(file).map(|loaded| loaded.config).map_err(|error| rt::error_chain(&error))
            }
            None => join::prospect(&doctor::fill_from_runtime(machine).await)
                .map_err(|error| rt::error_chain(&error)),
        };
        Ok::<_, String>(doctor::examine(&machine.root, &cfg?).await)
    };
    let findings = runtime()?.block_on(work)?;
    print(if json { doctor::json(&findings) } else { doctor::text(&findings) }.trim_end())?;
    match doctor::has_errors(&findings) {
        true => Err("this machine needs attention before pods run on it; see the errors above".into()),
        false => Ok(()),
    }
}

fn run_adopt(options: &adopt::Options) -> Outcome {
    let services = adopt::System::new();
    let lines = runtime()?.block_on(async {
        match options.undo {
            true => adopt::undo(options, &services).await,
            false => adopt::run(options, &services, None).await,
        }
    });
    print(&lines.map_err(|error| rt::error_chain(&error))?.join("\n"))
}

fn run_join(options: &join::Options) -> Outcome {
    let run_dir = options.root.join("run/kinglet");
    let name = options.node_name.as_deref().unwrap_or_default();
    Status::new(State::Joining, "", name, &options.cloud).write(&run_dir);
    let work = async {
        let options = &doctor::fill_from_runtime(options).await;
        doctor::before_join(options).await?;
        join::join(options).await.map_err(|error| rt::error_chain(&error))
    };
    match runtime()?.block_on(work) {
        Ok(joined) => {
            Status::new(State::Starting, "", &joined.node, &options.cloud).write(&run_dir);
            print(&format!(
                "node {} has joined {}; configuration in {}",
                joined.node,
                options.cloud,
                joined.config.display()
            ))
        }
        Err(line) => {
            Status::new(State::Failed, &line, name, &options.cloud).write(&run_dir);
            Err(line)
        }
    }
}

fn run_alone(options: &join::Options) -> Outcome {
    let options = &runtime()?.block_on(doctor::fill_from_runtime(options));
    let config = join::alone(options).map_err(|error| rt::error_chain(&error))?;
    print(&format!(
        "this node works without a cloud; devices go into {}; configuration in {}",
        options.root.join("etc/kinglet/devices").display(),
        config.display()
    ))
}

fn pins(dir: &std::path::Path) -> Outcome {
    let block = edgecore::device_folder::pins(dir)?;
    std::io::stdout().write_all(&block).map_err(|error| error.to_string())
}

fn run(config: &std::path::Path) -> Outcome {
    tracing::info!("{}", rt::identity_line("edgecore", VERSION));
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let drain = Drain::new();
        let agent = edgecore::run(config, drain.clone());
        let signal = async {
            rt::shutdown_signal().await;
            tracing::info!("stopping; containers go on running");
            notify::tell("STOPPING=1");
            drain.start();
            std::future::pending().await
        };
        tokio::select! {
            result = agent => result,
            never = signal => never,
        }
    });
    // Tasks that did not stop in time must not hold the process: init starts it again.
    runtime.shutdown_background();
    result.map_err(|error| rt::error_chain(&error))
}
