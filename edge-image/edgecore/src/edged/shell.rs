//! The loop around `manager`: feeds it what meta and the runtime say, and carries out what it decides.
//!
//! One task; steps, observations and the event stream are futures in one set, so nothing is spawned and nothing is shared.
//! A step that is dropped with the process is decided anew after the start.

mod doorman;
mod logs;
mod probes;
mod statics;
mod upkeep;

use std::{
    collections::BTreeMap,
    future::pending,
    net::UdpSocket,
    sync::Arc,
    time::{Duration, Instant},
};

use containerd_client::services::v1::{SubscribeRequest, events_client::EventsClient};
use containerd_client::types::Envelope;
use futures_util::{StreamExt, stream::FuturesUnordered};
use rt::Drain;
use serde_json::{Value, json};
use tokio::{sync::oneshot, time::sleep_until};
use tonic::{Streaming, transport::Channel};
use wire::{Message, Operation};

use super::{
    Settings, cni_cache,
    cri::{self, Cri, CriError},
    events::Event,
    execute::{Executor, Job},
    figures,
    images::{Images, RuntimeFacts, suspects::Suspects},
    limits,
    logs::Keeper,
    manager::{Action, Input, Manager, Wanted},
    node_side::NodeSide,
    observe::{Look, Observer},
    pod::{CONFIG_SOURCE, Pod, PodError},
    pressure,
    probe::{self, Memory, machine::Ticket as ProbeTicket},
    record::{KIND, Record},
    static_pods::Reading,
    status::{self, NodeFacts},
    unix_ms,
    worker::{Now, Ticket, Work, WorkError},
};
use doorman::{Doorman, GateNews};
use statics::Statics;

use crate::contract::{BoxFuture, Condition, Handles, Object, PodStatus, Report, RuntimeStatus};

const UNAVAILABLE: &str = "ContainerRuntimeUnavailable";
const PRELOAD: &str = "PreloadedImageUnusable";
const IMPORT: &str = "ImportedImageUnusable";

/// What a future in the set ended with.
enum Happening {
    Done(String, Result<(), WorkError>),
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
    /// The node and its pods were looked at.
    Pressed(pressure::watch::Look),
    /// Room was made, as far as it goes without pods.
    Relieved(Box<pressure::watch::Relief>),
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
    /// Uids that came while we run and for which the runtime was not called yet, and when they came.
    arrived: BTreeMap<String, Instant>,
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
    pressure: pressure::machine::Machine,
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
        let cri = Cri::new(channel.clone());
        let images =
            Images::new(cri.clone(), channel.clone(), settings.preload_dir.clone(), &settings.images);
        let observer = Observer::new(cri.clone(), &handles.node_name, settings.places());
        let mut manager = Manager::new(records(&handles));
        let executor = Arc::new(Executor::new(cri, images, handles.clone(), settings.clone()));
        let probes = probes::Probes::new(Memory::load(settings.run_dir.join("probes")));
        manager.set_cloud(&settings.cloud_id);
        manager.remember(probes.known());
        let doorman = Doorman::new(&handles, &settings, &mut manager);
        let statics = Statics::new(&handles, settings.policy.static_pods.clone());
        let now = Instant::now();
        let pressure = pressure::machine::Machine::new(settings.pressure.clone());
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
        self.manager.set_node(NodeFacts { host_ip: self.host_ip() });
        self.executor.events.flush();
        let news = !matches!(input, Input::Probe { .. } | Input::Tick);
        for action in self.manager.handle(self.now(), input) {
            self.act(action);
        }
        self.doorman.tell(&self.handles, &self.manager, self.now().mono);
        if let Some(groups) = self.node_side.follow(&self.manager, &self.executor) {
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
            Happening::Done(incarnation, result) => {
                self.called_off.remove(&incarnation);
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

    fn clean_cni_cache(&self) {
        let dir = &self.settings.images.cni_dir;
        if let Some(booted) = cni_cache::boot_time().filter(|_| !dir.as_os_str().is_empty()) {
            for path in cni_cache::clean(dir, booted) {
                tracing::warn!("{} was cut off by a power cut; removed", path.display());
            }
        }
    }

    // --- pressure ---

    fn watch_pressure(&mut self) {
        let executor = self.executor.clone();
        let places = pressure::watch::places(&self.manager, &executor);
        let collect = self.up && self.collected.elapsed() >= limits::COLLECT_EVERY;
        if collect {
            self.collected = Instant::now();
        }
        self.work.push(Box::pin(async move {
            if collect {
                executor.images.collect(&executor.events).await;
            }
            tokio::time::sleep(limits::PRESSURE_CHECK).await;
            Happening::Pressed(pressure::watch::look(executor, places).await)
        }));
    }

    /// Apart from the look at pressure: a large archive takes minutes.
    fn watch_imports(&mut self) {
        if self.settings.images.import_dirs.is_empty() {
            return;
        }
        let executor = self.executor.clone();
        self.work.push(Box::pin(async move {
            if let Some(problems) = executor.images.import_folders(&executor.events).await {
                executor.handles.conditions.set(Condition {
                    condition_type: IMPORT.into(),
                    status: !problems.is_empty(),
                    reason: if problems.is_empty() { "AllUsable" } else { "ArchiveUnusable" }.into(),
                    message: problems.join("; "),
                });
            }
            tokio::time::sleep(limits::IMPORT_CHECK).await;
            Happening::Imported
        }));
    }

    fn pressed(&mut self, look: pressure::watch::Look) {
        let crossed = self.observe_pressure(&look.readings);
        for (uid, message) in look.over {
            self.evict(&uid, message, limits::EVICTION_GRACE_HARD);
        }
        let Some(crossed) = crossed else { return self.watch_pressure() };
        let text = format!("Attempting to reclaim {}", crossed.signal.resource());
        self.executor.events.node(Event::warning("EvictionThresholdMet", text));
        let executor = self.executor.clone();
        let places = pressure::watch::places(&self.manager, &executor);
        self.work.push(Box::pin(async move {
            let relief = pressure::watch::relieve(executor, crossed, places).await;
            Happening::Relieved(Box::new(relief))
        }));
    }

    fn relieved(&mut self, relief: pressure::watch::Relief) {
        let still = self.observe_pressure(&relief.readings).filter(|now| now.signal == relief.crossed.signal);
        if let Some(crossed) = still {
            match pressure::rank::choose(&crossed, &relief.candidates) {
                Some((victim, message)) => {
                    self.pressure.evicting(self.now().mono, &victim.uid);
                    self.evict(&victim.uid.clone(), message, crossed.grace);
                }
                None => tracing::warn!(
                    "the node is low on {}, and no pod may be evicted",
                    crossed.signal.resource()
                ),
            }
        }
        self.watch_pressure();
    }

    fn observe_pressure(&mut self, readings: &pressure::Readings) -> Option<pressure::machine::Crossed> {
        let workers: Vec<_> = self.manager.workers().filter(|w| w.record.ended.is_none()).collect();
        let there = |uid: &str| workers.iter().any(|worker| worker.record.uid == uid);
        let crossed = self.pressure.observe(self.start.elapsed(), readings, there);
        let conditions = self.pressure.conditions();
        for condition in pressure::NodeCondition::ALL {
            let status = conditions.contains(&condition);
            let (reason, message) = if status { condition.words() } else { condition.words_over() };
            self.handles.conditions.set(Condition {
                condition_type: condition.name().into(),
                status,
                reason: reason.into(),
                message: message.into(),
            });
        }
        self.manager.pressure = conditions;
        crossed
    }

    fn evict(&mut self, uid: &str, message: String, grace: Duration) {
        let Some(worker) = self.manager.workers().find(|worker| worker.record.uid == uid) else { return };
        self.executor.events.pod(&worker.record, Event::warning("Evicted", message.clone()));
        let (uid, reason) = (uid.to_string(), "Evicted".to_string());
        self.handle(Input::Fail { uid, reason, message, grace: Some(grace) });
    }

    // --- the runtime ---

    /// Asks a runtime that was away who it is.
    fn bring_up(&mut self) {
        self.look_at = Instant::now() + limits::CRI_QUICK + limits::RUNTIME_RETRY;
        let executor = self.executor.clone();
        self.work.push(Box::pin(async move {
            let ask = async {
                let version = executor.cri.version().await?;
                let status = executor.cri.status(true).await?;
                let facts = runtime_facts(status.info.get("config").map_or("", String::as_str));
                executor.images.set_facts(facts.clone()).await;
                Ok((format!("{}://{}", version.runtime_name, version.runtime_version), facts))
            };
            Happening::BroughtUp(ask.await)
        }));
    }

    fn brought_up(&mut self, result: Result<(String, RuntimeFacts), CriError>) {
        match result {
            Ok((version, facts)) => {
                tracing::info!("container runtime {version}, layers by {}", facts.snapshotter);
                self.up = true;
                self.version = version;
                let executor = self.executor.clone();
                self.work.push(Box::pin(async move {
                    let boot_id =
                        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
                    executor.images.after_boot(&executor.handles, boot_id.trim()).await;
                    Happening::Preloaded(executor.images.preload().await)
                }));
                self.follow(None);
                self.look();
            }
            Err(error) => self.down(&error),
        }
    }

    fn down(&mut self, error: &CriError) {
        self.up = false;
        self.look_at = Instant::now() + limits::RUNTIME_RETRY;
        let message = remedy(&self.settings.endpoint, error);
        self.tell_runtime(RuntimeStatus::Down { message });
    }

    fn look(&mut self) {
        let Some(mut observer) = self.observer.take() else { return };
        let poll = match (self.following, self.manager.workers().next().is_some()) {
            (false, true) => limits::POLL_WITHOUT_EVENTS,
            (true, true) => limits::POLL_BUSY,
            (_, false) => limits::POLL_IDLE,
        };
        let now = Instant::now();
        self.look_at = if now < self.settled_at { self.settled_at } else { now + poll };
        let began = self.manager.ticket();
        self.work.push(Box::pin(async move {
            let result = observer.look().await;
            Happening::Looked(observer, began, result)
        }));
        self.keep_up();
    }

    fn looked(&mut self, began: Ticket, result: Result<Look, CriError>) {
        match result {
            Ok(look) => {
                self.slow_looks = 0;
                let status = match look.network_problem {
                    None => RuntimeStatus::Ready { version: self.version.clone() },
                    Some(problem) => RuntimeStatus::Down {
                        message: format!(
                            "pods cannot have a network: {problem}; put a network configuration into the runtime's CNI folder (/etc/cni/net.d)"
                        ),
                    },
                };
                self.tell_runtime(status);
                for image in self.suspects.judge(&look.observed) {
                    let executor = self.executor.clone();
                    self.work.push(Box::pin(async move {
                        executor.images.heal(&image).await;
                        Happening::Nothing
                    }));
                }
                self.handle(Input::Observed { began, observed: look.observed });
                // A change of which no status tells.
                self.event_at = None;
                if self.up && !self.following {
                    self.follow(None);
                }
            }
            // A loaded board may be slow once; that is no reason to call the node broken.
            Err(error) if !error.is_unavailable() && self.slow_looks < limits::SLOW_LOOKS_MAX => {
                self.slow_looks += 1;
                tracing::warn!("container runtime: {error}");
                self.look_within(limits::RUNTIME_RETRY);
            }
            Err(error) => self.down(&error),
        }
    }

    fn tell_runtime(&mut self, status: RuntimeStatus) {
        if self.told.as_ref() == Some(&status) {
            return;
        }
        let message = match &status {
            RuntimeStatus::Down { message } => {
                tracing::error!("{message}");
                message.clone()
            }
            _ => String::new(),
        };
        let down = !message.is_empty();
        let reason = if down { "RuntimeNotReady" } else { "RuntimeReady" };
        self.handles.conditions.set(Condition {
            condition_type: UNAVAILABLE.into(),
            status: down,
            reason: reason.into(),
            message,
        });
        self.handles.runtime.send_replace(status.clone());
        self.told = Some(status);
    }

    /// Waits for the next event of the runtime; subscribes first when there is no stream.
    fn follow(&mut self, stream: Option<Streaming<Envelope>>) {
        self.following = true;
        let channel = self.channel.clone();
        self.work.push(Box::pin(async move {
            let next = async {
                let mut stream = match stream {
                    Some(stream) => stream,
                    None => {
                        let filters = ["/tasks/exit", "/tasks/oom"]
                            .map(|topic| format!("namespace==k8s.io,topic==\"{topic}\""));
                        let request = SubscribeRequest { filters: filters.to_vec() };
                        EventsClient::new(channel).subscribe(request).await.ok()?.into_inner()
                    }
                };
                stream.message().await.ok()??;
                Some(stream)
            };
            Happening::Event(next.await)
        }));
    }

    fn preloaded(&mut self, problems: Vec<String>) {
        for problem in &problems {
            tracing::error!("{problem}");
        }
        let broken = !problems.is_empty();
        self.handles.conditions.set(Condition {
            condition_type: PRELOAD.into(),
            status: broken,
            reason: if broken { "ArchiveUnusable" } else { "AllPresent" }.into(),
            message: problems.join("; "),
        });
    }

    // --- meta and the cloud ---

    fn desired(&mut self) {
        self.doorman.look(&self.handles, &mut self.manager);
        let objects = self.handles.meta.list("pod");
        let mut wanted = Vec::with_capacity(objects.len());
        let mut parsed = BTreeMap::new();
        let now = Instant::now();
        for object in objects {
            if self.up && !self.parsed.contains_key(&object.uid) {
                self.arrived.insert(object.uid.clone(), now);
            }
            let entry = match self.parsed.remove(&object.uid) {
                Some((version, known)) if version == object.resource_version => (version, known),
                _ => (object.resource_version.clone(), parse(&object)),
            };
            wanted.push(entry.1.clone());
            parsed.insert(object.uid.clone(), entry);
        }
        self.parsed = parsed;
        self.arrived.retain(|uid, _| self.parsed.contains_key(uid));
        let wanted = self.statics.join(wanted);
        self.handle(Input::Desired(wanted));
        self.follow_mirrors();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Work { incarnation, work } => {
                let Some(worker) = self.manager.worker(&incarnation) else { return };
                tracing::debug!(pod = worker.record.full_name(), "{work:?}");
                if matches!(work, Work::RunSandbox { .. })
                    && let Some(arrived) = self.arrived.remove(&worker.record.uid)
                {
                    figures::pod_start(arrived.elapsed());
                }
                let job = Job {
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
                    let result = tokio::select! {
                        result = executor.execute(job) => result,
                        Ok(()) = called_off => Err(WorkError::called_off()),
                    };
                    Happening::Done(incarnation, result)
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
        }
    }

    fn report(&mut self, namespace: &str, name: &str, uid: &str, status: &Value) {
        if let Some(at) = self.event_at.take() {
            figures::event_to_status(at.elapsed());
        }
        let patch = serde_json::to_vec(status).expect("a status serialises").into();
        self.handles.statuses.put(namespace, name, PodStatus { uid: uid.into(), patch });
        // A static pod is known to the cloud by its mirror, and told of when there is one.
        let Some(uid) = self.statics.cloud_uid(uid) else { return };
        let record = Record { uid: uid.into(), ..Record::default() };
        let resource = format!("{namespace}/podpatch/{name}");
        let message = Message::new(unix_ms(), wire::source::EDGED, "meta", Operation::PATCH, &resource)
            .with_content(&status::patch(&record, status));
        let key = format!("podstatus/{namespace}/{name}");
        self.handles.uplink.report(Report { key, message, durable: false });
    }

    fn report_gone(&self, namespace: &str, name: &str, uid: &str) {
        self.handles.statuses.remove(namespace, name, uid);
        let resource = format!("{namespace}/pod/{name}");
        let message = Message::new(unix_ms(), wire::source::EDGED, "meta", Operation::DELETE, &resource)
            .with_content(&json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": uid } }));
        let key = format!("poddelete/{namespace}/{name}/{uid}");
        self.handles.uplink.report(Report { key, message, durable: true });
    }

    fn host_ip(&self) -> String {
        if !self.settings.node_ip.is_empty() {
            return self.settings.node_ip.clone();
        }
        // Sends nothing: the kernel only picks the route. The address is one that documentation may use.
        let route = || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect("192.0.2.1:9")?;
            socket.local_addr()
        };
        route().map(|address| address.ip().to_string()).unwrap_or_default()
    }
}

/// `FuturesUnordered` ends when it is empty; here that only means that nothing is under way.
async fn next_of(work: &mut FuturesUnordered<BoxFuture<'static, Happening>>) -> Option<Happening> {
    if work.is_empty() {
        return pending().await;
    }
    work.next().await
}

fn records(handles: &Handles) -> Vec<Record> {
    let mut records = Vec::new();
    for (name, body) in handles.meta.list_local(KIND) {
        match serde_json::from_slice::<Record>(&body) {
            Ok(record) if record.incarnation == name => records.push(record),
            // Without its record a pod is adopted by its labels; see `manager`.
            _ => tracing::error!("record {KIND}/{name} cannot be read; its pod is adopted from the runtime"),
        }
    }
    records
}

fn parse(object: &Object) -> Wanted {
    let value: Value = serde_json::from_slice(&object.body).unwrap_or_default();
    let deleting = value.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null());
    let pod = Pod::parse(&object.body).and_then(|mut pod| {
        // Only a file of this node makes a pod static, and with that critical.
        pod.metadata.annotations.remove(CONFIG_SOURCE);
        // The store's key is what everything else goes by.
        let named =
            pod.metadata.name == object.resource.name && pod.metadata.namespace == object.resource.namespace;
        if named {
            Ok(Arc::new(pod))
        } else {
            Err(PodError::Missing("metadata.name and namespace that match its resource"))
        }
    });
    Wanted {
        namespace: object.resource.namespace.clone(),
        name: object.resource.name.clone(),
        uid: object.uid.clone(),
        deleting,
        pod,
    }
}

/// What containerd tells of its configuration (1.6 and 1.7, and the CRI plugin of 2.x).
pub fn runtime_facts(config: &str) -> RuntimeFacts {
    let value: Value = serde_json::from_str(config).unwrap_or_default();
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    RuntimeFacts {
        snapshotter: text("/containerd/snapshotter").unwrap_or("overlayfs").to_string(),
        root_dir: text("/containerdRootDir").map(Into::into),
        sandbox_image: text("/sandboxImage").map(str::to_string),
    }
}

/// The line that a person sees when the runtime does not answer.
pub fn remedy(endpoint: &str, error: &CriError) -> String {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    let why = &error.message;
    if !std::path::Path::new(path).exists() {
        return format!(
            "container runtime: {path} does not exist; containerd is not running (on a plain host: systemctl start containerd; on a Kinglet image init starts it again: see status.txt), or correct remoteRuntimeEndpoint in edgecore.yaml"
        );
    }
    if error.code == tonic::Code::Unimplemented {
        return format!(
            "container runtime at {path} has no CRI v1 ({why}); remove \"cri\" from disabled_plugins in /etc/containerd/config.toml and restart it"
        );
    }
    format!(
        "container runtime at {path} does not answer ({why}); look at it (systemctl status containerd) and restart it"
    )
}
