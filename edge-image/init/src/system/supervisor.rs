//! The loop: one thread, one `poll`.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::boot::{self, Started, blank_token};
use super::join::{self, Attempts, Joined, Plan};
use super::logs::Log;
use super::power::End;
use super::spawn;
use crate::limits::{CLOCK_SAVE, SNTP_PACE, SNTP_RETRY, STATUS_WRITE_MIN, TICK};
use crate::net::Net;
use crate::provision::{Network, Provision, node_name};
use crate::service::{Service, State};
use crate::status::{self, Edgecore, Problem, Status};
use crate::watchdog::Watchdog;
use crate::{clock, say};

const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const LINES_SOCKET: &str = "/run/kinglet/line-holder.sock";
/// Asked when neither the provisioning file nor DHCP names a server.
const NTP_DEFAULT: &str = "pool.ntp.org";
/// Seconds after the node became Ready at which memory use is printed, and the pace from then on.
const MEMORY_LINES: [u64; 3] = [0, 10, 60];
const MEMORY_PACE: u64 = 600;

#[derive(Debug)]
pub struct Supervisor {
    started: Started,
    provision: Option<Provision>,
    node: String,
    plan: Plan,
    attempts: Attempts,
    services: Vec<Service>,
    logs: Vec<Log>,
    net: Net,
    buttons: Vec<File>,
    signals: Option<SignalFd>,
    status: Status,
    written: Option<(Status, Instant)>,
    edgecore: Edgecore,
    join_problem: Option<Problem>,
    containerd_since: Option<Instant>,
    sntp: Sntp,
    clock_saved: Instant,
    ready_since: Option<Instant>,
    memory_lines: usize,
    shell: Option<i32>,
    end: Option<End>,
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
    pub watchdog: Option<Watchdog>,
}

impl Supervisor {
    pub fn new(started: Started) -> Supervisor {
        let now = Instant::now();
        let joined = Joined::load();
        let provision = started.provision.clone().ok();
        let plan = join::plan(provision.as_ref(), joined.as_ref());
        let template = provision.as_ref().map_or("", |provision| provision.node_name.as_str());
        let mut join_problem = None;
        let node = match (plan, &joined) {
            (Plan::Run | Plan::BlankAndRun, Some(joined)) => joined.node.clone(),
            _ => node_name(template, &started.serial).unwrap_or_else(|mistake| {
                say!("{mistake}");
                join_problem = Some(Problem { error: mistake.what, remedy: mistake.remedy });
                node_name("", &started.serial).unwrap_or_else(|_| "kinglet".to_owned())
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
            buttons: open_buttons(),
            signals: open_signals(),
            status,
            written: None,
            edgecore: Edgecore::default(),
            join_problem,
            containerd_since: None,
            sntp: Sntp { pid: None, next: now, wait: SNTP_RETRY },
            clock_saved: now,
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
        let agents = self
            .services
            .iter()
            .filter(|service| service.name != "containerd")
            .filter_map(Service::pid)
            .collect();
        Parts { agents, watchdog: self.started.watchdog }
    }

    fn begin(&mut self) {
        say!("node {}, boot number {}", self.node, self.started.boot_number);
        let now = Instant::now();
        for service in self.services.iter_mut().filter(|service| service.name != "edgecore") {
            service.release(now);
        }
        match self.plan {
            Plan::Join => {
                if join::plan(None, Joined::load().as_ref()) == Plan::Run {
                    self.release("edgecore");
                }
            }
            Plan::Run => self.release("edgecore"),
            Plan::BlankAndRun => {
                self.blank();
                self.release("edgecore");
            }
            Plan::Unprovisioned => {
                say!(
                    "not joined: fill in provision.toml on the boot partition (provision-example.toml shows how)"
                );
                self.join_problem.get_or_insert_with(|| Problem {
                    error: "this device has not been told which cloud to join".to_owned(),
                    remedy: "fill in provision.toml on this partition, as provision-example.toml shows, and boot again".to_owned(),
                });
            }
        }
    }

    fn release(&mut self, name: &str) {
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
        for service in self.services.iter_mut().filter(|service| service.is_due(now)) {
            if !std::path::Path::new(service.program).exists() {
                say!("{}: there is no {} in this image", service.name, service.program);
                service.state = State::Missing;
                continue;
            }
            match spawn::start(service.name, service.program, &service.args) {
                Ok((pid, pipe)) => {
                    service.started(pid, now);
                    self.logs.retain(|log| log.name != service.name);
                    self.logs.push(Log::new(service.name, pipe));
                    if service.name == "containerd" {
                        self.containerd_since = Some(now);
                    }
                }
                Err(problem) => {
                    say!("{problem}");
                    service.ended(now);
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
        fds.extend(self.net.fd());
        fds.extend(self.buttons.iter().map(AsFd::as_fd));
        fds.extend(self.logs.iter().map(Log::fd));
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
        let packet = self.net.fd().is_some() && next();
        let pressed = self.buttons.iter().map(|_| next()).collect::<Vec<_>>();
        let printed = self.logs.iter().map(|_| next()).collect::<Vec<_>>();
        if packet {
            self.net.receive(Instant::now());
        }
        let mut keep = printed.into_iter();
        self.logs.retain_mut(|log| !keep.next().unwrap_or(false) || log.take());
        for (button, _) in self.buttons.iter_mut().zip(pressed).filter(|(_, pressed)| *pressed) {
            if is_power_key(button) {
                say!("power button pressed");
                self.end = Some(End::PowerOff);
            }
        }
        if signalled {
            self.take_signals();
        }
        self.reap();
    }

    fn take_signals(&mut self) {
        let Some(signals) = &self.signals else { return };
        while let Ok(Some(info)) = signals.read_signal() {
            match Signal::try_from(info.ssi_signo as i32) {
                Ok(Signal::SIGINT | Signal::SIGTERM) => self.end = Some(End::Reboot),
                Ok(Signal::SIGUSR2) => self.end = Some(End::PowerOff),
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
        if self.attempts.pid == Some(pid) {
            self.join_ended(now, how == "exit code 0");
        } else if self.sntp.pid == Some(pid) {
            self.sntp.pid = None;
            let knows = how == "exit code 0";
            self.sntp.wait = if knows { SNTP_PACE } else { (self.sntp.wait * 2).min(SNTP_PACE) };
            self.sntp.next = now + if knows { SNTP_PACE } else { self.sntp.wait / 2 };
            if knows {
                clock::save();
            }
        } else if self.shell == Some(pid) {
            self.shell = None;
        } else if let Some(service) = self.services.iter_mut().find(|service| service.pid() == Some(pid)) {
            let wait = service.ended(now);
            let last =
                self.logs.iter().find(|log| log.name == service.name).map_or("", |log| log.last.as_str());
            let said = if last.is_empty() { String::new() } else { format!(" (its last line: {last})") };
            say!("{} ended: {how}{said}; starting it again in {} ms", service.name, wait.as_millis());
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

    fn try_join(&mut self, now: Instant) {
        if self.plan != Plan::Join || self.net.address.is_none() || !self.attempts.is_due(now) {
            return;
        }
        let Some(provision) = &self.provision else { return };
        match spawn::start("join", "/usr/bin/edgecore", &join::arguments(provision, &self.node)) {
            Ok((pid, pipe)) => {
                say!("joining {} as {}", provision.cloud, self.node);
                self.attempts.pid = Some(pid);
                self.logs.retain(|log| log.name != "join");
                self.logs.push(Log::new("join", pipe));
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

    fn join_ended(&mut self, now: Instant, succeeded: bool) {
        // What it said last may still be in the pipe.
        let mut last = String::new();
        if let Some(at) = self.logs.iter().position(|log| log.name == "join") {
            let mut log = self.logs.swap_remove(at);
            while log.take() {}
            last = log.last;
        }
        if !succeeded {
            let wait = self.attempts.failed(now);
            let error = if last.is_empty() { "edgecore join failed without a word".to_owned() } else { last };
            say!("join failed: {error}; next try in {} s", wait.as_secs());
            self.join_problem = Some(join_problem(&error));
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
            Some(pid) => drop(nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGTERM)),
            None => self.release("edgecore"),
        }
    }

    fn blank(&mut self) {
        let Some(disk) = &self.started.disk else { return };
        match blank_token(disk) {
            Ok(()) => say!("the join token on the boot partition is blanked"),
            Err(error) => say!("cannot blank the join token: {error}"),
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
                self.logs.retain(|log| log.name != "sntp");
                self.logs.push(Log::new("sntp", pipe));
            }
            Err(problem) => {
                say!("{problem}");
                self.sntp.next = now + SNTP_PACE;
            }
        }
    }

    fn watch_edgecore(&mut self, now: Instant) {
        let Some(read) = Edgecore::load() else { return };
        if read == self.edgecore {
            return;
        }
        let because =
            if read.error.is_empty() { String::new() } else { format!(": {} ({})", read.error, read.remedy) };
        say!("node {}: {}{because}", if read.node.is_empty() { &self.node } else { &read.node }, read.state);
        if read.state == "Ready" {
            self.ready_since.get_or_insert(now);
        }
        self.edgecore = read;
    }

    /// One line that tests and people read: what each program holds, when the node became Ready and from then on.
    fn print_memory(&mut self, now: Instant) {
        let Some(since) = self.ready_since else { return };
        let due = MEMORY_LINES.get(self.memory_lines).copied();
        let due = due.unwrap_or_else(|| MEMORY_PACE * (self.memory_lines + 1 - MEMORY_LINES.len()) as u64);
        if now.saturating_duration_since(since).as_secs() < due {
            return;
        }
        self.memory_lines += 1;
        let own =
            self.services.iter().map(|service| (service.name, service.pid())).chain([("init", Some(1))]);
        let text: String =
            own.filter_map(|(name, pid)| Some(format!(" {name}={}", resident_kb(pid?)?))).collect();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let field = |key: &str| fields(&meminfo, key).unwrap_or(0);
        say!("memory kB{text} available={} total={}", field("MemAvailable:"), field("MemTotal:"));
    }

    fn write_status(&mut self, now: Instant) {
        self.status.address = self.net.address.clone().unwrap_or_default();
        let edgecore_problem = Some(&self.edgecore)
            .filter(|read| !read.error.is_empty())
            .map(|read| Problem { error: read.error.clone(), remedy: read.remedy.clone() });
        let mistake = self
            .started
            .provision
            .as_ref()
            .err()
            .map(|mistake| Problem { error: mistake.what.clone(), remedy: mistake.remedy.clone() });
        let missing =
            self.services.iter().find(|service| service.state == State::Missing).map(|service| Problem {
                error: format!("there is no {} in this image", service.program),
                remedy: "build the image with it, or write a released image".to_owned(),
            });
        self.status.problem = mistake
            .or(self.join_problem.clone())
            .or(missing)
            .or(edgecore_problem)
            .or(self.started.problem.clone());
        self.status.state = match self.plan {
            Plan::Join => "Joining".to_owned(),
            Plan::Unprovisioned => "NotProvisioned".to_owned(),
            _ if self.edgecore.state.is_empty() => "Starting".to_owned(),
            _ => self.edgecore.state.clone(),
        };
        let due = match &self.written {
            None => true,
            Some((status, at)) => {
                *status != self.status && now.saturating_duration_since(*at) >= STATUS_WRITE_MIN
            }
        };
        // The first file waits for the network, or for a reason why there is none.
        let early = self.written.is_none()
            && self.status.address.is_empty()
            && clock::uptime() < Duration::from_secs(30)
            && self.status.problem.is_none();
        let Some(disk) = self.started.disk.as_ref().filter(|_| due && !early) else { return };
        let text = self.status.render(self.started.boot_number, clock::now());
        if let Err(error) =
            boot::with_boot_partition(disk, true, |dir| fs::write(dir.join(status::FILE), text))
        {
            say!("cannot write {}: {error}", status::FILE);
        }
        self.written = Some((self.status.clone(), now));
    }
}

fn services() -> Vec<Service> {
    vec![
        Service::new(
            "containerd",
            "/usr/bin/containerd",
            &["--config", "/etc/containerd/config.toml", "--log-level", "warn"],
        ),
        Service::new("line-holder", "/usr/bin/mapper", &["hold-lines", "--socket", LINES_SOCKET]),
        Service::new("edgecore", "/usr/bin/edgecore", &[]),
        Service::new("mapper", "/usr/bin/mapper", &["--lines-socket", LINES_SOCKET]),
    ]
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

fn open_signals() -> Option<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR2] {
        set.add(signal);
    }
    set.thread_block().ok()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).ok()
}

/// Input devices; boards without a power button have none.
fn open_buttons() -> Vec<File> {
    let Ok(entries) = fs::read_dir("/dev/input") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("event"))
        .filter_map(|entry| {
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(entry.path()).ok()
        })
        .collect()
}

/// Whether one of the events waiting is the power key going down.
fn is_power_key(device: &mut File) -> bool {
    const EVENT_BYTES: usize = 24;
    const KEY: u16 = 1;
    const POWER: u16 = 116;
    let mut events = [0; EVENT_BYTES * 16];
    let n = device.read(&mut events).unwrap_or(0);
    events[..n].chunks_exact(EVENT_BYTES).any(|event| {
        let word = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
        word(16) == KEY && word(18) == POWER && word(20) == 1
    })
}

fn resident_kb(pid: i32) -> Option<u64> {
    fields(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:")
}

/// The number after `key` in a file of `Key: number kB` lines.
fn fields(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
}
