//! Starting a program: own session, own cgroup, output into a pipe. Its end is seen by the loop's `waitpid`, never by a wait of its own.

use std::io::{PipeReader, pipe};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::{mounts, sys};

/// What programs find in their environment.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/cni";

/// How the kernel chooses when memory is short: pods go first, then what can be started again at no cost.
fn oom_score_adj(name: &str) -> i16 {
    match name {
        "containerd" | "edgecore" | "line-holder" => -999,
        "mapper" => -998,
        _ => 0,
    }
}

/// Returns the process id and where its output comes; reading that never waits.
pub fn start(name: &str, program: &str, args: &[String]) -> Result<(i32, PipeReader), String> {
    let failed = |error: std::io::Error| format!("cannot start {program}: {error}");
    let (reader, writer) = pipe().map_err(failed)?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|error| failed(error.into()))?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/var/tmp")
        .env("TMPDIR", "/var/tmp")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(failed)?)
        .stderr(writer);
    spawn(name, &mut command).map(|pid| (pid, reader)).map_err(failed)
}

/// A shell on the console, in images that have one.
pub fn start_shell() -> Result<i32, String> {
    let mut command = Command::new("/usr/bin/sh");
    command.env("PATH", PATH).env("HOME", "/var/tmp").env("PS1", "# ").current_dir("/");
    spawn("shell", &mut command).map_err(|error| format!("cannot start the console shell: {error}"))
}

fn spawn(name: &str, command: &mut Command) -> std::io::Result<i32> {
    // Without cgroups the service runs in PID 1's own; that was already reported at boot.
    let cgroup = mounts::service_cgroup(name).ok().map(OwnedFd::from);
    sys::before_exec(command, cgroup, oom_score_adj(name));
    let child = command.spawn()?;
    i32::try_from(child.id()).map_err(std::io::Error::other)
}
