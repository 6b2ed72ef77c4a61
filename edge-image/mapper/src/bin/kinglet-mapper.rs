//! The mapper program for a laptop: the same, with the library of models and the boards' headers in it.

fn main() -> std::process::ExitCode {
    mapper::cli::main()
}
