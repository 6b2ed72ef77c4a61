//! How the device's build is linked (`link/`): only that one, so that tests and debugging have all they are used to.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    let is = |variable: &str, value: &str| std::env::var(variable).is_ok_and(|found| found == value);
    // The profile `device` is the only one that is optimised for size, and it aborts at a panic: unwinding needs what is left out.
    // The scripts and folding are lld's; what another linker makes (of `cross`, say) only is larger.
    let lld = std::env::var("RUSTC_LINKER").is_ok_and(|linker| linker.ends_with("lld"));
    if lld && is("OPT_LEVEL", "z") && is("CARGO_CFG_TARGET_ENV", "musl") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        for argument in [format!("-T{folder}/link/device.ld"), format!("-T{folder}/link/cold.ld")] {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
        // Functions that came out alike are one. Ours compare no addresses of functions.
        println!("cargo::rustc-link-arg-bins=--icf=all");
    }
}
