//! The part of `protoc` that `prost-build` calls: compile .proto files to a descriptor set.
//!
//! It exists so that `cargo build` needs nothing but a Rust toolchain and a C compiler. Arguments it takes are the
//! ones prost-build 0.14 passes: `--include_imports --include_source_info -o OUT -I DIR ... FILE ...`.

use std::path::PathBuf;

use prost::Message;

fn main() {
    if let Err(error) = run(std::env::args().skip(1)) {
        eprintln!("protoc: {error}");
        std::process::exit(1);
    }
}

fn run(args: impl Iterator<Item = String>) -> Result<(), String> {
    let (mut out, mut includes, mut files) = (None, Vec::<PathBuf>::new(), Vec::<PathBuf>::new());
    let mut args = args;
    while let Some(arg) = args.next() {
        let mut value = |name: &str| args.next().ok_or(format!("{name} needs a value"));
        match arg.as_str() {
            "--version" => return Ok(println!("libprotoc 31.0")),
            "--include_imports" | "--include_source_info" | "--experimental_allow_proto3_optional" => {}
            "-o" => out = Some(PathBuf::from(value("-o")?)),
            "-I" => includes.push(value("-I")?.into()),
            _ => match (arg.strip_prefix("--descriptor_set_out="), arg.strip_prefix("-I")) {
                (Some(path), _) => out = Some(path.into()),
                (_, Some(dir)) => includes.push(dir.into()),
                _ if arg.starts_with('-') => return Err(format!("unknown option {arg}")),
                _ => files.push(arg.into()),
            },
        }
    }
    let out = out.ok_or("no output: give -o FILE")?;
    let mut compiler = protox::Compiler::new(includes).map_err(|e| e.to_string())?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(files).map_err(|e| format!("{e:?}"))?;
    let set = compiler.file_descriptor_set().encode_to_vec();
    std::fs::write(&out, set).map_err(|e| format!("{}: {e}", out.display()))
}
