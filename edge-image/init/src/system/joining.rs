//! Running `edgecore join` by the rules in [`super::join`].

use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::boot::blank_token;
use super::join::{self, Joined, Plan};
use super::logs::Log;
use super::spawn;
use super::supervisor::Supervisor;
use crate::say;
use crate::service::Service;
use crate::status::Problem;

impl Supervisor {
    pub(super) fn try_join(&mut self, now: Instant) {
        if self.plan != Plan::Join || self.net.address.is_none() || !self.attempts.is_due(now) {
            return;
        }
        let Some(provision) = &self.provision else { return };
        match spawn::start("join", "/usr/bin/edgecore", &join::arguments(provision, &self.node)) {
            Ok((pid, pipe)) => {
                say!("joining {} as {}", provision.cloud, self.node);
                self.attempts.pid = Some(pid);
                self.logs.push(Log::new("join", pid, pipe));
            }
            Err(problem) => {
                let wait = self.attempts.failed(now);
                say!("{problem}; next try in {} s", wait.as_secs());
                self.join_problem = Some(Problem {
                    error: problem,
                    remedy: "this image holds no edgecore: build it with one".to_owned(),
                });
            }
        }
    }

    pub(super) fn join_ended(&mut self, now: Instant, succeeded: bool, said: &str) {
        if !succeeded {
            let wait = self.attempts.failed(now);
            let error = if said.is_empty() { "edgecore join failed without a word" } else { said };
            say!("join failed: {error}; next try in {} s", wait.as_secs());
            self.join_problem = Some(join_problem(error));
            return;
        }
        let token_hash = self.provision.as_ref().map_or(0, |provision| join::hash(&provision.token));
        // The marker first: a power cut in between must not use the token twice.
        if let Err(error) = (Joined { node: self.node.clone(), token_hash }).save() {
            say!("cannot remember that this node has joined: {error}");
        }
        say!("joined as {}", self.node);
        self.plan = Plan::Run;
        self.attempts.pid = None;
        self.join_problem = None;
        self.blank();
        match self.services.iter().find(|service| service.name == "edgecore").and_then(Service::pid) {
            // It runs with what the join before this one wrote.
            Some(pid) => drop(kill(Pid::from_raw(pid), Signal::SIGTERM)),
            None => self.release("edgecore"),
        }
    }

    pub(super) fn blank(&mut self) {
        let Some(disk) = &self.started.disk else { return };
        match blank_token(disk) {
            Ok(()) => say!("the join token on the boot partition is blanked"),
            Err(error) => say!("cannot blank the join token: {error}"),
        }
    }
}

/// Error lines of edgecore read `what; remedy` or `what: why (remedy)`; whatever it is, the whole line is shown.
fn join_problem(line: &str) -> Problem {
    match line.rsplit_once("; ") {
        Some((error, remedy)) => Problem { error: error.to_owned(), remedy: remedy.to_owned() },
        None => Problem {
            error: line.to_owned(),
            remedy: "check cloud and token in provision.toml; a new token comes from `cloudcore token`"
                .to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_line_always_comes_with_a_remedy() {
        let split = join_problem("the token has expired; make a new one");
        assert_eq!(
            (split.error.as_str(), split.remedy.as_str()),
            ("the token has expired", "make a new one")
        );
        assert!(join_problem("no route to host").remedy.contains("cloudcore token"));
    }
}
