//! The mapper program of a node.

fn main() -> std::process::ExitCode {
    mapper::cli::main()
}
