//! The thread that speaks gRPC: registers, serves `DeviceMapperService`, and takes reports out of the outbox.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    sync::Arc,
    thread::{Builder, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use dmi::{
    MANAGER, MAPPER, convert,
    grpc::{Body, CallError, Channel, Refusal, code, decode, frame, serve},
    limits::MESSAGE_BYTES_MAX,
    messages::{
        Device, DeviceModel, DeviceRequest, Empty, MapperInfo, MapperRegisterRequest, MapperRegisterResponse,
        ModelRequest, NamedRequest,
    },
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::json;
use tokio::{
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};

use super::{Command, Commands, Settings, Shared, outbox::Report};
use crate::limits::{
    DEVICES_MAX, DMI_CALL_S_MAX, DMI_CONNECTIONS_MAX, DMI_MODELS_MAX, DMI_REFUSED_PAUSE_MS,
    RETRY_DELAY_MS_MAX, RETRY_DELAY_MS_MIN,
};

const STACK_BYTES: usize = 512 * 1024;
/// Between two reports: what comes within it goes as one.
const REPORT_PAUSE: Duration = Duration::from_millis(10);

pub(super) fn start(
    settings: Settings,
    shared: Arc<Shared>,
    commands: Commands,
) -> anyhow::Result<JoinHandle<()>> {
    // Made here, so that a socket that cannot be is an error at the start.
    super::remove(&settings.listen);
    let listener = std::os::unix::net::UnixListener::bind(&settings.listen)
        .map_err(|error| anyhow::anyhow!("cannot serve {}: {error}", settings.listen.display()))?;
    listener.set_nonblocking(true)?;
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let run = runtime.and_then(|runtime| runtime.block_on(run(settings, &shared, commands, listener)));
        if let Err(error) = run {
            eprintln!("mapper: DMI has ended: {error}");
            std::process::exit(1);
        }
    };
    Ok(Builder::new().name("dmi".into()).stack_size(STACK_BYTES).spawn(work)?)
}

async fn run(
    settings: Settings,
    shared: &Arc<Shared>,
    commands: Commands,
    listener: std::os::unix::net::UnixListener,
) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let link = Link { settings, shared: shared.clone(), commands, known: RefCell::default() };
    tokio::select! {
        () = shared.stop.notified() => {}
        () = link.listen(listener) => {}
        () = link.follow() => {}
    }
    Ok(())
}

/// What edgecore told us, by `<ns>/<name>`.
#[derive(Default)]
struct Known {
    devices: BTreeMap<String, Device>,
    models: BTreeMap<String, DeviceModel>,
}

struct Link {
    settings: Settings,
    shared: Arc<Shared>,
    commands: Commands,
    known: RefCell<Known>,
}

fn id(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn protocol(device: &Device) -> &str {
    let protocol = device.spec.as_ref().and_then(|spec| spec.protocol.as_ref());
    protocol.map_or("", |protocol| protocol.protocol_name.as_str())
}

impl Link {
    /// Serves edgecore's calls.
    async fn listen(&self, listener: UnixListener) {
        let service = |path: String, message: Bytes| std::future::ready(self.called(&path, &message));
        let mut connections = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = listener.accept(), if connections.len() < DMI_CONNECTIONS_MAX => match accepted {
                    Ok((stream, _)) => connections.push(serve(stream, MESSAGE_BYTES_MAX, &service)),
                    // No descriptors are free; they may be soon.
                    Err(_) => sleep(Duration::from_millis(RETRY_DELAY_MS_MIN)).await,
                },
                Some(()) = connections.next(), if !connections.is_empty() => {}
            }
        }
    }

    fn called(&self, path: &str, message: &[u8]) -> Result<Bytes, Refusal> {
        let missing = || Refusal::new(code::INVALID_ARGUMENT, "the request names nothing");
        Ok(match path.strip_prefix(MAPPER) {
            Some("RegisterDevice") => {
                let device = decode::<DeviceRequest>(message)?.device.ok_or_else(missing)?;
                let answer = NamedRequest { name: device.name.clone(), namespace: device.namespace.clone() };
                self.device(device)?;
                frame(&answer)
            }
            Some("UpdateDevice") => {
                self.device(decode::<DeviceRequest>(message)?.device.ok_or_else(missing)?)?;
                frame(&Empty {})
            }
            Some("RemoveDevice") => {
                let NamedRequest { name, namespace } = decode(message)?;
                self.removed(&id(&namespace, &name));
                frame(&Empty {})
            }
            Some(method @ ("CreateDeviceModel" | "UpdateDeviceModel")) => {
                let model = decode::<ModelRequest>(message)?.model.ok_or_else(missing)?;
                let named = NamedRequest { name: model.name.clone(), namespace: model.namespace.clone() };
                self.model(model)?;
                if method == "CreateDeviceModel" { frame(&named) } else { frame(&Empty {}) }
            }
            Some("RemoveDeviceModel") => {
                let NamedRequest { name, namespace } = decode(message)?;
                self.known.borrow_mut().models.remove(&id(&namespace, &name));
                frame(&Empty {})
            }
            Some("GetDevice") => {
                let NamedRequest { name, namespace } = decode(message)?;
                let device = self.shared.outbox().device(&id(&namespace, &name));
                let device =
                    device.ok_or_else(|| Refusal::new(code::NOT_FOUND, format!("no device {name}")))?;
                frame(&DeviceRequest { device: Some(device) })
            }
            _ => return Err(Refusal::new(code::UNIMPLEMENTED, format!("unknown method {path}"))),
        })
    }

    fn device(&self, device: Device) -> Result<(), Refusal> {
        let protocol = protocol(&device);
        if !self.settings.protocols.iter().any(|ours| ours == protocol) {
            let message =
                format!("this mapper serves {}, not {protocol:?}", self.settings.protocols.join(", "));
            return Err(Refusal::new(code::FAILED_PRECONDITION, message));
        }
        let id = id(&device.namespace, &device.name);
        let mut known = self.known.borrow_mut();
        if known.devices.len() >= DEVICES_MAX && !known.devices.contains_key(&id) {
            let message = format!("{DEVICES_MAX} devices are driven already");
            return Err(Refusal::new(code::RESOURCE_EXHAUSTED, message));
        }
        known.devices.insert(id, device.clone());
        self.describe(&known, &device);
        Ok(())
    }

    fn model(&self, model: DeviceModel) -> Result<(), Refusal> {
        let mut known = self.known.borrow_mut();
        let model_id = id(&model.namespace, &model.name);
        if known.models.len() >= DMI_MODELS_MAX && !known.models.contains_key(&model_id) {
            let message = format!("{DMI_MODELS_MAX} models are known already");
            return Err(Refusal::new(code::RESOURCE_EXHAUSTED, message));
        }
        known.models.insert(model_id.clone(), model);
        for device in known.devices.values().filter(|device| model_of(device) == model_id) {
            self.describe(&known, device);
        }
        Ok(())
    }

    fn removed(&self, id: &str) {
        self.shared.outbox().forget(id);
        if let Some(device) = self.known.borrow_mut().devices.remove(id) {
            let (protocol, id) = (protocol(&device).to_owned(), id.to_owned());
            self.commands.send(Command::Description { protocol, id, payload: Vec::new() });
        }
    }

    fn describe(&self, known: &Known, device: &Device) {
        let description = convert::description(device, known.models.get(&model_of(device)));
        self.shared.outbox().desire(device);
        self.commands.send(Command::Description {
            protocol: protocol(device).to_owned(),
            id: id(&device.namespace, &device.name),
            payload: description.to_string().into_bytes(),
        });
    }

    /// Registers, reports, and begins anew when edgecore goes.
    async fn follow(&self) {
        let (mut delay_ms, mut said) = (RETRY_DELAY_MS_MIN, false);
        let edgecore = self.settings.edgecore.display();
        loop {
            let error = match self.connect().await {
                Ok(mut channel) => match self.register(&mut channel).await {
                    Ok(()) => {
                        eprintln!("mapper: registered at {edgecore}");
                        (delay_ms, said) = (RETRY_DELAY_MS_MIN, false);
                        self.commands.send(Command::Up);
                        let error = self.report(&mut channel).await;
                        self.commands.send(Command::Down);
                        error
                    }
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if !std::mem::replace(&mut said, true) {
                eprintln!(
                    "mapper: edgecore does not answer at {edgecore}: {error}; devices go on, it is tried again"
                );
            }
            sleep(Duration::from_millis(delay_ms)).await;
            delay_ms = (delay_ms * 2).min(RETRY_DELAY_MS_MAX);
        }
    }

    async fn connect(&self) -> Result<Channel<UnixStream>, CallError> {
        let stream = UnixStream::connect(&self.settings.edgecore).await;
        Channel::open(stream.map_err(|error| CallError::Broken(error.to_string()))?).await
    }

    /// For each protocol: its answer is the whole truth about that protocol's devices.
    async fn register(&self, channel: &mut Channel<UnixStream>) -> Result<(), CallError> {
        let mut fresh = Known::default();
        let mut kinglet = false;
        for protocol in &self.settings.protocols {
            let mapper = MapperInfo {
                name: format!("{}-{protocol}", self.settings.name),
                version: env!("CARGO_PKG_VERSION").into(),
                api_version: "v1beta1".into(),
                protocol: protocol.clone(),
                address: self.settings.listen.as_os_str().as_encoded_bytes().to_vec(),
                state: "ok".into(),
            };
            let request = MapperRegisterRequest { with_data: true, mapper: Some(mapper) };
            let answer: MapperRegisterResponse = call(channel, "MapperRegister", &request).await?;
            kinglet |= answer.kinglet;
            let models = answer.model_list.into_iter().take(DMI_MODELS_MAX);
            fresh.models.extend(models.map(|model| (id(&model.namespace, &model.name), model)));
            let devices = answer.device_list.into_iter().filter(|device| self::protocol(device) == protocol);
            fresh.devices.extend(devices.map(|device| (id(&device.namespace, &device.name), device)));
        }
        self.shared.outbox().begin(kinglet, |id| fresh.devices.contains_key(id));
        for device in fresh.devices.values() {
            self.describe(&fresh, device);
        }
        for protocol in &self.settings.protocols {
            let ids = fresh.devices.iter().filter(|(_, device)| self::protocol(device) == protocol);
            let ids: Vec<&String> = ids.map(|(id, _)| id).collect();
            let payload = json!({ "devices": ids }).to_string().into_bytes();
            self.commands.send(Command::Inventory { protocol: protocol.clone(), payload });
        }
        *self.known.borrow_mut() = fresh;
        Ok(())
    }

    /// Until the connection ends.
    async fn report(&self, channel: &mut Channel<UnixStream>) -> CallError {
        let ended = || CallError::Broken("it closed the connection".into());
        loop {
            let report = self.shared.outbox().take();
            let Some(report) = report else {
                tokio::select! {
                    () = channel.closed() => return ended(),
                    () = self.shared.news.notified() => continue,
                }
            };
            let result: Result<Empty, CallError> = match &report {
                Report::Values(values) => call(channel, "ReportDeviceStatus", values).await,
                Report::State(state) => call(channel, "ReportDeviceStates", state).await,
            };
            let pause = match result {
                Ok(Empty {}) => REPORT_PAUSE,
                Err(CallError::Refused(refusal)) => {
                    if refusal.code == code::INVALID_ARGUMENT {
                        eprintln!("mapper: edgecore does not take a report: {refusal}");
                    } else {
                        // Too many calls: KubeEdge says so with code UNKNOWN.
                        self.shared.outbox().again(&report);
                    }
                    Duration::from_millis(DMI_REFUSED_PAUSE_MS)
                }
                Err(error) => {
                    self.shared.outbox().again(&report);
                    return error;
                }
            };
            tokio::select! {
                () = channel.closed() => return ended(),
                () = sleep(pause) => {}
            }
        }
    }
}

fn model_of(device: &Device) -> String {
    id(&device.namespace, device.spec.as_ref().map_or("", |spec| &spec.device_model_reference))
}

async fn call<A: Body>(
    channel: &mut Channel<UnixStream>,
    method: &str,
    request: &impl Body,
) -> Result<A, CallError> {
    let path = format!("{MANAGER}{method}");
    match timeout(Duration::from_secs(DMI_CALL_S_MAX), channel.call(&path, request)).await {
        Ok(answered) => answered,
        Err(_) => Err(CallError::Broken(format!("no answer to {method} within {DMI_CALL_S_MAX} s"))),
    }
}
