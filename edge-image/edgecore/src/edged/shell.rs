//! The loop around `manager`: feeds it what meta and the runtime say, and carries out what it decides.
//!
//! One task; steps, observations and the event stream are futures in one set, so nothing is spawned and nothing is shared.
//! A step that is dropped with the process is decided anew after the start.

mod archives;
mod doorman;
mod logs;
mod pods;
mod pressure;
mod probes;
mod runtime;
mod statics;
mod upkeep;

use std::{
    collections::BTreeMap,
    future::pending,
    net::UdpSocket,
    sync::Arc,
    time::{Duration, Instant},
};

use containerd_client::types::Envelope;
use futures_util::{StreamExt, stream::FuturesUnordered};
use rt::Drain;
use tokio::{sync::oneshot, time::sleep_until};
use tonic::{Streaming, transport::Channel};

use super::{
    Settings,
    cri::{self, Cri, CriError, adopted::Book},
    execute::{Arrival, Executor, Job},
    images::{Images, RuntimeFacts, suspects::Suspects},
    limits,
    logs::Keeper,
    manager::{Action, Input, Manager, Wanted},
    node_side::NodeSide,
    observe::{Look, Observer},
    pressure::{machine::Machine as PressureMachine, watch as pressure_watch},
    probe::{self, Memory, machine::Ticket as ProbeTicket},
    status::NodeFacts,
    unix_ms,
    worker::{Now, Ticket, Work, WorkError},
};
use doorman::{Doorman, GateNews};
pub use runtime::runtime_facts;
use statics::Statics;

use crate::{
    contract::{BoxFuture, Handles, RuntimeStatus},
    watched_folder::Reading,
};

/// What a future in the set ended with.
enum Happening {
    /// A step; the last is what it waited for volumes and the cloud.
    Done(String, Result<(), WorkError>, Duration),
    Looked(Box<Observer>, Ticket, Result<Look, CriError>),
    BroughtUp(Result<(String, RuntimeFacts), CriError>),
    Preloaded(Vec<String>),
    Probed(ProbeTicket, probe::Outcome),
    /// Something changed in the runtime, or the stream of such news ended.
    Event(Option<Streaming<Envelope>>),
    /// The files of a pod.
    Refreshed(String),
    Gate(GateNews),
    Folder(std::io::Result<Reading>),
    /// Time to look at what the node has left.
    PressureDue,
    /// The node and its pods were looked at.
    Pressed(pressure_watch::Look),
    /// Room was made, as far as it goes without pods.
    Relieved(Box<pressure_watch::Relief>),
    /// The import folders were looked at.
    Imported,
    /// Time to look at the logs.
    LogsDue(Keeper),
    Nothing,
}

pub struct Shell {
    handles: Handles,
    settings: Settings,
    executor: Arc<Executor>,
    channel: Channel,
    manager: Manager,
    work: FuturesUnordered<BoxFuture<'static, Happening>>,
    /// Here while no observation is under way.
    observer: Option<Box<Observer>>,
    look_at: Instant,
    start: Instant,
    /// The runtime answered since it was last away.
    up: bool,
    version: String,
    following: bool,
    parsed: BTreeMap<String, (String, Wanted)>,
    /// Pods that came while we run and for which the runtime was not called yet, by uid.
    arrived: BTreeMap<String, Arrival>,
    /// When the runtime last told of a change that no status shows yet.
    event_at: Option<Instant>,
    /// A look that begins before this may not show what the runtime's last event was about; then another one follows.
    settled_at: Instant,
    /// Calls off the step under way, by incarnation.
    called_off: BTreeMap<String, oneshot::Sender<()>>,
    told: Option<RuntimeStatus>,
    /// Looks in a row that failed though the runtime is there.
    slow_looks: u32,
    suspects: Suspects,
    pressure: PressureMachine,
    collected: Instant,
    node_side: NodeSide,
    upkeep: upkeep::Upkeep,
    probes: probes::Probes,
    doorman: Doorman,
    statics: Statics,
}

impl Shell {
    pub fn new(handles: Handles, settings: Settings) -> Shell {
        let channel = cri::channel(&settings.endpoint);
        let cri = Cri::new(channel.clone()).with_adopted(Book::load(&*handles.meta));
        let images =
            Images::new(cri.clone(), channel.clone(), settings.preload_dir.clone(), &settings.images);
        let observer = Observer::new(cri.clone(), &handles.node_name, settings.places());
        let mut manager = Manager::new(pods::records(&handles));
        let executor = Arc::new(Executor::new(cri, images, handles.clone(), settings.clone()));
        let probes = probes::Probes::new(Memory::load(settings.run_dir.join("probes")));
        manager.set_cloud(&settings.cloud_id);
        manager.remember(probes.known());
        let doorman = Doorman::new(&handles, &settings, &mut manager);
        let statics = Statics::new(&handles, settings.policy.static_pods.clone());
        let now = Instant::now();
        let pressure = PressureMachine::new(settings.pressure.clone());
        Shell {
            handles,
            settings,
            executor,
            channel,
            manager,
            work: FuturesUnordered::new(),
            observer: Some(Box::new(observer)),
            look_at: now,
            start: now,
            up: false,
            version: String::new(),
            following: false,
            parsed: BTreeMap::new(),
            arrived: BTreeMap::new(),
            event_at: None,
            settled_at: now,
            called_off: BTreeMap::new(),
            told: None,
            slow_looks: 0,
            suspects: Suspects::default(),
            pressure,
            collected: now,
            node_side: NodeSide::default(),
            upkeep: upkeep::Upkeep::new(now),
            probes,
            doorman,
            statics,
        }
    }

    pub async fn run(mut self, drain: Drain) {
        let mut changes = self.handles.meta.changes();
        self.clean_cni_cache();
        self.start_gate();
        self.watch_statics(false);
        self.desired();
        self.bring_up();
        self.watch_pressure();
        self.watch_imports();
        self.watch_logs(Keeper::default());
        loop {
            let (next, probe) = (self.next_look(), self.next_probe());
            tokio::select! {
                () = drain.wait() => return,
                changed = changes.changed() => match changed {
                    Ok(()) => {
                        changes.borrow_and_update();
                        self.desired();
                        self.sources_changed();
                    }
                    // Meta ends only with the process.
                    Err(_) => return drain.wait().await,
                },
                Some(happening) = next_of(&mut self.work) => self.happened(happening),
                () = sleep_until(next.into()) => self.timer(),
                () = sleep_until(probe.unwrap_or(next).into()), if probe.is_some() => self.probe_timer(),
            }
        }
    }

    fn now(&self) -> Now {
        Now { mono: self.start.elapsed(), unix: unix_ms() / 1000 }
    }

    fn handle(&mut self, input: Input) {
        self.executor.events.flush();
        let news = !matches!(input, Input::Probe { .. } | Input::Tick);
        let wish = matches!(input, Input::Desired(_));
        for action in self.manager.handle(self.now(), input) {
            self.act(action);
        }
        self.doorman.tell(&self.handles, &self.manager, self.now().mono);
        if let Some(groups) = self.node_side.follow(wish, &self.manager, &self.executor) {
            self.work.push(Box::pin(async move {
                groups.await;
                Happening::Nothing
            }));
        }
        if news {
            self.watch_probes();
        }
    }

    /// When to look at the runtime, or to bring it up, without being asked.
    fn next_look(&self) -> Instant {
        let wake = self.manager.wake(self.now()).map(|due| self.start + due);
        // While the observer is out, its return is what comes next.
        match (&self.observer, wake) {
            (None, _) => Instant::now() + limits::POLL_BUSY,
            (Some(_), Some(wake)) if self.up => self.look_at.min(wake),
            (Some(_), _) => self.look_at,
        }
    }

    fn timer(&mut self) {
        if self.up {
            self.look();
        } else {
            self.bring_up();
        }
    }

    fn happened(&mut self, happening: Happening) {
        match happening {
            Happening::Done(incarnation, result, waited) => {
                self.called_off.remove(&incarnation);
                let uid = self.manager.worker(&incarnation).map(|worker| worker.record.uid.as_str());
                if let Some(arrival) = uid.and_then(|uid| self.arrived.get_mut(uid)) {
                    arrival.waited += waited;
                }
                if let Err(error) = &result {
                    tracing::warn!(incarnation, "{}: {}", error.reason, error.message);
                }
                self.handle(Input::Done { incarnation, result });
            }
            Happening::Looked(observer, began, result) => {
                self.observer = Some(observer);
                self.looked(began, result);
            }
            Happening::BroughtUp(result) => self.brought_up(result),
            Happening::Preloaded(problems) => self.preloaded(problems),
            Happening::Probed(ticket, outcome) => self.probed(ticket, outcome),
            Happening::Event(Some(stream)) => {
                self.follow(Some(stream));
                self.event_at.get_or_insert_with(Instant::now);
                self.settled_at = Instant::now() + limits::EVENT_SETTLE;
                self.look_within(limits::EVENT_SETTLE);
            }
            // The runtime ended, or refuses: a look tells which, and subscribes again.
            Happening::Event(None) => {
                tracing::debug!("no events from the container runtime");
                self.following = false;
                self.look_within(limits::POLL_WITHOUT_EVENTS);
            }
            Happening::Refreshed(incarnation) => self.refreshed(incarnation),
            Happening::Gate(news) => self.gate_news(news),
            Happening::Folder(reading) => self.folder_read(reading),
            Happening::PressureDue => self.look_at_pressure(),
            Happening::Pressed(look) => self.pressed(look),
            Happening::Relieved(relief) => self.relieved(*relief),
            Happening::Imported => self.watch_imports(),
            Happening::LogsDue(keeper) => self.watch_logs(keeper),
            Happening::Nothing => {}
        }
    }

    fn look_within(&mut self, delay: Duration) {
        self.look_at = self.look_at.min(Instant::now() + delay);
    }

    /// What of the node stands in statuses; it changes with the network, which nobody tells of.
    fn find_host(&mut self) {
        let host_ip = match self.settings.node_ip.is_empty() {
            true => address_of_default_route(),
            false => self.settings.node_ip.clone(),
        };
        self.manager.set_node(NodeFacts { host_ip });
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Work { incarnation, work } => {
                let Some(worker) = self.manager.worker(&incarnation) else { return };
                tracing::debug!(pod = worker.record.full_name(), "{work:?}");
                let calls = matches!(work, Work::RunSandbox { .. });
                let waits = matches!(work, Work::Persist(_) | Work::Prepare);
                let job = Job {
                    arrival: if calls { self.arrived.remove(&worker.record.uid) } else { None },
                    record: worker.record.clone(),
                    pod: worker.spec.clone(),
                    work,
                    host_ip: self.manager.node().host_ip.clone(),
                    ip: self.pod_ip(worker),
                };
                let executor = self.executor.clone();
                let (call_off, called_off) = oneshot::channel();
                self.called_off.insert(incarnation.clone(), call_off);
                self.work.push(Box::pin(async move {
                    let begun = Instant::now();
                    let result = tokio::select! {
                        result = executor.execute(job) => result,
                        Ok(()) = called_off => Err(WorkError::called_off()),
                    };
                    Happening::Done(incarnation, result, if waits { begun.elapsed() } else { Duration::ZERO })
                }));
            }
            Action::CallOff { incarnation } => {
                if let Some(call_off) = self.called_off.remove(&incarnation) {
                    let _ = call_off.send(());
                }
            }
            Action::Event { incarnation, event } => {
                let Some(worker) = self.manager.worker(&incarnation) else { return };
                self.executor.events.pod(&worker.record, event);
            }
            Action::Hasten { incarnation, grace } => self.executor.deadlines.hasten(&incarnation, grace),
            Action::Report { namespace, name, uid, status } => self.report(&namespace, &name, &uid, &status),
            Action::ReportGone { namespace, name, uid } => self.report_gone(&namespace, &name, &uid),
            Action::Observe => self.look_within(Duration::ZERO),
            Action::Allocate { incarnation, claims } => self.allocate(incarnation, claims),
            Action::Release { incarnation } => self.release(incarnation),
            Action::AskNode { incarnation } => self.ask_node(incarnation),
        }
    }
}

/// `FuturesUnordered` ends when it is empty; here that only means that nothing is under way.
async fn next_of(work: &mut FuturesUnordered<BoxFuture<'static, Happening>>) -> Option<Happening> {
    if work.is_empty() {
        return pending().await;
    }
    work.next().await
}

fn address_of_default_route() -> String {
    // Sends nothing: the kernel only picks the route. The address is one that documentation may use.
    let route = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    };
    route().map(|address: std::net::SocketAddr| address.ip().to_string()).unwrap_or_default()
}
