//! The program: command line, log, runtime, start, wait, drain.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use cloudcore::cli::{Cli, Command, ConfigCommand, Node, Run};
use cloudcore::config::Config;
use cloudcore::{admin, settings, start};

/// How long links and requests may take to end.
const DRAIN_TIME: Duration = Duration::from_secs(8);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        None => run(&cli.run),
        Some(Command::Preflight(options)) => admin::preflight(options),
        Some(Command::Crds) => {
            print!("{}", admin::crds());
            Ok(())
        }
        Some(Command::Token(token)) => admin::token(token),
        Some(Command::Node(Node::Reset { name, data_dir })) => admin::reset_node(data_dir, name),
        Some(Command::Revoke(revoke)) => admin::revoke(revoke),
        Some(Command::Unrevoke { name, data_dir }) => admin::unrevoke(data_dir, name),
        Some(Command::Ca(ca)) => admin::ca(ca),
        Some(Command::Config(ConfigCommand::Check { file })) => admin::check_config(file),
        Some(Command::Config(ConfigCommand::Keys)) => {
            admin::print_keys();
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloudcore: {}", rt::error_chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Run) -> anyhow::Result<()> {
    rt::log::init(&options.log)?;
    tracing::info!("{}", rt::identity_line("cloudcore", env!("CARGO_PKG_VERSION")));
    let loaded = options.config.as_deref().map(Config::load).transpose()?.unwrap_or_default();
    for unknown in &loaded.unknown {
        tracing::warn!("configuration: {unknown}");
    }
    let settings = settings(loaded.config, options);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(async {
        let running = start(settings).await?;
        let drain = running.drain().clone();
        let wait = running.wait(DRAIN_TIME);
        tokio::pin!(wait);
        tokio::select! {
            ended = &mut wait => return ended,
            signal = rt::shutdown_signal() => tracing::info!("{signal}: stopping"),
        }
        drain.start();
        wait.await
    })
}
