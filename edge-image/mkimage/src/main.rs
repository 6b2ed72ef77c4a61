//! `mkimage`: tools, OCI archives, package lock and device images from the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    match mkimage::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain on one line, without a backtrace: these are a person's mistakes or a mirror's.
            eprintln!("mkimage: {error:#}");
            ExitCode::FAILURE
        }
    }
}
