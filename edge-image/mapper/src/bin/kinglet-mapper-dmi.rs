//! The mapper that can also run at an edgecore's DMI socket.

fn main() -> std::process::ExitCode {
    mapper::cli::main()
}
