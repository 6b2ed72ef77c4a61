//! The book alone, then the whole module between a bus and a mapper that speaks gRPC.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use dmi::{
    MANAGER, MAPPER,
    grpc::{CallError, Channel, Refusal, code, decode, frame, serve},
    messages::{
        Device, DeviceRequest, DeviceStatus, Empty, MapperInfo, MapperRegisterRequest,
        MapperRegisterResponse, ModelRequest, NamedRequest, ReportDeviceStatesRequest,
        ReportDeviceStatusRequest, Twin, TwinProperty,
    },
};
use rt::Drain;
use serde_json::{Value, json};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

use super::{
    book::{Action, Book, Input, Order, Outcome},
    *,
};
use crate::{
    config::Config,
    contract::{
        Bus, Handles,
        testing::{Bench, FakeBus},
    },
    limits::{DMI_CALLS_BURST, DMI_DOWN_TOLD_MS},
};

const ADDRESS: &str = "/run/m.sock";

fn description(name: &str, desired: &str, unit: &str) -> String {
    json!({"version": 1, "device": {"metadata": {"name": name, "namespace": "default"}, "spec": {
            "deviceModelRef": {"name": "meter"}, "protocol": {"protocolName": "modbus"},
            "properties": [{"name": "power", "desired": {"value": desired}}]}},
        "model": {"metadata": {"name": "meter", "namespace": "default"},
            "spec": {"properties": [{"name": "power", "type": "INT", "unit": unit, "maximum": "50"}]}}})
    .to_string()
}

fn describe(book: &mut Book, now_ms: i64, name: &str, desired: &str, unit: &str) -> Vec<Action> {
    let (id, payload) = (format!("default/{name}"), description(name, desired, unit));
    book.handle(now_ms, Input::Description { protocol: "modbus", id: &id, payload: payload.as_bytes() })
}

fn inventory(book: &mut Book, now_ms: i64, names: &[&str]) -> Vec<Action> {
    let ids: Vec<String> = names.iter().map(|name| format!("default/{name}")).collect();
    let payload = json!({"devices": ids}).to_string();
    book.handle(now_ms, Input::Inventory { protocol: "modbus", payload: payload.as_bytes() })
}

fn request(protocol: &str, address: &str) -> MapperRegisterRequest {
    let mapper = MapperInfo {
        name: "meters".into(),
        protocol: protocol.into(),
        address: address.into(),
        ..MapperInfo::default()
    };
    MapperRegisterRequest { with_data: true, mapper: Some(mapper) }
}

/// The answer to a registration, and what else is done.
fn register(book: &mut Book, now_ms: i64) -> (MapperRegisterResponse, Vec<Action>) {
    let mut actions = book.handle(now_ms, Input::Register(request("modbus", ADDRESS)));
    let at = actions.iter().position(|action| matches!(action, Action::Answer(_))).unwrap();
    let Action::Answer(Ok(answer)) = actions.swap_remove(at) else { panic!() };
    (answer, actions)
}

/// Orders as text.
fn orders(actions: &[Action]) -> Vec<String> {
    let text = |action: &Action| match action {
        Action::Call { order, .. } => Some(match order {
            Order::Connect => "connect".into(),
            Order::Model { new, model } => format!("model {} {new}", model.name),
            Order::Device { new, device } => format!("device {} {new}", device.name),
            Order::RemoveDevice(named) => format!("remove {}", named.name),
            Order::RemoveModel(named) => format!("remove model {}", named.name),
        }),
        _ => None,
    };
    actions.iter().filter_map(text).collect()
}

/// Plays a mapper that answers everything with `outcome`, until there is nothing more to do.
fn play(book: &mut Book, now_ms: i64, mut actions: Vec<Action>, outcome: &Outcome) -> Vec<Action> {
    let mut all = Vec::new();
    while let Some(Action::Call { generation, .. }) =
        actions.iter().find(|action| matches!(action, Action::Call { .. }))
    {
        let generation = *generation;
        all.append(&mut actions);
        let input = Input::Done { protocol: "modbus", generation, outcome: outcome.clone() };
        actions = book.handle(now_ms, input);
        assert!(all.len() < 100, "it does not end");
    }
    all.append(&mut actions);
    all
}

fn states(actions: &[Action]) -> Vec<Value> {
    let published = actions.iter().filter_map(|action| match action {
        Action::Publish { topic, payload } if topic.ends_with("/state/update") => {
            Some(serde_json::from_str(payload).unwrap())
        }
        _ => None,
    });
    published.collect()
}

fn record(actions: &[Action]) -> Option<Bytes> {
    actions.iter().rev().find_map(|action| match action {
        Action::Save { record, .. } => Some(record.clone()),
        _ => None,
    })
}

#[test]
fn changes_go_to_the_mapper_one_by_one_and_survive_a_restart() {
    let mut book = Book::default();
    describe(&mut book, 0, "a", "1", "W");
    describe(&mut book, 0, "b", "1", "W");
    inventory(&mut book, 0, &["a", "b"]);
    let (answer, actions) = register(&mut book, 0);
    assert_eq!((answer.device_list.len(), answer.model_list.len()), (2, 1));
    assert_eq!(orders(&actions), ["connect"]);
    let actions = play(&mut book, 1, actions, &Outcome::Done);
    assert_eq!(orders(&actions), ["connect"], "it knows everything already");
    let saved = record(&actions).unwrap();

    let actions = describe(&mut book, 2, "a", "2", "W");
    assert_eq!(orders(&play(&mut book, 2, actions, &Outcome::Done)), ["device a false"]);
    assert!(orders(&describe(&mut book, 2, "a", "2", "W")).is_empty(), "said twice");
    // A model counts for its devices: the newest description has it.
    let actions = describe(&mut book, 3, "b", "1", "kW");
    let done = orders(&play(&mut book, 3, actions, &Outcome::Done));
    assert_eq!(done, ["model meter false", "device a false", "device b false"]);
    let actions = describe(&mut book, 3, "a", "2", "kW");
    assert!(orders(&actions).is_empty());
    let actions = describe(&mut book, 4, "c", "1", "kW");
    assert_eq!(orders(&play(&mut book, 4, actions, &Outcome::Done)), ["device c true"]);
    let actions = inventory(&mut book, 5, &["b", "c"]);
    assert_eq!(orders(&play(&mut book, 5, actions, &Outcome::Done)), ["remove a"]);
    let actions = inventory(&mut book, 6, &[]);
    let actions = play(&mut book, 6, actions, &Outcome::Done);
    assert_eq!(orders(&actions), ["remove b", "remove c", "remove model meter"]);

    // A new edgecore: it remembers what the mapper knows, and removes nothing before it has seen a list.
    let mut book = Book::new(0, vec![("modbus".into(), saved)]);
    let actions = book.handle(0, Input::Tick);
    let actions = play(&mut book, 0, actions, &Outcome::Done);
    assert_eq!(orders(&actions), ["connect"]);
    let actions = describe(&mut book, 1, "a", "1", "W");
    assert!(orders(&actions).is_empty());
    let actions = describe(&mut book, 1, "b", "5", "W");
    assert_eq!(orders(&play(&mut book, 1, actions, &Outcome::Done)), ["device b false"]);
    let actions = inventory(&mut book, 2, &["b"]);
    assert_eq!(orders(&play(&mut book, 2, actions, &Outcome::Done)), ["remove a"]);
}

/// Lists and descriptions come by two subscriptions, and a list that the broker kept may come behind the description that is newer.
#[test]
fn a_list_of_before_the_start_takes_no_device_away() {
    let mut book = Book::new(0, Vec::new());
    describe(&mut book, 1, "a", "1", "C");
    describe(&mut book, 1, "b", "1", "C");
    inventory(&mut book, 2, &["a"]);
    assert_eq!(register(&mut book, 3).0.device_list.len(), 1);
    inventory(&mut book, 4, &["a", "b"]);
    assert_eq!(register(&mut book, 5).0.device_list.len(), 2, "its description does not come again");
}

#[test]
fn a_mapper_that_is_gone_is_told_and_tried_again() {
    let mut book = Book::default();
    describe(&mut book, 0, "a", "1", "W");
    let (_, actions) = register(&mut book, 0);
    let broken = Outcome::Broken("no such file".into());
    let actions = play(&mut book, 0, actions, &broken);
    assert!(states(&actions).is_empty(), "its socket comes after its registration");
    let (mut tries, mut now_ms, mut told) = (0, 0, Vec::new());
    while now_ms < 120_000 {
        now_ms = book.deadline_ms().unwrap();
        let actions = book.handle(now_ms, Input::Tick);
        tries += orders(&actions).len();
        told.extend(play(&mut book, now_ms, actions, &broken));
    }
    assert!((6..=12).contains(&tries), "{tries} tries in two minutes");
    let reason = "mapper meters does not answer at /run/m.sock; is it running?";
    assert_eq!(states(&told), [json!({"event_id": "", "state": "unknown", "reason": reason})]);
    let twin = told.iter().find_map(|action| match action {
        Action::Publish { topic, payload } if topic == "$hw/events/device/default/a/twin/update" => {
            Some(payload)
        }
        _ => None,
    });
    let twin: Value = serde_json::from_str(twin.unwrap()).unwrap();
    assert_eq!(twin["twin"], json!({"power": {"metadata": {"quality": "disconnected"}}}));
    // Back at the same socket: the reason goes, and what changed meanwhile is told.
    describe(&mut book, now_ms, "a", "2", "W");
    let at = book.deadline_ms().unwrap();
    let actions = book.handle(at, Input::Tick);
    let actions = play(&mut book, at, actions, &Outcome::Done);
    assert_eq!(orders(&actions), ["connect", "device a false"]);
    assert_eq!(states(&actions), [json!({"event_id": "", "state": "unknown", "reason": ""})]);
    // It ends while nothing is to be told.
    let generation = 1;
    book.handle(at, Input::Lost { protocol: "modbus", generation });
    let actions = book.handle(at + DMI_DOWN_TOLD_MS, Input::Tick);
    assert_eq!(states(&actions).len(), 1);
    // It registers anew; what is left of the old connection is of no interest.
    let (answer, actions) = register(&mut book, at + 9000);
    assert_eq!(answer.device_list.len(), 1);
    assert_eq!(states(&actions).len(), 1);
    book.handle(at + 9001, Input::Lost { protocol: "modbus", generation });
    let actions = play(&mut book, at + 9001, actions, &Outcome::Done);
    assert!(record(&actions).is_some() && book.deadline_ms().is_none(), "it is there");
}

#[test]
fn what_a_mapper_refuses_is_the_device_s_state() {
    let mut book = Book::default();
    inventory(&mut book, 0, &[]);
    let (_, actions) = register(&mut book, 0);
    play(&mut book, 0, actions, &Outcome::Done);
    let actions = describe(&mut book, 1, "a", "1", "W");
    let actions = play(&mut book, 1, actions, &Outcome::Refused("no such register".into()));
    assert_eq!(orders(&actions), ["model meter true", "device a true"], "once, until it changes");
    let reason = "mapper meters refused the device: no such register";
    assert_eq!(states(&actions), [json!({"event_id": "", "state": "unhealthy", "reason": reason})]);
    let actions = describe(&mut book, 2, "a", "2", "W");
    let actions = play(&mut book, 2, actions, &Outcome::Done);
    assert_eq!(orders(&actions), ["device a false"]);
    assert_eq!(states(&actions).len(), 1, "the reason goes");
    for (protocol, address) in [("", "/s"), ("two words/x", "/s"), ("modbus", "s"), ("modbus", "")] {
        let actions = book.handle(3, Input::Register(request(protocol, address)));
        let Some(Action::Answer(Err(refusal))) = actions.first() else { panic!("{protocol} {address}") };
        assert_eq!(refusal.code, code::INVALID_ARGUMENT);
    }
    let mut full = 0;
    for protocol in 0..100 {
        let actions = book.handle(4, Input::Register(request(&format!("p{protocol}"), "/s")));
        full += usize::from(matches!(actions.first(), Some(Action::Answer(Err(_)))));
    }
    assert_eq!(full, 100 + 1 - crate::limits::DMI_MAPPERS_MAX);
}

#[test]
fn a_wish_beyond_the_model_is_not_sent_and_the_one_before_stands() {
    let mut book = Book::default();
    describe(&mut book, 0, "a", "1", "W");
    let actions = describe(&mut book, 0, "a", "51", "W");
    assert!(actions.is_empty(), "nobody's mapper is here");
    let (answer, actions) = register(&mut book, 0);
    let desired =
        |device: &Device| device.spec.as_ref().unwrap().properties[0].desired.clone().unwrap().value;
    assert_eq!(desired(&answer.device_list[0]), "1");
    let reason = "desired value of power: 51 W is above the model's maximum 50 W";
    assert_eq!(states(&actions), [json!({"event_id": "", "state": "unhealthy", "reason": reason})]);
    let refusals = actions.iter().find_map(|action| match action {
        Action::Refusals(refusals) => Some(refusals.clone()),
        _ => None,
    });
    let refusals = refusals.unwrap();
    let state = |state: &str| ReportDeviceStatesRequest {
        device_name: "a".into(),
        device_namespace: "default".into(),
        state: state.into(),
        ..ReportDeviceStatesRequest::default()
    };
    let told = |said: &str| states(&[report::states(&state(said), &refusals).unwrap()])[0].clone();
    assert_eq!((&told("ok")["state"], &told("ok")["reason"]), (&json!("unhealthy"), &json!(reason)));
    assert_eq!(told("offline")["state"], "offline");
    play(&mut book, 1, actions, &Outcome::Done);
    let actions = describe(&mut book, 2, "a", "50", "W");
    let actions = play(&mut book, 2, actions, &Outcome::Done);
    assert_eq!(orders(&actions), ["device a false"]);
    assert_eq!(states(&actions).len(), 1, "the reason goes");
}

#[test]
fn what_edgecore_pushes_itself_is_not_a_mapper_s_to_push() {
    let mut book = Book::default();
    let mut described: Value = serde_json::from_str(&description("a", "1", "W")).unwrap();
    let push = json!({"mqtt": {"topic": "t"}, "http": {"port": 80}, "dbMethod": {"influxdb2": {}}});
    described["device"]["spec"]["properties"][0]["pushMethod"] = push;
    let second = json!({"name": "more", "pushMethod": {"otel": {}, "dbMethod": {"redis": {}}}});
    described["device"]["spec"]["properties"].as_array_mut().unwrap().push(second);
    let payload = described.to_string();
    let input = Input::Description { protocol: "modbus", id: "default/a", payload: payload.as_bytes() };
    book.handle(0, input);
    let (answer, _) = register(&mut book, 0);
    let properties = &answer.device_list[0].spec.as_ref().unwrap().properties;
    assert_eq!(properties[0].push_method, None);
    let left = properties[1].push_method.as_ref().unwrap();
    assert!(left.otel.is_none() && left.db_method.as_ref().unwrap().redis.is_some());
}

/// A mapper: what it was called for, as text.
struct Double {
    path: PathBuf,
    calls: mpsc::UnboundedReceiver<String>,
    task: tokio::task::JoinHandle<()>,
}

impl Double {
    fn start(path: PathBuf) -> Double {
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let (tx, calls) = mpsc::unbounded_channel();
        let service = Arc::new(move |path: String, message: Bytes| {
            let tx = tx.clone();
            async move {
                let device = |device: Option<Device>| device.unwrap_or_default();
                let text = match path.strip_prefix(MAPPER).unwrap_or_default() {
                    method @ ("RegisterDevice" | "UpdateDevice") => {
                        let device = device(decode::<DeviceRequest>(&message)?.device);
                        let spec = device.spec.unwrap_or_default();
                        let desired = spec.properties[0].desired.clone().unwrap_or_default().value;
                        format!("{method} {}/{} {desired}", device.namespace, device.name)
                    }
                    method @ ("CreateDeviceModel" | "UpdateDeviceModel") => {
                        format!(
                            "{method} {}",
                            decode::<ModelRequest>(&message)?.model.unwrap_or_default().name
                        )
                    }
                    method => format!("{method} {}", decode::<NamedRequest>(&message)?.name),
                };
                tx.send(text).map_err(|_| Refusal::new(code::UNAVAILABLE, "gone"))?;
                Ok(frame(&Empty {}))
            }
        });
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                open.spawn(async move { serve(stream, 100_000, &*service).await });
            }
        });
        Double { path, calls, task }
    }

    async fn called(&mut self) -> String {
        tokio::time::timeout(Duration::from_secs(20), self.calls.recv()).await.unwrap().unwrap()
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Until it is there.
async fn dial(path: &std::path::Path) -> Channel<UnixStream> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(stream) = UnixStream::connect(path).await {
            return Channel::open(stream).await.unwrap();
        }
        assert!(tokio::time::Instant::now() < deadline, "no socket at {}", path.display());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn start(
    handles: &Handles,
    folder: &std::path::Path,
) -> (Drain, tokio::task::JoinHandle<anyhow::Result<()>>) {
    let mut cfg = Config::default();
    cfg.modules.device_twin.dmi_sock_path = folder.into();
    let drain = Drain::new();
    (drain.clone(), tokio::spawn(run(handles.clone(), Arc::new(cfg), drain)))
}

async fn publish(bus: &FakeBus, topic: &str, payload: String) {
    bus.publish(&format!("$kinglet/mapper/modbus/{topic}"), payload.into(), true).await.unwrap();
}

#[tokio::test]
async fn a_mapper_over_its_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new();
    let (bus, handles) = (bench.bus.clone(), bench.handles.clone());
    publish(&bus, "device/default/a", description("a", "1", "W")).await;
    publish(&bus, "devices", json!({"devices": ["default/a"]}).to_string()).await;
    let (drain, running) = start(&handles, dir.path());
    let path = dir.path().join("dmi.sock");
    let mut channel = dial(&path).await;
    let mut mapper = Double::start(dir.path().join("m.sock"));
    let address = mapper.path.display().to_string();
    // Its descriptions may come after it; then it is told them.
    let answer: MapperRegisterResponse =
        channel.call(&format!("{MANAGER}MapperRegister"), &request("modbus", &address)).await.unwrap();
    if answer.device_list.is_empty() {
        assert_eq!(mapper.called().await, "CreateDeviceModel meter");
        assert_eq!(mapper.called().await, "RegisterDevice default/a 1");
    }
    publish(&bus, "device/default/a", description("a", "2", "W")).await;
    assert_eq!(mapper.called().await, "UpdateDevice default/a 2");

    let reported = |value: &str, metadata: &[(&str, &str)]| {
        let metadata: BTreeMap<String, String> =
            metadata.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let twin = |value: &str| Some(TwinProperty { value: value.into(), metadata: metadata.clone() });
        let twins =
            vec![Twin { property_name: "power".into(), observed_desired: twin("1"), reported: twin(value) }];
        ReportDeviceStatusRequest {
            device_name: "a".into(),
            device_namespace: "default".into(),
            reported_device: Some(DeviceStatus { twins, ..DeviceStatus::default() }),
        }
    };
    let report = format!("{MANAGER}ReportDeviceStatus");
    let stamped = reported("42", &[("timestamp", "1700000000123"), ("type", "int"), ("quality", "stale")]);
    let Empty {} = channel.call(&report, &stamped).await.unwrap();
    let state = ReportDeviceStatesRequest {
        device_name: "a".into(),
        device_namespace: "default".into(),
        state: "online".into(),
        reason: "warm".into(),
    };
    let Empty {} = channel.call(&format!("{MANAGER}ReportDeviceStates"), &state).await.unwrap();
    let json_of = |topic: &str| -> Value { serde_json::from_slice(bus.on(topic).last().unwrap()).unwrap() };
    assert_eq!(
        json_of("$hw/events/device/default/a/twin/update")["twin"],
        json!({"power": {"actual": {"value": "42", "metadata": {"timestamp": 1_700_000_000_123_i64}},
            "metadata": {"quality": "stale"}}}),
        "no wish comes from a mapper"
    );
    let state = json_of("$hw/events/device/default/a/state/update");
    assert_eq!((&state["state"], &state["reason"]), (&json!("online"), &json!("warm")));

    for (path, bad) in [
        (report.as_str(), ReportDeviceStatusRequest::default()),
        (report.as_str(), ReportDeviceStatusRequest { device_name: "a/+/#".into(), ..reported("1", &[]) }),
        ("/v1beta1.DeviceManagerService/Fly", reported("1", &[])),
    ] {
        let refused = channel.call::<Empty>(path, &bad).await;
        assert!(matches!(refused, Err(CallError::Refused(_))), "{path}");
    }
    // The mapper ends and comes back; then edgecore does. Nobody registers again, and nothing is lost.
    drop(mapper);
    publish(&bus, "device/default/a", description("a", "3", "W")).await;
    let mut mapper = Double::start(dir.path().join("m.sock"));
    assert_eq!(mapper.called().await, "UpdateDevice default/a 3");
    drain.start();
    running.await.unwrap().unwrap();
    let bus = FakeBus::new();
    let handles = Handles { bus: bus.clone(), ..handles };
    publish(&bus, "device/default/a", description("a", "4", "W")).await;
    let (drain, running) = start(&handles, dir.path());
    assert_eq!(mapper.called().await, "UpdateDevice default/a 4");
    publish(&bus, "devices", json!({"devices": []}).to_string()).await;
    assert_eq!(mapper.called().await, "RemoveDevice a");
    // A mapper that runs wild.
    let (mut channel, mut refused) = (dial(&path).await, 0);
    for _ in 0..DMI_CALLS_BURST as usize * 2 {
        if let Err(CallError::Refused(refusal)) = channel.call::<Empty>(&report, &reported("1", &[])).await {
            assert_eq!(refusal.code, code::RESOURCE_EXHAUSTED);
            refused += 1;
        }
    }
    assert!(refused > 0, "it is held back");
    drain.start();
    running.await.unwrap().unwrap();
    assert!(!path.exists());
}
