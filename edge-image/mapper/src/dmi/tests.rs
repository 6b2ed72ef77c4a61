//! The outbox alone, then the whole mode between a double of edgecore and a driver.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use dmi::{
    MANAGER, MAPPER, convert,
    grpc::{CallError, Channel, Refusal, code, decode, frame, serve},
    messages::{
        DeviceRequest, Empty, MapperRegisterRequest, MapperRegisterResponse, ModelRequest, NamedRequest,
        ReportDeviceStatesRequest, ReportDeviceStatusRequest,
    },
};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};

use super::{
    outbox::{Outbox, Report},
    *,
};
use crate::{
    driver::{Driver, Reading, Wait},
    engine::Opener,
    plan::Plan,
};

const DEADLINE: Duration = Duration::from_secs(20);

fn description(desired: &str, max: &str) -> Value {
    json!({"device": {"metadata": {"name": "s", "namespace": "default"}, "spec": {
            "deviceModelRef": {"name": "m"},
            "protocol": {"protocolName": "serial", "configData": {"path": "/dev/ttyS0", "baudRate": 9600}},
            "properties": [
                {"name": "level", "reportToCloud": true},
                {"name": "valve", "reportToCloud": true, "desired": {"value": desired},
                 "visitors": {"configData": {"write": "v={}"}}}]}},
        "model": {"metadata": {"name": "m", "namespace": "default"}, "spec": {"properties": [
            {"name": "level", "type": "FLOAT"},
            {"name": "valve", "type": "INT", "minimum": "0", "maximum": max, "accessMode": "ReadWrite"}]}}})
}

fn values(report: Option<Report>) -> Vec<String> {
    let Some(Report::Values(values)) = report else { panic!("{report:?}") };
    let twins = values.reported_device.unwrap().twins;
    let text = |twin: dmi::messages::Twin| {
        let (desired, reported) = (twin.observed_desired.unwrap(), twin.reported.unwrap());
        format!("{}={} of {:?}", twin.property_name, reported.value, desired.value)
    };
    twins.into_iter().map(text).collect()
}

#[test]
fn the_newest_values_wait_in_turns() {
    let mut outbox = Outbox::default();
    let (device, _) = convert::from_description(&description("5", "9")).unwrap();
    outbox.desire(&device);
    let twin = |id: &str| format!("$hw/events/device/{id}/twin/update");
    for level in 0..1000 {
        let payload = json!({"twin": {"level": {"actual": {"value": level.to_string(), "metadata": {"timestamp": 7}}}}});
        assert!(outbox.tell(&twin("default/s"), &payload.to_string()));
    }
    outbox.tell(
        &twin("default/s"),
        r#"{"twin":{"valve":{"actual":{"value":"5"},"metadata":{"quality":"good"}}}}"#,
    );
    outbox.tell("$hw/events/device/default/t/state/update", r#"{"state":"online","reason":"so"}"#);
    assert!(!outbox.tell("$hw/other", "{}") && !outbox.tell(&twin("default/s"), "nonsense"));
    let first = outbox.take();
    assert_eq!(values(first.clone()), ["level=999 of \"\"", "valve=5 of \"5\""]);
    // Refused: the other device has its turn, then the newest values come again.
    outbox.again(&first.unwrap());
    outbox.tell(&twin("default/s"), r#"{"twin":{"level":{"actual":{"value":"3"}}}}"#);
    let Some(Report::State(state)) = outbox.take() else { panic!() };
    assert_eq!(
        (state.device_name.as_str(), state.state.as_str(), state.reason.as_str()),
        ("t", "online", "")
    );
    assert_eq!(values(outbox.take()), ["level=3 of \"\"", "valve=5 of \"5\""]);
    assert_eq!(outbox.take(), None);
    // A property without a value: KubeEdge has no word for it, ours has.
    let gone = r#"{"twin":{"level":{"metadata":{"quality":"disconnected"}}}}"#;
    outbox.tell(&twin("default/s"), gone);
    assert_eq!(outbox.take(), None);
    outbox.begin(true, |id| id == "default/s");
    outbox.tell(&twin("default/s"), gone);
    assert_eq!(values(outbox.take()), ["level= of \"\""]);
    assert!(outbox.device("default/t").is_none());
    assert_eq!(outbox.device("default/s").unwrap().status.unwrap().twins.len(), 2);
    outbox.forget("default/s");
    assert!(outbox.device("default/s").is_none());
}

/// A device that reports what it was set to, and 1.5.
struct Echo(Sender<String>);

impl Driver for Echo {
    fn waits(&self, _: &mut Vec<Wait>) {}
    fn ready(&mut self, _: u64, _: &mut Vec<Reading>) -> Result<(), String> {
        Ok(())
    }
    fn tick(&mut self, _: u64, _: &mut Vec<Reading>) -> Result<(), String> {
        Ok(())
    }
    fn deadline_ms(&self) -> Option<u64> {
        None
    }
    fn set(
        &mut self,
        _: u64,
        property: usize,
        value: &str,
        readings: &mut Vec<Reading>,
    ) -> Result<(), String> {
        self.0.send(format!("set {value}")).map_err(|error| error.to_string())?;
        readings.push(Reading::good(property, value));
        Ok(())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.send("closed".into());
    }
}

struct EchoOpener(Sender<String>);

impl Opener for EchoOpener {
    fn open(
        &mut self,
        now_ms: u64,
        _: &str,
        plan: &Plan,
        readings: &mut Vec<Reading>,
    ) -> Result<Box<dyn Driver>, String> {
        let mut echo = Echo(self.0.clone());
        readings.push(Reading::good(0, "1.5"));
        if let Some(desired) = &plan.properties[1].desired {
            echo.set(now_ms, 1, desired, readings)?;
        }
        Ok(Box::new(echo))
    }
    fn release(&mut self, _: &str, _: &[&str]) {}
}

/// Edgecore's half: registrations are answered with `devices`, reports go to `said`. Every third report is refused as KubeEdge
/// refuses too many.
fn edgecore(
    path: PathBuf,
    devices: Arc<Mutex<Vec<Value>>>,
    said: Sender<String>,
    stop: Arc<AtomicBool>,
) -> thread::JoinHandle<()> {
    let _ = std::fs::remove_file(&path);
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let calls = Arc::new(Mutex::new(0));
        let service = Arc::new(move |path: String, message: Bytes| {
            let (devices, said, calls) = (devices.clone(), said.clone(), calls.clone());
            async move {
                let method = path.strip_prefix(MANAGER).unwrap_or_default();
                if method == "MapperRegister" {
                    let mapper = decode::<MapperRegisterRequest>(&message)?.mapper.unwrap();
                    let _ = said.send(format!("register {} {}", mapper.name, mapper.protocol));
                    let all: Vec<_> = devices
                        .lock()
                        .unwrap()
                        .iter()
                        .map(|d| convert::from_description(d).unwrap())
                        .collect();
                    let (device_list, model_list) = all.into_iter().unzip();
                    return Ok(frame(&MapperRegisterResponse { device_list, model_list, kinglet: false }));
                }
                *calls.lock().unwrap() += 1;
                if *calls.lock().unwrap() % 3 == 0 {
                    return Err(Refusal::new(code::UNKNOWN, "too many request"));
                }
                let text = match method {
                    "ReportDeviceStates" => decode::<ReportDeviceStatesRequest>(&message)?.state,
                    _ => {
                        let twins =
                            decode::<ReportDeviceStatusRequest>(&message)?.reported_device.unwrap().twins;
                        let text = |twin: &dmi::messages::Twin| {
                            format!("{}={}", twin.property_name, twin.reported.clone().unwrap().value)
                        };
                        twins.iter().map(text).collect::<Vec<_>>().join(" ")
                    }
                };
                let _ = said.send(text);
                Ok(frame(&Empty {}))
            }
        });
        runtime.block_on(async {
            let listener = UnixListener::from_std(listener).unwrap();
            let mut open = tokio::task::JoinSet::new();
            while !stop.load(Ordering::Relaxed) {
                let pause = tokio::time::sleep(Duration::from_millis(10));
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => { let service = service.clone(); open.spawn(async move { serve(stream, 100_000, &*service).await }); }
                    () = pause => {}
                }
            }
        });
    })
}

fn wait_for(said: &Receiver<String>, wanted: &[&str]) {
    let deadline = Instant::now() + DEADLINE;
    let mut missing: Vec<&str> = wanted.to_vec();
    while !missing.is_empty() {
        let text = said.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        let text = text.unwrap_or_else(|_| panic!("missing: {missing:?}"));
        missing.retain(|wanted| !text.contains(wanted));
    }
}

/// One call as edgecore makes it: a connection for it alone.
fn call(path: &Path, method: &str, request: &impl dmi::grpc::Body) -> Result<NamedRequest, CallError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut channel = Channel::open(UnixStream::connect(path).await.unwrap()).await?;
        channel.call(&format!("{MAPPER}{method}"), request).await
    })
}

#[test]
fn devices_of_an_edgecore_that_is_killed_in_between() {
    let dir = tempfile::tempdir().unwrap();
    let (edgecore_path, listen) = (dir.path().join("dmi.sock"), dir.path().join("mapper.sock"));
    let devices = Arc::new(Mutex::new(vec![description("5", "9")]));
    let (said_tx, said) = channel();
    let (set_tx, set) = channel();
    let settings = Settings {
        edgecore: edgecore_path.clone(),
        listen: listen.clone(),
        name: "kinglet".into(),
        protocols: vec!["serial".into()],
        lines_socket: "/nonexistent".into(),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let mapper = {
        let stop = stop.clone();
        // A turn lasts until something is to be done: commands and deadlines wake it.
        thread::spawn(move || {
            run_until(&settings, EchoOpener(set_tx), || stop.load(Ordering::Relaxed)).unwrap()
        })
    };
    let start = |stopped: &Arc<AtomicBool>| {
        edgecore(edgecore_path.clone(), devices.clone(), said_tx.clone(), stopped.clone())
    };
    let stopped = Arc::new(AtomicBool::new(false));
    let running = start(&stopped);
    wait_for(&said, &["register kinglet-serial serial"]);
    wait_for(&set, &["set 5"]);
    wait_for(&said, &["online", "level=1.5 valve=5"]);
    // Changes come as calls.
    let (device, model) = convert::from_description(&description("7", "9")).unwrap();
    call(&listen, "UpdateDevice", &DeviceRequest { device: Some(device.clone()) }).unwrap();
    wait_for(&set, &["set 7"]);
    wait_for(&said, &["valve=7"]);
    let (too_much, _) = convert::from_description(&description("70", "9")).unwrap();
    call(&listen, "UpdateDevice", &DeviceRequest { device: Some(too_much) }).unwrap();
    wait_for(&said, &["unhealthy"]);
    call(&listen, "UpdateDevice", &DeviceRequest { device: Some(device.clone()) }).unwrap();
    wait_for(&said, &["online"]);
    // A model counts for its devices: the description changed, the driver is opened anew.
    call(
        &listen,
        "UpdateDeviceModel",
        &ModelRequest {
            model: Some({
                let (_, model) = convert::from_description(&description("7", "8")).unwrap();
                model
            }),
        },
    )
    .unwrap();
    wait_for(&set, &["closed", "set 7"]);
    let named = NamedRequest { name: "s".into(), namespace: "default".into() };
    let runtime_answer = call(&listen, "CreateDeviceModel", &ModelRequest { model: Some(model) }).unwrap();
    assert_eq!(runtime_answer.name, "m");
    for (method, name) in [("GetDevice", "other"), ("Fly", "s")] {
        let refused = call(&listen, method, &NamedRequest { name: name.into(), namespace: "default".into() });
        assert!(matches!(refused, Err(CallError::Refused(_))), "{method}");
    }
    let mut foreign = device;
    foreign.spec.as_mut().unwrap().protocol.as_mut().unwrap().protocol_name = "opcua".into();
    let refused = call(&listen, "RegisterDevice", &DeviceRequest { device: Some(foreign) });
    let Err(CallError::Refused(refusal)) = refused else { panic!() };
    assert!(refusal.message.contains("this mapper serves serial, not \"opcua\""));
    // Edgecore ends; the device goes on, and is told again to the next one.
    stopped.store(true, Ordering::Relaxed);
    running.join().unwrap();
    let stopped = Arc::new(AtomicBool::new(false));
    let running = start(&stopped);
    wait_for(&said, &["register kinglet-serial serial", "level=1.5 valve="]);
    call(&listen, "RemoveDevice", &named).unwrap();
    wait_for(&set, &["closed"]);
    // A third one, that knows of no device at all.
    call(
        &listen,
        "RegisterDevice",
        &DeviceRequest { device: Some(convert::from_description(&description("1", "9")).unwrap().0) },
    )
    .unwrap();
    wait_for(&set, &["set 1"]);
    stopped.store(true, Ordering::Relaxed);
    running.join().unwrap();
    devices.lock().unwrap().clear();
    let stopped = Arc::new(AtomicBool::new(false));
    let running = start(&stopped);
    wait_for(&set, &["closed"]);
    stop.store(true, Ordering::Relaxed);
    // The end of edgecore wakes the mapper, which then sees that it is to stop.
    stopped.store(true, Ordering::Relaxed);
    running.join().unwrap();
    mapper.join().unwrap();
    assert!(!listen.exists());
}
