//! Pins without wires: the conformance suite of GPIO chips and the benchmark from message to pin.
//!
//!     lines bench BROKER_PROGRAM       figures as JSON lines; the lines are in memory, and gpio-sim's where this kernel has it
//!     lines conformance [MODULES]      the suite on gpio-sim; MODULES is a folder with `modules.map`, from which it is loaded
//!     as PID 1                        the suite with the modules in /modules, then power off (`e2e::pins`)

mod bench;
mod boot;
mod conformance;
mod loopback;
mod sim;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        boot::run();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["bench", broker] => bench::run(broker),
        ["conformance"] => on_sim(None),
        ["conformance", modules] => on_sim(Some(modules)),
        _ => Err("lines bench BROKER_PROGRAM, or lines conformance [MODULES]".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("lines: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One line for each row, and a last one with the verdict.
fn on_sim(modules: Option<&str>) -> Result<(), String> {
    let mut sim = sim::Sim::make(modules)?;
    let mut failed = 0;
    for (name, row) in conformance::ROWS {
        let result = row(&mut mapper::gpio::linux::KernelChips, &mut sim);
        match &result {
            Ok(()) => println!("lines: ok {name}"),
            Err(error) => println!("lines: FAILED {name}: {error}"),
        }
        failed += u32::from(result.is_err());
    }
    println!("lines: {} rows on gpio-sim, {failed} failed", conformance::ROWS.len());
    if failed > 0 { Err("the kernel's chip does not conform".into()) } else { Ok(()) }
}
