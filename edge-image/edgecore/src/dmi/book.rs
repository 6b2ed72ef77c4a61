//! Which mapper knows what, as a plain value: descriptions and registrations in, calls out. No clock, no socket.

use std::collections::BTreeMap;

use bytes::Bytes;
use dmi::{
    convert,
    grpc::{Refusal, code},
    limits::REGISTER_ANSWER_BYTES_MAX,
    messages::{
        DbMethod, Device, DeviceModel, MapperRegisterRequest, MapperRegisterResponse, NamedRequest,
        PushMethod,
    },
};
use prost::Message;
use serde::{Deserialize, Serialize};

use super::{
    report,
    wish::{self, Refusals},
};
use crate::limits::{
    DEVICES_MAX, DMI_DOWN_TOLD_MS, DMI_MAPPERS_MAX, DMI_RETRY_DELAY_MS_MAX, DMI_RETRY_DELAY_MS_MIN,
};

#[derive(Debug)]
pub enum Input<'a> {
    /// Of the topic `$kinglet/mapper/<protocol>/device/<ns>/<name>`; empty: removed.
    Description {
        protocol: &'a str,
        id: &'a str,
        payload: &'a [u8],
    },
    /// Of the topic `$kinglet/mapper/<protocol>/devices`: the whole list.
    Inventory {
        protocol: &'a str,
        payload: &'a [u8],
    },
    Register(MapperRegisterRequest),
    /// The end of an order.
    Done {
        protocol: &'a str,
        generation: u64,
        outcome: Outcome,
    },
    /// The mapper closed its connection.
    Lost {
        protocol: &'a str,
        generation: u64,
    },
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The mapper answered with an error.
    Refused(String),
    /// There is no connection to the mapper.
    Broken(String),
}

#[derive(Debug, PartialEq)]
pub enum Action {
    /// To the mapper that registers.
    Answer(Result<MapperRegisterResponse, Refusal>),
    /// One at a time for each mapper; answered by [`Input::Done`].
    Call {
        protocol: String,
        generation: u64,
        address: String,
        order: Order,
    },
    Save {
        protocol: String,
        record: Bytes,
    },
    Forget {
        protocol: String,
    },
    Publish {
        topic: String,
        payload: String,
    },
    /// All desired values that mappers are not sent: what they report is told with them.
    Refusals(Refusals),
}

/// What a mapper is to be told.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Nothing: see whether it is there.
    Connect,
    Model {
        new: bool,
        model: Box<DeviceModel>,
    },
    Device {
        new: bool,
        device: Box<Device>,
    },
    RemoveDevice(NamedRequest),
    RemoveModel(NamedRequest),
}

#[derive(Deserialize)]
struct Inventory {
    devices: Vec<String>,
}

struct Described {
    protocol: String,
    device: Device,
    digest: u64,
    model_id: String,
    /// Desired values that the model does not allow: `device` has the accepted ones.
    refused: BTreeMap<String, String>,
    /// False: the last list does not name it. Lists and descriptions come by two subscriptions, so one of before the start may come behind
    /// the description, which comes once.
    is_listed: bool,
}

impl Described {
    fn is_of(&self, protocol: &str) -> bool {
        self.is_listed && self.protocol == protocol
    }
}

/// As the newest description of any of its devices has it.
struct Model {
    model: DeviceModel,
    digest: u64,
}

/// Devices and models by `<ns>/<name>`.
#[derive(Default)]
struct World {
    devices: BTreeMap<String, Described>,
    models: BTreeMap<String, Model>,
    /// By protocol, once it was heard.
    inventories: BTreeMap<String, Vec<String>>,
}

impl World {
    fn of<'a>(&'a self, protocol: &'a str) -> impl Iterator<Item = (&'a String, &'a Described)> {
        self.devices.iter().filter(move |(_, described)| described.is_of(protocol))
    }

    /// Of a device with its model: a mapper builds a device from its model, and must do so again when that changes.
    fn digest(&self, described: &Described) -> u64 {
        let model = self.models.get(&described.model_id).map_or(0, |model| model.digest);
        digest(&[&described.digest.to_be_bytes(), &model.to_be_bytes()])
    }

    fn forget_unused_models(&mut self) {
        let devices = &self.devices;
        self.models.retain(|id, _| devices.values().any(|described| described.model_id == *id));
    }
}

/// What is kept over a restart: the mapper need not register again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    name: String,
    address: String,
    /// What it was told, by `<ns>/<name>`: digests.
    devices: BTreeMap<String, u64>,
    models: BTreeMap<String, u64>,
}

#[derive(Default)]
struct Mapper {
    record: Record,
    dirty: bool,
    /// Rises with each registration: outcomes of calls to the one before are of no interest.
    generation: u64,
    connected: bool,
    ordered: Option<Order>,
    retry_at_ms: i64,
    retry_delay_ms: i64,
    down_since_ms: Option<i64>,
    down_told: bool,
    /// Devices that it does not take.
    refused: BTreeMap<String, String>,
}

#[derive(Default)]
pub struct Book {
    world: World,
    mappers: BTreeMap<String, Mapper>,
    /// As they were told last.
    refusals: Refusals,
    generations: u64,
}

impl Book {
    /// `records` are the local records of the last run, by protocol.
    pub fn new(now_ms: i64, records: Vec<(String, Bytes)>) -> Book {
        let mut book = Book::default();
        for (protocol, body) in records.into_iter().take(DMI_MAPPERS_MAX) {
            match serde_json::from_slice::<Record>(&body) {
                Ok(record) => {
                    let mapper = book.mapper(now_ms, record);
                    book.mappers.insert(protocol, mapper);
                }
                Err(error) => tracing::error!("the record of mapper {protocol} cannot be read: {error}"),
            }
        }
        book
    }

    fn mapper(&mut self, now_ms: i64, record: Record) -> Mapper {
        self.generations += 1;
        let down_since_ms = Some(now_ms);
        let retry_delay_ms = DMI_RETRY_DELAY_MS_MIN;
        Mapper { record, generation: self.generations, down_since_ms, retry_delay_ms, ..Mapper::default() }
    }

    pub fn handle(&mut self, now_ms: i64, input: Input<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Description { protocol, id, payload } => self.description(protocol, id, payload),
            Input::Inventory { protocol, payload } => {
                if let Ok(inventory) = serde_json::from_slice::<Inventory>(payload) {
                    let world = &mut self.world;
                    let of_it =
                        world.devices.iter_mut().filter(|(_, described)| described.protocol == protocol);
                    for (id, described) in of_it {
                        described.is_listed = inventory.devices.contains(id);
                    }
                    world.inventories.insert(protocol.into(), inventory.devices);
                }
            }
            Input::Register(request) => self.register(now_ms, request, &mut actions),
            Input::Done { protocol, generation, outcome } => {
                self.done(now_ms, protocol, generation, outcome, &mut actions);
            }
            Input::Lost { protocol, generation } => {
                if let Some(mapper) = self.mappers.get_mut(protocol)
                    && mapper.generation == generation
                {
                    mapper.lost(now_ms);
                }
            }
            Input::Tick => {}
        }
        self.proceed(now_ms, &mut actions);
        self.tell_refusals(&mut actions);
        actions
    }

    /// When [`Input::Tick`] is due.
    pub fn deadline_ms(&self) -> Option<i64> {
        let times = self.mappers.values().flat_map(|mapper| {
            let retry = (!mapper.connected && mapper.ordered.is_none()).then_some(mapper.retry_at_ms);
            let told = mapper.down_since_ms.filter(|_| !mapper.down_told);
            [retry, told.map(|since| since + DMI_DOWN_TOLD_MS)]
        });
        times.flatten().min()
    }

    fn description(&mut self, protocol: &str, id: &str, payload: &[u8]) {
        let world = &mut self.world;
        if payload.is_empty() {
            if world.devices.get(id).is_some_and(|described| described.protocol == protocol) {
                world.devices.remove(id);
                world.forget_unused_models();
                // As a whole list that does not name it would.
                if let Some(list) = world.inventories.get_mut(protocol) {
                    list.retain(|listed| listed != id);
                }
            }
            return;
        }
        if world.devices.len() >= DEVICES_MAX && !world.devices.contains_key(id) {
            return;
        }
        let read = serde_json::from_slice(payload)
            .map_err(|error| error.to_string())
            .and_then(|value| convert::from_description(&value));
        let (mut device, model) = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!("device {id} is not given to its mapper: {error}");
                return;
            }
        };
        pushed_here(&mut device);
        let (protocol, model_id) = (protocol.to_owned(), model_id(&model));
        let model_digest = digest(&[&model.encode_to_vec()]);
        let before = world.devices.get(id).filter(|before| before.protocol == protocol);
        let refused = wish::check(&mut device, &model, before.map(|before| &before.device));
        let digest = digest(&[&device.encode_to_vec()]);
        world.models.insert(model_id.clone(), Model { model, digest: model_digest });
        world
            .devices
            .insert(id.into(), Described { protocol, device, digest, model_id, refused, is_listed: true });
        world.forget_unused_models();
    }

    fn register(&mut self, now_ms: i64, request: MapperRegisterRequest, actions: &mut Vec<Action>) {
        let mapper = request.mapper.unwrap_or_default();
        let address = match check(&mapper.protocol, &mapper.address) {
            Ok(address) => address,
            Err(message) => {
                let message = format!("mapper {:?}: {message}", mapper.name);
                actions.push(Action::Answer(Err(Refusal::new(code::INVALID_ARGUMENT, message))));
                return;
            }
        };
        if !request.with_data {
            // As KubeEdge does: it is not called back.
            actions.push(Action::Answer(Ok(MapperRegisterResponse::default())));
            return;
        }
        if self.mappers.len() >= DMI_MAPPERS_MAX && !self.mappers.contains_key(&mapper.protocol) {
            let down = self.mappers.iter().filter(|(_, mapper)| mapper.down_told);
            let Some((oldest, _)) = down.min_by_key(|(_, mapper)| mapper.down_since_ms) else {
                let message = format!("{DMI_MAPPERS_MAX} mappers are registered, this node's limit");
                actions.push(Action::Answer(Err(Refusal::new(code::RESOURCE_EXHAUSTED, message))));
                return;
            };
            let oldest = oldest.clone();
            self.mappers.remove(&oldest);
            actions.push(Action::Forget { protocol: oldest });
        }
        let mut record = Record { name: mapper.name, address, ..Record::default() };
        let mut answer = MapperRegisterResponse { kinglet: true, ..MapperRegisterResponse::default() };
        let mut bytes = 0;
        for (id, described) in self.world.of(&mapper.protocol) {
            let Some(Model { model, digest }) = self.world.models.get(&described.model_id) else { continue };
            bytes += described.device.encoded_len() + model.encoded_len() + 16;
            if bytes > REGISTER_ANSWER_BYTES_MAX {
                break;
            }
            if record.models.insert(described.model_id.clone(), *digest).is_none() {
                answer.model_list.push(model.clone());
            }
            answer.device_list.push(described.device.clone());
            record.devices.insert(id.clone(), self.world.digest(described));
        }
        tracing::info!(
            "mapper {} registered for {} with {} devices, at {}",
            record.name,
            mapper.protocol,
            record.devices.len(),
            record.address
        );
        let before = self.mappers.remove(&mapper.protocol);
        let mut new = self.mapper(now_ms, record);
        new.dirty = true;
        if before.is_some_and(|before| before.down_told) {
            self.tell_back(&mapper.protocol, actions);
        }
        self.mappers.insert(mapper.protocol, new);
        actions.push(Action::Answer(Ok(answer)));
    }

    fn done(
        &mut self,
        now_ms: i64,
        protocol: &str,
        generation: u64,
        outcome: Outcome,
        actions: &mut Vec<Action>,
    ) {
        let Some(mapper) = self.mappers.get_mut(protocol) else { return };
        if mapper.generation != generation {
            return;
        }
        let Some(order) = mapper.ordered.take() else { return };
        if let Outcome::Broken(error) = outcome {
            tracing::debug!("mapper {} does not answer: {error}", mapper.record.name);
            mapper.lost(now_ms);
            return;
        }
        let back = mapper.down_told;
        (mapper.connected, mapper.down_since_ms, mapper.down_told) = (true, None, false);
        mapper.retry_delay_ms = DMI_RETRY_DELAY_MS_MIN;
        let refused = match outcome {
            Outcome::Refused(reason) => Some(reason),
            _ => None,
        };
        mapper.learn(order, refused, &self.world, actions);
        if back {
            self.tell_back(protocol, actions);
        }
    }

    /// What is to be done next for each mapper.
    fn proceed(&mut self, now_ms: i64, actions: &mut Vec<Action>) {
        for (protocol, mapper) in &mut self.mappers {
            if let Some(since_ms) = mapper.down_since_ms
                && !mapper.down_told
                && now_ms >= since_ms + DMI_DOWN_TOLD_MS
            {
                mapper.down_told = true;
                let Record { name, address, .. } = &mapper.record;
                let reason = format!("mapper {name} does not answer at {address}; is it running?");
                tracing::warn!("{reason}");
                for (id, described) in self.world.of(protocol) {
                    actions.push(report::state(id, "unknown", &reason));
                    actions.extend(report::disconnected(id, &described.device));
                }
            }
            if mapper.ordered.is_some() || (!mapper.connected && now_ms < mapper.retry_at_ms) {
                continue;
            }
            let order = match mapper.connected {
                false => Some(Order::Connect),
                true => next(protocol, &mapper.record, &self.world),
            };
            if let Some(order) = order {
                mapper.ordered = Some(order.clone());
                let (protocol, address) = (protocol.clone(), mapper.record.address.clone());
                actions.push(Action::Call { protocol, generation: mapper.generation, address, order });
            } else if std::mem::take(&mut mapper.dirty) {
                let record = serde_json::to_vec(&mapper.record).expect("a record serialises").into();
                actions.push(Action::Save { protocol: protocol.clone(), record });
            }
        }
    }

    /// Only of devices whose mapper is here: others check for themselves.
    fn tell_refusals(&mut self, actions: &mut Vec<Action>) {
        let ours =
            |described: &&Described| described.is_listed && self.mappers.contains_key(&described.protocol);
        let devices = self.world.devices.iter().filter(|(_, described)| ours(described));
        let refusing = devices.filter(|(_, described)| !described.refused.is_empty());
        let refusals: Refusals =
            refusing.map(|(id, described)| (id.clone(), described.refused.clone())).collect();
        if refusals == self.refusals {
            return;
        }
        for (id, refused) in &refusals {
            if self.refusals.get(id) != Some(refused) {
                actions.push(report::state(id, "unhealthy", &report::reason(refused)));
            }
        }
        let over = self.refusals.keys().filter(|id| !refusals.contains_key(*id));
        actions.extend(over.map(|id| report::state(id, "unknown", "")));
        actions.push(Action::Refusals(refusals.clone()));
        self.refusals = refusals;
    }

    /// The mapper is there again: what its devices are it says itself.
    fn tell_back(&self, protocol: &str, actions: &mut Vec<Action>) {
        actions.extend(self.world.of(protocol).map(|(id, _)| report::state(id, "unknown", "")));
    }
}

impl Mapper {
    fn lost(&mut self, now_ms: i64) {
        self.connected = false;
        self.ordered = None;
        self.down_since_ms.get_or_insert(now_ms);
        self.retry_at_ms = now_ms + self.retry_delay_ms;
        self.retry_delay_ms = (self.retry_delay_ms * 2).min(DMI_RETRY_DELAY_MS_MAX);
    }

    /// What the mapper knows after an order. A device that it refuses is told as that, and not offered again until it changes.
    fn learn(&mut self, order: Order, refused: Option<String>, world: &World, actions: &mut Vec<Action>) {
        self.dirty |= order != Order::Connect;
        let name = &self.record.name;
        match order {
            Order::Connect => {}
            Order::Model { model, .. } => {
                if let Some(reason) = refused {
                    tracing::warn!("mapper {name} refused DeviceModel {}: {reason}", model.name);
                }
                self.record.models.insert(model_id(&model), digest(&[&model.encode_to_vec()]));
            }
            Order::Device { new, device } => {
                let id = format!("{}/{}", device.namespace, device.name);
                let Some(described) = world.devices.get(&id) else { return };
                // It may have changed while the mapper took it.
                let told = if described.device == *device { world.digest(described) } else { 0 };
                match refused {
                    None => {
                        self.record.devices.insert(id.clone(), told);
                        if self.refused.remove(&id).is_some() {
                            actions.push(report::state(&id, "unknown", ""));
                        }
                    }
                    // It was restarted and knows nothing of it: as a new one.
                    Some(_) if !new => {
                        self.record.devices.remove(&id);
                    }
                    Some(reason) => {
                        self.record.devices.insert(id.clone(), told);
                        let reason = format!("mapper {name} refused the device: {reason}");
                        tracing::warn!("device {id}: {reason}");
                        actions.push(report::state(&id, "unhealthy", &reason));
                        self.refused.insert(id, reason);
                    }
                }
            }
            // Refused, because it is not there: gone is gone.
            Order::RemoveDevice(named) => {
                let id = format!("{}/{}", named.namespace, named.name);
                self.record.devices.remove(&id);
                self.refused.remove(&id);
            }
            Order::RemoveModel(named) => {
                self.record.models.remove(&format!("{}/{}", named.namespace, named.name));
            }
        }
    }
}

/// The first difference between what a mapper was told and what there is: models before their devices, and after them.
fn next(protocol: &str, told: &Record, world: &World) -> Option<Order> {
    for (_, Described { model_id, .. }) in world.of(protocol) {
        let Some(Model { model, digest }) = world.models.get(model_id) else { continue };
        let known = told.models.get(model_id);
        if known != Some(digest) {
            return Some(Order::Model { new: known.is_none(), model: Box::new(model.clone()) });
        }
    }
    for (id, described) in world.of(protocol) {
        let known = told.devices.get(id);
        if known != Some(&world.digest(described)) {
            return Some(Order::Device { new: known.is_none(), device: Box::new(described.device.clone()) });
        }
    }
    // Missing descriptions are no wish to remove anything; a list that came is.
    let list = world.inventories.get(protocol)?;
    let named = |id: &String| {
        let (namespace, name) = id.split_once('/').unwrap_or(("", id));
        NamedRequest { name: name.into(), namespace: namespace.into() }
    };
    let is_ours = |id: &String| world.devices.get(id).is_some_and(|described| described.is_of(protocol));
    if let Some(gone) = told.devices.keys().find(|id| !list.contains(id) && !is_ours(id)) {
        return Some(Order::RemoveDevice(named(gone)));
    }
    let complete = list.iter().all(is_ours);
    let used = |id: &&String| world.of(protocol).any(|(_, described)| described.model_id == **id);
    let unused = told.models.keys().find(|id| complete && !used(id))?;
    Some(Order::RemoveModel(named(unused)))
}

/// What edgecore pushes itself, for every mapper: the mapper must not do it a second time.
fn pushed_here(device: &mut Device) {
    for property in device.spec.iter_mut().flat_map(|spec| &mut spec.properties) {
        let Some(push) = &mut property.push_method else { continue };
        (push.http, push.mqtt, push.otel) = (None, None, None);
        if let Some(database) = &mut push.db_method {
            database.influxdb2 = None;
        }
        push.db_method = push.db_method.take().filter(|database| *database != DbMethod::default());
        property.push_method = property.push_method.take().filter(|push| *push != PushMethod::default());
    }
}

/// Where a mapper can be called, or what is wrong with what it said.
fn check(protocol: &str, address: &[u8]) -> Result<String, String> {
    if protocol.is_empty() || protocol.contains('/') || !mqtt::topic::topic_is_valid(protocol) {
        return Err(format!("the protocol {protocol:?} is not one word"));
    }
    match std::str::from_utf8(address) {
        // sun_path holds 108 bytes with its end.
        Ok(path) if path.starts_with('/') && path.len() < 108 && !path.contains('\0') => Ok(path.into()),
        _ => Err("the address is not the absolute path of a socket".into()),
    }
}

fn model_id(model: &DeviceModel) -> String {
    format!("{}/{}", model.namespace, model.name)
}

/// FNV-1a. Not a secret and nobody's to forge: it tells changes of one object apart.
fn digest(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
