//! The shell around the book: sockets, bus, records.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use dmi::{grpc::Refusal, messages::MapperRegisterResponse};
use rt::{Drain, TaskGroup};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot, watch},
};

use super::{
    book::{Action, Book, Input, Order},
    courier::{Courier, News},
    server::{self, Registration, Service},
    wish::Refusals,
};
use crate::{
    config::Config,
    contract::{Handles, Publish},
    limits::{DMI_CONNECTIONS_MAX, DMI_MAPPERS_MAX, DMI_QUEUE_LEN, DMI_RETRY_DELAY_MS_MAX},
};

type Answer = oneshot::Sender<Result<MapperRegisterResponse, Refusal>>;

const RECORD_KIND: &str = "dmimapper";
const TOPIC_PREFIX: &str = "$kinglet/mapper/";

/// As KubeEdge reads its key: a folder, or (older files) the socket.
pub fn socket(cfg: &Config) -> PathBuf {
    let given = &cfg.modules.device_twin.dmi_sock_path;
    match given.extension().is_some_and(|extension| extension == "sock") {
        true => given.with_file_name("dmi.sock"),
        false => given.join("dmi.sock"),
    }
}

/// Runs until the drain.
pub async fn run(handles: Handles, cfg: Arc<Config>, drain: Drain) -> anyhow::Result<()> {
    let path = socket(&cfg);
    let (registrations_tx, registrations) = rt::chan::waiting(DMI_QUEUE_LEN);
    let (news_tx, news) = rt::chan::waiting(DMI_QUEUE_LEN);
    let refusals = watch::Sender::default();
    let book = Book::new(now_ms(), handles.meta.list_local(RECORD_KIND));
    // Couriers end with their orders, and at most one more per protocol is ending.
    let couriers = TaskGroup::new("dmi-mapper", 2 * DMI_MAPPERS_MAX, drain.child());
    let connections = TaskGroup::new("dmi", DMI_CONNECTIONS_MAX, drain.child());
    let service = Service::new(handles.bus.clone(), registrations_tx, refusals.subscribe());
    let mut shell = Shell { book, handles, couriers, open: BTreeMap::new(), news_tx, refusals };
    let serving = serve(&path, &service, &connections, &drain);
    tokio::select! {
        () = serving => {}
        () = shell.run(registrations, news, &drain) => {}
    }
    let _ = std::fs::remove_file(&path);
    Ok(())
}

/// A socket that cannot be made (a read-only folder, a name that is too long) is said once and tried again.
async fn serve(path: &Path, service: &Service, connections: &TaskGroup, drain: &Drain) {
    let mut said = false;
    loop {
        let listener: Result<UnixListener, io::Error> = server::listen(path);
        match listener {
            Ok(listener) => loop {
                match listener.accept().await {
                    Ok((stream, _)) => service.accept(stream, connections),
                    Err(error) => {
                        tracing::warn!("{}: {error}", path.display());
                        break;
                    }
                }
            },
            Err(error) if !std::mem::replace(&mut said, true) => tracing::error!(
                "mappers cannot register by DMI: {}: {error}; set modules.deviceTwin.dmiSockPath to a folder that can be written",
                path.display()
            ),
            Err(_) => {}
        }
        if !drain.sleep(Duration::from_millis(DMI_RETRY_DELAY_MS_MAX as u64)).await {
            return;
        }
    }
}

struct Shell {
    book: Book,
    handles: Handles,
    couriers: TaskGroup,
    /// By protocol: the generation, and where its orders go.
    open: BTreeMap<String, (u64, mpsc::Sender<Order>)>,
    news_tx: mpsc::Sender<(String, u64, News)>,
    refusals: watch::Sender<Refusals>,
}

/// Of a clock that never steps: it only measures pauses.
fn now_ms() -> i64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed().as_millis() as i64
}

impl Shell {
    async fn run(
        &mut self,
        mut registrations: mpsc::Receiver<Registration>,
        mut news: mpsc::Receiver<(String, u64, News)>,
        drain: &Drain,
    ) {
        let mut descriptions = self.handles.bus.subscribe(&format!("{TOPIC_PREFIX}+/device/+/+"));
        let mut inventories = self.handles.bus.subscribe(&format!("{TOPIC_PREFIX}+/devices"));
        self.handle(Input::Tick, None).await;
        loop {
            let deadline = self.book.deadline_ms();
            let pause = deadline.map_or(3_600_000, |at| (at - now_ms()).clamp(0, 3_600_000));
            tokio::select! {
                // A list must not overtake the descriptions that it names.
                biased;
                () = drain.wait() => return,
                Some((request, answer)) = registrations.recv() => {
                    self.handle(Input::Register(request), Some(answer)).await;
                }
                Some((protocol, generation, news)) = news.recv() => {
                    let protocol = protocol.as_str();
                    let input = match news {
                        News::Done(outcome) => Input::Done { protocol, generation, outcome },
                        News::Lost => Input::Lost { protocol, generation },
                    };
                    self.handle(input, None).await;
                }
                Some(publish) = descriptions.recv() => {
                    if let Some((protocol, id)) = parts(&publish, "/device/") {
                        self.handle(Input::Description { protocol, id, payload: &publish.payload }, None).await;
                    }
                }
                Some(publish) = inventories.recv() => {
                    if let Some((protocol, "")) = parts(&publish, "/devices") {
                        self.handle(Input::Inventory { protocol, payload: &publish.payload }, None).await;
                    }
                }
                () = tokio::time::sleep(Duration::from_millis(pause as u64)) => self.handle(Input::Tick, None).await,
            }
        }
    }

    async fn handle(&mut self, input: Input<'_>, mut registering: Option<Answer>) {
        let mut actions = self.book.handle(now_ms(), input);
        while !actions.is_empty() {
            let mut more = Vec::new();
            for action in actions {
                more.extend(self.act(action, &mut registering).await);
            }
            actions = more;
        }
    }

    async fn act(&mut self, action: Action, registering: &mut Option<Answer>) -> Vec<Action> {
        match action {
            Action::Answer(answer) => {
                if let Some(registering) = registering.take() {
                    // It may have gone meanwhile; then it registers again.
                    let _ = registering.send(answer);
                }
            }
            Action::Call { protocol, generation, address, order } => {
                if self.open.get(&protocol).is_none_or(|(known, _)| *known != generation) {
                    let (tx, orders) = rt::chan::waiting(1);
                    let courier = Courier {
                        protocol: protocol.clone(),
                        generation,
                        address,
                        orders,
                        news: self.news_tx.clone(),
                    };
                    let spawned = self.couriers.spawn(async move {
                        courier.run().await;
                        Ok::<(), io::Error>(())
                    });
                    if let Err(error) = spawned {
                        let outcome = super::book::Outcome::Broken(error.to_string());
                        return self
                            .book
                            .handle(now_ms(), Input::Done { protocol: &protocol, generation, outcome });
                    }
                    self.open.insert(protocol.clone(), (generation, tx));
                }
                if let Some((_, orders)) = self.open.get(&protocol) {
                    // One order at a time: there is room.
                    let _ = orders.try_send(order);
                }
            }
            Action::Save { protocol, record } => {
                if let Err(error) = self.handles.meta.put_local(RECORD_KIND, &protocol, record, false).await {
                    tracing::error!(
                        "mapper {protocol} must register again after a restart: {}",
                        rt::error_chain(&error)
                    );
                }
            }
            Action::Forget { protocol } => {
                self.open.remove(&protocol);
                if let Err(error) = self.handles.meta.delete_local(RECORD_KIND, &protocol).await {
                    tracing::error!("mapper {protocol} stays in the store: {}", rt::error_chain(&error));
                }
            }
            Action::Refusals(refusals) => drop(self.refusals.send_replace(refusals)),
            Action::Publish { topic, payload } => {
                if let Err(error) = self.handles.bus.publish(&topic, payload.into(), false).await {
                    tracing::debug!("not published to {topic}: {error:#}");
                }
            }
        }
        Vec::new()
    }
}

/// Protocol and rest of a topic below ours.
fn parts<'a>(publish: &'a Publish, separator: &str) -> Option<(&'a str, &'a str)> {
    publish.topic.strip_prefix(TOPIC_PREFIX)?.split_once(separator)
}
