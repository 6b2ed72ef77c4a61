//! `mkimage`: tools, OCI archives, package lock and device images from the command line.

use anyhow::Result;

fn main() -> Result<()> {
    mkimage::cli::run()
}
