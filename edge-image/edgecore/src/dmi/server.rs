//! `DeviceManagerService` on `dmi.sock`.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use dmi::{
    MANAGER,
    grpc::{Refusal, code, decode, frame, serve},
    limits::REPORT_BYTES_MAX,
    messages::{Empty, MapperRegisterRequest, MapperRegisterResponse},
};
use rt::TaskGroup;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot, watch},
};

use super::{book::Action, report, wish::Refusals};
use crate::{
    contract::Bus,
    limits::{DMI_CALLS_BURST, DMI_CALLS_PER_S},
};

/// A registration and where its answer goes.
pub(super) type Registration =
    (MapperRegisterRequest, oneshot::Sender<Result<MapperRegisterResponse, Refusal>>);

/// Calls that may be made now; a mapper that runs wild is refused, as KubeEdge does (there one a second, after 100).
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * DMI_CALLS_PER_S;
        self.at = now;
        self.tokens = (self.tokens + gained).min(DMI_CALLS_BURST);
        let some = self.tokens >= 1.0;
        self.tokens -= f64::from(u8::from(some));
        some
    }
}

#[derive(Clone)]
pub(super) struct Service {
    bus: Arc<dyn Bus>,
    registrations: mpsc::Sender<Registration>,
    bucket: Arc<Mutex<Bucket>>,
    refusals: watch::Receiver<Refusals>,
}

impl Service {
    pub fn new(
        bus: Arc<dyn Bus>,
        registrations: mpsc::Sender<Registration>,
        refusals: watch::Receiver<Refusals>,
    ) -> Service {
        let bucket = Bucket { tokens: DMI_CALLS_BURST, at: Instant::now() };
        Service { bus, registrations, bucket: Arc::new(Mutex::new(bucket)), refusals }
    }

    async fn call(self, path: String, message: Bytes) -> Result<Bytes, Refusal> {
        let free = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        if !free {
            let message = format!("more than {DMI_CALLS_PER_S} calls a second: report less often");
            return Err(Refusal::new(code::RESOURCE_EXHAUSTED, message));
        }
        let action = match path.strip_prefix(MANAGER) {
            Some("MapperRegister") => return self.register(decode(&message)?).await,
            Some("ReportDeviceStatus") => report::values(&decode(&message)?, &self.refusals.borrow())?,
            Some("ReportDeviceStates") => report::states(&decode(&message)?, &self.refusals.borrow())?,
            _ => return Err(Refusal::new(code::UNIMPLEMENTED, format!("unknown method {path}"))),
        };
        if let Action::Publish { topic, payload } = action {
            let published = self.bus.publish(&topic, payload.into(), false).await;
            published.map_err(|error| Refusal::new(code::UNAVAILABLE, format!("{error:#}")))?;
        }
        Ok(frame(&Empty {}))
    }

    async fn register(self, request: MapperRegisterRequest) -> Result<Bytes, Refusal> {
        let stopping = |()| Refusal::new(code::UNAVAILABLE, "edgecore is stopping");
        let (answer, answered) = oneshot::channel();
        self.registrations.send((request, answer)).await.map_err(|_| stopping(()))?;
        answered.await.map_err(|_| stopping(()))?.map(|answer| frame(&answer))
    }

    /// Serves one connection. One too many is closed: a mapper dials again.
    pub fn accept(&self, stream: UnixStream, tasks: &TaskGroup) {
        let (service, drain) = (self.clone(), tasks.drain().clone());
        let refused = tasks.spawn(async move {
            let call = |path, message| service.clone().call(path, message);
            let _ = drain.or(serve(stream, REPORT_BYTES_MAX, &call)).await;
            Ok::<(), io::Error>(())
        });
        if let Err(error) = refused {
            tracing::warn!("a mapper's connection is refused: {error}");
        }
    }
}

/// Makes the socket anew; what a process before us left is no server.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Whoever may write to it may report any value of any device.
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}
