//! The loop: one thread, one `poll`.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::boot::{self, Started};
use super::buttons;
use super::join::{self, Attempts, Joined, Plan};
use super::logs::Log;
use super::power::End;
use super::spawn;
use crate::limits::{CLOCK_SAVE, CONTAINERD_LOOK, CONTAINERD_WITHIN, SNTP_PACE, SNTP_RETRY, TICK};
use crate::net::Net;
use crate::provision::{Network, Provision};
use crate::service::{Service, State};
use crate::status::{self, Edgecore, Problem, Status, Writer};
use crate::sys;
use crate::uevent::Uevents;
use crate::watchdog::Watchdog;
use crate::{clock, extras, name, say};

const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const LINES_SOCKET: &str = "/run/kinglet/line-holder.sock";
/// Asked when neither the provisioning file nor DHCP names a server.
const NTP_DEFAULT: &str = "pool.ntp.org";

#[derive(Debug)]
pub struct Supervisor {
    pub(super) started: Started,
    pub(super) provision: Option<Provision>,
    pub(super) node: String,
    pub(super) plan: Plan,
    pub(super) attempts: Attempts,
    pub(super) services: Vec<Service>,
    pub(super) logs: Vec<Log>,
    pub(super) net: Net,
    pub(super) buttons: Vec<File>,
    pub(super) signals: Option<SignalFd>,
    pub(super) uevents: Option<Uevents>,
    pub(super) status: Status,
    pub(super) writer: Writer,
    pub(super) edgecore: Edgecore,
    pub(super) join_problem: Option<Problem>,
    pub(super) containerd_since: Option<Instant>,
    sntp: Sntp,
    pub(super) clock_saved: Instant,
    /// A time server has answered.
    pub(super) clock_known: bool,
    pub(super) ready_since: Option<Instant>,
    pub(super) memory_lines: usize,
    pub(super) shell: Option<i32>,
    pub(super) end: Option<End>,
}

/// When the time is asked for.
#[derive(Debug)]
struct Sntp {
    pid: Option<i32>,
    next: Instant,
    wait: Duration,
}

/// What the end needs.
#[derive(Debug)]
pub struct Parts {
    pub agents: Vec<i32>,
    pub shell: Option<i32>,
    pub watchdog: Option<Watchdog>,
}

impl Supervisor {
    pub fn new(started: Started) -> Supervisor {
        let now = Instant::now();
        let joined = Joined::load();
        let provision = started.provision.clone().ok().flatten().or_else(|| started.kept.clone());
        let mut plan = join::plan(provision.as_ref(), joined.as_ref(), extras::is_any());
        let template = provision.as_ref().map_or("", |provision| provision.node_name.as_str());
        let mut join_problem = None;
        let node = match (plan, &joined) {
            (Plan::Run | Plan::BlankAndRun, Some(joined)) => joined.node.clone(),
            _ => name::render(template, &started.serial).unwrap_or_else(|mistake| {
                // A node that joined under another name than its owner meant would be hard to find.
                say!("{mistake}");
                plan = if joined.is_some() { Plan::Run } else { Plan::Unprovisioned };
                join_problem = Some(Problem { error: mistake.text(), remedy: mistake.remedy });
                match &joined {
                    Some(joined) => joined.node.clone(),
                    None => name::render("", &started.serial).unwrap_or_else(|_| "kinglet".to_owned()),
                }
            }),
        };
        boot::set_hostname(&node);
        let network: Option<Network> = provision.as_ref().and_then(|provision| provision.network.clone());
        let net = Net::new(network, &node);
        let status = Status {
            version: started.release.version.clone(),
            board: started.release.board.clone(),
            node: node.clone(),
            cloud: provision.as_ref().map(|provision| provision.cloud.clone()).unwrap_or_default(),
            ..Status::default()
        };
        Supervisor {
            provision,
            node,
            plan,
            attempts: Attempts::new(now),
            services: services(),
            logs: Vec::new(),
            net,
            buttons: buttons::open(),
            signals: open_signals(),
            uevents: Uevents::open().ok(),
            status,
            writer: Writer::default(),
            edgecore: Edgecore::default(),
            join_problem,
            containerd_since: None,
            sntp: Sntp { pid: None, next: now, wait: SNTP_RETRY },
            clock_saved: now,
            clock_known: false,
            ready_since: None,
            memory_lines: 0,
            shell: None,
            end: None,
            started,
        }
    }

    /// Runs until the power is to go off.
    pub fn run(&mut self) -> End {
        self.begin();
        let mut next_tick = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next_tick {
                self.tick(now);
                next_tick = now + TICK;
            }
            self.start_due(now);
            self.wait(next_tick.saturating_duration_since(Instant::now()));
            if let Some(end) = self.end {
                return end;
            }
        }
    }

    pub fn into_parts(self) -> Parts {
        let agents = self.services.iter().filter(|service| service.name != "containerd");
        Parts {
            agents: agents.filter_map(Service::pid).collect(),
            shell: self.shell,
            watchdog: self.started.watchdog,
        }
    }

    fn begin(&mut self) {
        // Devices behind a bus whose driver was only just loaded (USB, PCIe) came after the first look and before news of them was
        // listened to.
        for problem in self.started.modules.load_for_devices() {
            say!("{problem}");
        }
        self.grow_data();
        say!("node {}, boot number {}", self.node, self.started.boot_number);
        let now = Instant::now();
        for service in self.services.iter_mut().filter(|service| service.name != "edgecore") {
            service.release(now);
        }
        match self.plan {
            Plan::Join => {
                if Joined::load().is_some() {
                    self.release("edgecore");
                }
            }
            Plan::Run => self.release("edgecore"),
            Plan::BlankAndRun => {
                self.blank();
                self.release("edgecore");
            }
            Plan::Alone => match self.begin_alone() {
                Ok(()) => self.release("edgecore"),
                Err(error) => {
                    say!("alone: {error}");
                    let remedy = "correct the name in provision.toml, or remove that file".to_owned();
                    self.join_problem = Some(Problem { error, remedy });
                }
            },
            Plan::Unprovisioned => {
                say!(
                    "not joined: fill in provision.toml on the boot partition (provision-example.toml shows how)"
                );
                let token_missing =
                    matches!(&self.started.provision, Ok(Some(provision)) if !provision.cloud.is_empty());
                self.join_problem.get_or_insert_with(|| Problem {
                    error: if token_missing {
                        "provision.toml has no token".to_owned()
                    } else {
                        "this device has not been told which cloud to join".to_owned()
                    },
                    remedy: if token_missing {
                        "write token = \"...\" with the output of `cloudcore token` and boot again".to_owned()
                    } else {
                        "fill in provision.toml on this partition, as provision-example.toml shows, and boot again".to_owned()
                    },
                });
            }
        }
    }

    /// Writes the agent's configuration; it takes as long as starting a program.
    fn begin_alone(&self) -> Result<(), String> {
        const EDGECORE: &str = "/usr/bin/edgecore";
        let arguments = join::arguments_alone(self.provision.as_ref(), &self.node);
        match std::process::Command::new(EDGECORE).args(arguments).output() {
            Ok(done) if done.status.success() => Ok(()),
            Ok(done) => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
            Err(error) => Err(format!("cannot run {EDGECORE}: {error}")),
        }
    }

    fn grow_data(&mut self) {
        let Some(disk) = self.started.disk.as_ref().filter(|_| self.started.has_data) else { return };
        let args = ["grow".to_owned(), disk.partition(4).display().to_string()];
        match spawn::start("grow", "/proc/self/exe", &args) {
            Ok((pid, pipe)) => self.logs.push(Log::new("grow", pid, pipe)),
            Err(problem) => say!("{problem}"),
        }
    }

    pub(super) fn release(&mut self, name: &str) {
        let now = Instant::now();
        self.services
            .iter_mut()
            .filter(|service| service.name == name)
            .for_each(|service| service.release(now));
    }

    fn tick(&mut self, now: Instant) {
        if let Some(watchdog) = &mut self.started.watchdog {
            watchdog.feed();
        }
        self.net.tick(now);
        self.watch_containerd(now);
        self.try_join(now);
        self.ask_time(now);
        self.watch_edgecore(now);
        self.print_memory(now);
        self.write_status(now);
        if self.started.release.dev && self.shell.is_none() {
            self.shell = spawn::start_shell().ok();
        }
        if now.saturating_duration_since(self.clock_saved) >= CLOCK_SAVE {
            clock::save();
            self.clock_saved = now;
        }
    }

    fn start_due(&mut self, now: Instant) {
        if !self.services.iter().any(|service| service.is_due(now)) {
            return;
        }
        self.watch_containerd(now);
        for service in self.services.iter_mut().filter(|service| service.is_due(now)) {
            let is_starting = |since: Instant| now.saturating_duration_since(since) < CONTAINERD_WITHIN;
            if service.name == "edgecore" && self.containerd_since.is_some_and(is_starting) {
                // Started now, it would only report that its runtime is not there yet.
                service.state = State::Due(now + CONTAINERD_LOOK);
                continue;
            }
            if !std::path::Path::new(service.program).exists() {
                say!("{}: there is no {} in this image", service.name, service.program);
                service.state = State::Missing;
                continue;
            }
            match spawn::start(service.name, service.program, &service.args) {
                Ok((pid, pipe)) => {
                    service.started(pid, now);
                    self.logs.push(Log::new(service.name, pid, pipe));
                    let realtime = self.provision.as_ref().is_some_and(|provision| provision.realtime);
                    if realtime
                        && REALTIME.contains(&service.name)
                        && let Err(error) = sys::set_realtime(pid, REALTIME_PRIORITY)
                    {
                        say!("{}: no real-time priority: {error}", service.name);
                    }
                    if service.name == "containerd" {
                        self.containerd_since = Some(now);
                    }
                }
                Err(problem) => {
                    say!("{problem}");
                    service.ended(now);
                    service.problem = problem;
                }
            }
        }
    }

    fn wait(&mut self, timeout: Duration) {
        let now = Instant::now();
        let soonest = self
            .services
            .iter()
            .filter_map(|service| match service.state {
                State::Due(at) => Some(at.saturating_duration_since(now)),
                _ => None,
            })
            .fold(timeout, Duration::min);
        let timeout = PollTimeout::try_from(soonest + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        let signals = self.signals.as_ref().map(|signals| signals.as_fd());
        fds.extend(signals);
        fds.extend(self.uevents.as_ref().map(Uevents::fd));
        fds.extend(self.net.fd());
        fds.extend(self.buttons.iter().map(AsFd::as_fd));
        fds.extend(self.logs.iter().filter(|log| !log.is_closed).map(Log::fd));
        let mut polled: Vec<PollFd<'_>> =
            fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if poll(&mut polled, timeout).is_err() {
            return;
        }
        let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(polled);
        self.handle(&ready);
    }

    /// `ready` is in the order in which `wait` listed the descriptors.
    fn handle(&mut self, ready: &[bool]) {
        let mut ready = ready.iter().copied();
        let mut next = || ready.next().unwrap_or(false);
        let signalled = self.signals.is_some() && next();
        let plugged = self.uevents.is_some() && next();
        let packet = self.net.fd().is_some() && next();
        let pressed = self.buttons.iter().map(|_| next()).collect::<Vec<_>>();
        let printed = self.logs.iter().map(|log| !log.is_closed && next()).collect::<Vec<_>>();
        if plugged {
            self.load_drivers();
        }
        if packet {
            self.net.receive(Instant::now());
        }
        for (log, _) in self.logs.iter_mut().zip(printed).filter(|(_, printed)| *printed) {
            log.take();
        }
        for (button, _) in self.buttons.iter_mut().zip(pressed).filter(|(_, pressed)| *pressed) {
            if buttons::power_pressed(button) {
                say!("power button pressed");
                self.end = Some(End::PowerOff);
            }
        }
        if signalled {
            self.take_signals();
        }
        self.reap();
    }

    /// For devices that appeared while the system runs.
    fn load_drivers(&mut self) {
        let Some(uevents) = &self.uevents else { return };
        for alias in uevents.take() {
            for problem in self.started.modules.load_for(&alias) {
                say!("{problem}");
            }
        }
    }

    fn take_signals(&mut self) {
        let Some(signals) = &self.signals else { return };
        while let Ok(Some(info)) = signals.read_signal() {
            match Signal::try_from(info.ssi_signo as i32) {
                // Ctrl-Alt-Del, and busybox's reboot.
                Ok(Signal::SIGINT | Signal::SIGTERM) => self.end = Some(End::Reboot),
                // Busybox's halt and poweroff, and a supply that is about to fail.
                Ok(Signal::SIGUSR1 | Signal::SIGUSR2 | Signal::SIGPWR) => self.end = Some(End::PowerOff),
                _ => {}
            }
        }
    }

    fn reap(&mut self) {
        loop {
            let (pid, how) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), format!("exit code {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), format!("signal {signal}")),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            self.ended(pid, &how);
        }
    }

    /// A child is gone; most are orphans of containers and of no interest.
    fn ended(&mut self, pid: i32, how: &str) {
        let now = Instant::now();
        let said = self.last_words(pid);
        if self.attempts.pid == Some(pid) {
            self.join_ended(now, how == "exit code 0", &said);
        } else if self.sntp.pid == Some(pid) {
            self.time_answered(now, how == "exit code 0");
        } else if self.shell == Some(pid) {
            self.shell = None;
        } else if let Some(service) = self.services.iter_mut().find(|service| service.pid() == Some(pid)) {
            let wait = service.ended(now);
            let said = if said.is_empty() { String::new() } else { format!(": {said}") };
            service.problem = format!("{} ended ({how}){said}", service.name);
            say!("{}; starting it again in {} ms", service.problem, wait.as_millis());
            if service.name == "edgecore" {
                // What it wrote about itself is no longer so.
                let _ = std::fs::remove_file(status::EDGECORE);
            }
        }
    }

    /// Takes leave of a process that has ended; what it said last may still be in the pipe.
    fn last_words(&mut self, pid: i32) -> String {
        let Some(at) = self.logs.iter().position(|log| log.pid == pid) else { return String::new() };
        let mut log = self.logs.swap_remove(at);
        log.take();
        log.last_words().to_owned()
    }

    fn time_answered(&mut self, now: Instant, knows: bool) {
        self.sntp.pid = None;
        self.sntp.wait = if knows { SNTP_PACE } else { (self.sntp.wait * 2).min(SNTP_PACE) };
        self.sntp.next = now + if knows { SNTP_PACE } else { self.sntp.wait / 2 };
        if knows {
            clock::save();
            if !std::mem::replace(&mut self.clock_known, true) {
                // Certificates that were not valid yet may be so now.
                self.attempts.hurry(now);
            }
        }
    }

    fn watch_containerd(&mut self, now: Instant) {
        if let Some(since) = self.containerd_since
            && UnixStream::connect(CONTAINERD_SOCKET).is_ok()
        {
            say!("containerd ready after {:.1} s", now.saturating_duration_since(since).as_secs_f64());
            self.containerd_since = None;
        }
    }

    fn ask_time(&mut self, now: Instant) {
        if self.sntp.pid.is_some() || now < self.sntp.next || self.net.address.is_none() {
            return;
        }
        let mut args = vec!["sntp".to_owned(), self.started.clock_floor.to_string()];
        let given = self
            .provision
            .as_ref()
            .map(|provision| provision.ntp.clone())
            .filter(|servers| !servers.is_empty());
        args.extend(given.unwrap_or_else(|| {
            if self.net.ntp.is_empty() { vec![NTP_DEFAULT.to_owned()] } else { self.net.ntp.clone() }
        }));
        match spawn::start("sntp", "/proc/self/exe", &args) {
            Ok((pid, pipe)) => {
                self.sntp.pid = Some(pid);
                self.logs.push(Log::new("sntp", pid, pipe));
            }
            Err(problem) => {
                say!("{problem}");
                self.sntp.next = now + SNTP_PACE;
            }
        }
    }
}

/// What is between a line and a message.
const REALTIME: [&str; 3] = ["line-holder", "edgecore", "mapper"];
/// Below the kernel's interrupt threads (50).
const REALTIME_PRIORITY: i32 = 30;

fn services() -> Vec<Service> {
    vec![
        // edgecore moves databases aside that a power cut damaged, and then becomes containerd.
        Service::new(
            "containerd",
            "/usr/bin/edgecore",
            &[
                "runtime",
                "start",
                "/var/lib/containerd",
                "/usr/bin/containerd",
                "--config",
                "/etc/containerd/config.toml",
                "--log-level",
                "warn",
            ],
        ),
        Service::new(
            "line-holder",
            "/usr/bin/mapper",
            &["hold-lines", "--socket", LINES_SOCKET, "--counts", "/var/lib/kinglet/counts"],
        ),
        Service::new("edgecore", "/usr/bin/edgecore", &[]),
        Service::new("mapper", "/usr/bin/mapper", &["--lines-socket", LINES_SOCKET]),
    ]
}

fn open_signals() -> Option<SignalFd> {
    let mut set = SigSet::empty();
    for signal in
        [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPWR]
    {
        set.add(signal);
    }
    set.thread_block().ok()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).ok()
}
