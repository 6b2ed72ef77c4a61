//! The bus's broker alone, for the conformance suite and the benchmark (`tests/mqtt`): nothing of the agent runs beside it.
//!
//!     broker --listen tcp://127.0.0.1:1883 [--user NAME:PASSWORD] [--connections N]

use anyhow::{Context, bail};
use edgecore::bus::broker;
use mqtt::broker::{Auth, Limits};

pub fn main() -> anyhow::Result<()> {
    let mut listen = None;
    let mut auth = Auth::default();
    let mut limits = Limits { connections_max: 2000, ..Limits::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(key) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{key} needs a value"))?;
        match key.as_str() {
            "--listen" => {
                let address = value.strip_prefix("tcp://").context("--listen tcp://ADDRESS:PORT")?;
                listen = Some(address.parse().context("--listen")?);
            }
            "--user" => {
                let (name, password) = value.split_once(':').context("--user NAME:PASSWORD")?;
                auth.users.insert(name.into(), password.into());
            }
            "--connections" => limits.connections_max = value.parse().context("--connections")?,
            other => bail!("unknown argument {other}"),
        }
    }
    let listen = listen.context("--listen tcp://ADDRESS:PORT is missing")?;
    rt::log::init("info")?;
    rt::runtime()?.block_on(async {
        let drain = rt::Drain::new();
        let _broker = broker::start(listen, auth, limits, drain.clone());
        rt::shutdown_signal().await;
        drain.start();
        Ok(())
    })
}
