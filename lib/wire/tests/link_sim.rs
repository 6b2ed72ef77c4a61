//! Both ends of the link in one process: `Link` on the node, `Delivery` in the cloud, their lanes, and between them a wire that is
//! late, repeats itself, is cut, goes silent, or dies with either end. What was under way when it is cut arrives or not, so that
//! ends know different things; what the node was storing is stored while the next link is up. One seed is one life, in which either
//! end may be exchanged for one that speaks another lane. Mutated shells must fail, so that a test that cannot fail shows.
//!
//! More lives: `KINGLET_SEEDS=100000 cargo test --release -p wire --test link_sim`; one: `KINGLET_SEED=17`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use wire::{
    Message, Operation, Resource,
    delivery::{self, Delivered, Delivery, INVENTORY_UID, Push, Target, Verb},
    inventory::{INVENTORY, Inventory},
    lane::{End, Frames, Lane, Out, Received},
    limits::{ACKS_WAIT_MS, PUSH_RESEND_MS, PUSH_WINDOW},
    link::{Action, Input, Link, Now, Settings},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutation {
    None,
    /// The node's shell forgets to say that a message is durable.
    AckDropped,
    /// The node's shell says so before it is.
    AckBeforeDurable,
    /// Durable reports are taken off the disk when they are sent, not when they are answered.
    OutboxForgottenOnSend,
    /// The shell never ticks the link while it is up: no keepalive, no silence found.
    NoTicks,
    /// The node takes numbers of its last link for those of this one.
    StaleNumbers,
    /// The cloud believes whatever a node says it had stored on its last link.
    ResumeUnchecked,
    /// The node writes whatever comes, however old it is.
    OldVersionsApplied,
    /// The cloud never sends an inventory, and its records are lost.
    NoInventory,
    /// The node deletes by an inventory that was cut short.
    PartialInventory,
    /// Acknowledgements that wait for more of their kind are forgotten when nothing else leaves.
    AcksHeldForEver,
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

const HEARTBEAT_MS: u64 = 15_000;
const STORE_QUEUE_LEN: usize = 8;
/// The cloud drops a session without keepalive, as KubeEdge does.
const KEEPALIVE_MAX_MS: u64 = 30_000;

struct Wire {
    open: bool,
    /// Nothing arrives any more and nobody is told.
    silent: bool,
    /// Nothing arrives before.
    late_until_ms: u64,
    down: VecDeque<Out>,
    up: VecDeque<Out>,
    pongs: u32,
    link: u64,
    edge: Lane,
    cloud: Lane,
}

impl Default for Wire {
    fn default() -> Wire {
        Wire {
            open: false,
            silent: false,
            late_until_ms: 0,
            down: VecDeque::new(),
            up: VecDeque::new(),
            pongs: 0,
            link: 0,
            edge: Lane::json(),
            cloud: Lane::json(),
        }
    }
}

/// What a cloud keeps of a link that ended, to go on with the next one.
struct Parked {
    link: u64,
    sent: BTreeMap<u32, Push>,
    inventory_due: bool,
}

struct World {
    mutation: Mutation,
    rng: Rng,
    now: Now,
    wire: Wire,
    /// Whether the end speaks the compact lane.
    edge_is_new: bool,
    cloud_is_new: bool,
    /// Of a life in which both ends always do.
    always_new: bool,

    // the cloud
    objects: BTreeMap<String, u64>,
    delivery: Delivery,
    records: BTreeMap<String, Delivered>,
    parked: Option<Parked>,
    /// Versions that the node told to have when the link was resumed: none of them is sent again.
    resumed: BTreeSet<(String, String)>,
    last_heard_ms: u64,
    heard_reports: BTreeMap<String, u64>,

    // the node
    link: Link,
    last_link: u64,
    dialling: bool,
    to_store: VecDeque<Box<Message>>,
    acks_since_ms: Option<u64>,
    stored: BTreeMap<String, u64>,
    /// How often a version of an object changed what is stored.
    applied: BTreeMap<(String, u64), u32>,
    durable_ids: BTreeSet<String>,
    outbox_disk: BTreeMap<String, Message>,
    reported: BTreeMap<String, u64>,
    requests: BTreeMap<String, u32>,
    counter: u64,
}

impl World {
    fn new(seed: u64, mutation: Mutation) -> World {
        let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let always_new = rng.below(2) == 0;
        World {
            mutation,
            now: Now { mono_ms: 1, unix_ms: 1_700_000_000_000 },
            wire: Wire::default(),
            edge_is_new: always_new || rng.below(2) == 0,
            cloud_is_new: always_new || rng.below(2) == 0,
            always_new,
            rng,
            objects: BTreeMap::from([(NODE.to_owned(), 1)]),
            delivery: Delivery::default(),
            records: BTreeMap::new(),
            parked: None,
            resumed: BTreeSet::new(),
            last_heard_ms: 0,
            heard_reports: BTreeMap::new(),
            link: new_link(seed),
            last_link: 0,
            dialling: false,
            to_store: VecDeque::new(),
            acks_since_ms: None,
            stored: BTreeMap::new(),
            applied: BTreeMap::new(),
            durable_ids: BTreeSet::new(),
            outbox_disk: BTreeMap::new(),
            reported: BTreeMap::new(),
            requests: BTreeMap::new(),
            counter: 0,
        }
    }

    fn edge(&mut self, input: Input) {
        for action in self.link.handle(self.now, input) {
            match action {
                Action::Dial => self.dialling = true,
                Action::Close => self.close_from_edge(),
                Action::Transmit(message) => {
                    if self.mutation == Mutation::OutboxForgottenOnSend {
                        self.outbox_disk.retain(|_, m| m.header.msg_id != message.header.msg_id);
                    }
                    self.wire.edge.push(&message);
                }
                Action::Ping => self.wire.pongs += u32::from(self.wire.open && !self.wire.silent),
                Action::Store(message) => self.to_store.push_back(message),
                Action::Answered { msg_id, .. } | Action::Failed { msg_id, .. } => {
                    *self.requests.get_mut(&msg_id).expect("only what was asked is answered") += 1;
                }
                Action::Delivered { key, msg_id } => {
                    if self.outbox_disk.get(&key).is_some_and(|kept| kept.header.msg_id == msg_id) {
                        self.outbox_disk.remove(&key);
                    }
                }
                Action::Refused { key } => {
                    panic!("{key} was refused with {} waiting", self.link.outbox_len())
                }
                Action::Unsupported(message) => panic!("unsupported {message:?}"),
                Action::Up | Action::Down(_) => {}
            }
        }
        self.flush_edge();
    }

    /// As edgecore's pump: acknowledgements wait while more is being stored, for a moment.
    fn flush_edge(&mut self) {
        let forgotten = self.mutation == Mutation::AcksHeldForEver;
        if self.wire.edge.only_acks_wait() {
            let since = *self.acks_since_ms.get_or_insert(self.now.mono_ms);
            let waits = !self.to_store.is_empty() && self.now.mono_ms < since + ACKS_WAIT_MS;
            if waits || forgotten {
                return;
            }
        }
        self.acks_since_ms = None;
        while let Some(out) = self.wire.edge.take() {
            if self.wire.open && !self.wire.silent {
                self.wire.up.push_back(out);
            }
        }
    }

    fn cloud(&mut self, input: delivery::Input) {
        for action in self.delivery.handle(self.now.mono_ms, input) {
            match action {
                delivery::Action::Record { uid, delivered, .. } => drop(self.records.insert(uid, delivered)),
                delivery::Action::Forget { uid } => drop(self.records.remove(&uid)),
                delivery::Action::Send(push) => {
                    let known = self.resumed.contains(&(push.uid.clone(), push.version.clone()));
                    assert!(!known, "{push:?} is sent although the node told that it has it");
                    let message = self.push_message(&push);
                    self.wire.cloud.push(&message);
                }
            }
        }
        self.flush_cloud();
    }

    fn push_message(&self, push: &Push) -> Message {
        let (operation, resource) = match push.verb {
            Verb::Insert => (Operation::INSERT, push.resource.as_str()),
            Verb::Update => (Operation::UPDATE, push.resource.as_str()),
            Verb::Delete => (Operation::DELETE, push.resource.as_str()),
            Verb::Inventory => (INVENTORY, "null/inventory/a"),
        };
        let mut message =
            Message::new(self.now.unix_ms, wire::source::EDGE_CONTROLLER, "resource", operation, resource)
                .with_content(&push.uid)
                .with_resource_version(&push.version);
        if push.uid == INVENTORY_UID {
            message = message.with_content(&self.inventory());
        }
        message.header.msg_id = push.msg_id.clone();
        message
    }

    fn inventory(&self) -> Inventory {
        Inventory::new(&self.targets().collect::<Vec<_>>())
    }

    fn flush_cloud(&mut self) {
        while let Some(out) = self.wire.cloud.take() {
            if self.wire.open && !self.wire.silent {
                self.wire.down.push_back(out);
            }
        }
    }

    /// The connection is over for the cloud, which may still have read some of what was under way.
    fn end_session(&mut self) {
        for _ in 0..self.rng.below(4) {
            self.cloud_reads();
        }
        let is_compact = self.wire.cloud.is_compact();
        let lane = std::mem::replace(&mut self.wire.cloud, Lane::json());
        let unacked = |id: &str| self.delivery.unacked().find(|push| push.msg_id == id).cloned();
        let sent = lane.unanswered().filter_map(|(seq, id)| Some((seq, unacked(id)?))).collect();
        let inventory_due = self.delivery.inventory_is_due();
        self.parked = is_compact.then_some(Parked { link: self.wire.link, sent, inventory_due });
        self.cloud(delivery::Input::Disconnected);
        self.wire = Wire::default();
    }

    fn close_from_edge(&mut self) {
        self.end_session();
    }

    fn cut(&mut self) {
        if self.wire.open {
            // The node may have read some of what was under way.
            for _ in 0..self.rng.below(4) {
                self.edge_reads();
            }
            if self.wire.open {
                self.end_session();
                self.edge(Input::Lost("cut".into()));
            }
        }
    }

    fn answer_dial(&mut self, success: bool) {
        if !std::mem::take(&mut self.dialling) {
            return;
        }
        if !success {
            if self.rng.below(2) == 0 {
                self.edge(Input::Busy { after_ms: self.now.mono_ms % 20_000 });
            }
            return self.edge(Input::Lost("refused".into()));
        }
        let compact = self.edge_is_new && self.cloud_is_new;
        let link = match self.mutation {
            Mutation::StaleNumbers => 7,
            _ => self.rng.next(),
        };
        self.wire = Wire { open: true, link, ..Wire::default() };
        if compact {
            self.wire.edge = Lane::compact(link, End::Edge);
            self.wire.cloud = Lane::compact(link, End::Cloud { node: "a".into(), compress: None });
        }
        self.last_heard_ms = self.now.mono_ms;
        let nonce = u128::from(self.rng.next());
        let resumed = compact && self.resume();
        self.last_link = link;
        self.edge(Input::Connected { compact });
        let window = if compact { PUSH_WINDOW } else { 1 };
        let inventory = compact && !resumed && self.mutation != Mutation::NoInventory;
        self.cloud(delivery::Input::Connected { nonce, window, inventory });
    }

    /// The node tells in its request what it had stored; a cloud that remembers the link goes on from there.
    fn resume(&mut self) -> bool {
        self.resumed.clear();
        let told: Vec<u32> = self
            .link
            .stored_ids()
            .filter_map(Lane::number_of)
            .filter(|(link, _)| *link == self.last_link)
            .map(|(_, seq)| seq)
            .collect();
        let is_same = |parked: &Parked| parked.link == self.last_link;
        let Some(parked) = self.parked.take().filter(is_same) else { return false };
        let pushes: Vec<Push> = match self.mutation {
            Mutation::ResumeUnchecked => parked.sent.values().cloned().collect(),
            _ => told.iter().filter_map(|seq| parked.sent.get(seq).cloned()).collect(),
        };
        let versions = pushes.iter().filter(|push| !matches!(push.verb, Verb::Delete | Verb::Inventory));
        self.resumed = versions.map(|push| (push.uid.clone(), push.version.clone())).collect();
        self.cloud(delivery::Input::Resumed(pushes));
        !parked.inventory_due
    }

    /// Programs are updated and rolled back.
    fn exchange(&mut self) {
        if !self.always_new && self.rng.below(3) == 0 {
            self.edge_is_new = self.rng.below(2) == 0;
            self.cloud_is_new = self.rng.below(2) == 0;
        }
    }

    fn edge_crash(&mut self) {
        if self.wire.open {
            self.end_session();
        }
        self.exchange();
        self.dialling = false;
        self.to_store.clear();
        self.requests.clear();
        self.last_link = 0;
        self.link = new_link(self.rng.next());
        for (key, message) in self.outbox_disk.clone() {
            self.edge(Input::Report { key, message: Box::new(message) });
        }
    }

    fn cloud_restart(&mut self) {
        self.cut();
        self.exchange();
        self.parked = None;
        self.delivery = Delivery::new(self.records.clone().into_iter().collect());
        self.desired();
    }

    /// The cloud's disk is restored without what it knew of nodes. Only an inventory gets over that.
    fn records_lost(&mut self) {
        if self.always_new {
            self.records.clear();
            self.cloud_restart();
        }
    }

    /// The device gets a new disk, and says so.
    fn edge_reflashed(&mut self) {
        self.stored.clear();
        self.applied.clear();
        self.outbox_disk.clear();
        self.edge_crash();
        self.parked = None;
        // What the old disk had told is the old disk's.
        self.resumed.clear();
        self.cloud(delivery::Input::Reset);
        self.reported = self.heard_reports.clone();
    }

    fn targets(&self) -> impl Iterator<Item = Target> {
        self.objects.iter().map(|(uid, version)| Target {
            uid: uid.clone(),
            resource: resource(uid).to_string(),
            version: version.to_string(),
            rank: 0,
        })
    }

    fn desired(&mut self) {
        let targets = self.targets().collect();
        self.cloud(delivery::Input::Desired(targets));
    }

    fn edge_reads(&mut self) {
        if std::mem::take(&mut self.wire.pongs) > 0 {
            self.last_heard_ms = self.now.mono_ms;
            self.edge(Input::Heard);
        }
        // As edgecore's pump: what is not stored yet is not followed by more.
        if self.now.mono_ms < self.wire.late_until_ms || self.to_store.len() >= STORE_QUEUE_LEN {
            return;
        }
        let Some(out) = self.wire.down.pop_front() else { return };
        let repeats = self.rng.below(30) == 0;
        self.edge_takes(&out);
        if repeats && self.wire.open {
            self.edge_takes(&out);
        }
    }

    fn edge_takes(&mut self, out: &Out) {
        let Ok(received) = self.wire.edge.receive(frames(out)) else { panic!("{out:?}") };
        for received in received {
            match received {
                Received::Message(message) => self.edge(Input::Received(message)),
                Received::Unasked { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn edge_stores(&mut self, works: bool) {
        let Some(message) = self.to_store.pop_front() else { return };
        if !works {
            return self.edge(Input::NotStored(message));
        }
        if self.mutation == Mutation::AckBeforeDurable && self.rng.below(2) == 0 {
            return self.edge(Input::Stored(message));
        }
        self.apply(&message);
        self.durable_ids.insert(message.header.msg_id.clone());
        if self.mutation != Mutation::AckDropped {
            self.edge(Input::Stored(message));
        }
    }

    fn apply(&mut self, message: &Message) {
        if message.route.operation == INVENTORY {
            let mut inventory: Inventory = message.content_as().expect("an inventory");
            if self.mutation == Mutation::PartialInventory {
                inventory.objects.truncate(inventory.objects.len() / 2);
            }
            if inventory.check("a").is_ok() || self.mutation == Mutation::PartialInventory {
                self.stored.retain(|uid, _| !inventory.lacks(&resource(uid), uid));
            }
            return;
        }
        let uid: String = message.content_as().expect("the cloud of this test sends uids");
        if message.route.operation == Operation::DELETE {
            self.stored.remove(&uid);
            return;
        }
        let version: u64 = message.header.resourceversion.parse().expect("a number");
        let is_newer = self.stored.get(&uid).is_none_or(|stored| version > *stored);
        if is_newer || self.mutation == Mutation::OldVersionsApplied {
            self.stored.insert(uid.clone(), version);
            let times = self.applied.entry((uid, version)).or_default();
            *times += 1;
            assert_eq!(*times, 1, "the same version is applied twice");
        }
    }

    fn cloud_reads(&mut self) {
        if self.now.mono_ms < self.wire.late_until_ms {
            return;
        }
        let Some(out) = self.wire.up.pop_front() else { return };
        let repeats = self.rng.below(30) == 0;
        self.cloud_takes(&out);
        if repeats {
            self.cloud_takes(&out);
        }
    }

    fn cloud_takes(&mut self, out: &Out) {
        let is_compact = self.wire.cloud.is_compact();
        let Ok(received) = self.wire.cloud.receive(frames(out)) else { panic!("{out:?}") };
        for received in received {
            if is_compact {
                self.last_heard_ms = self.now.mono_ms;
            }
            match received {
                Received::Message(message) => self.cloud_message(*message),
                Received::Unasked { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        self.flush_cloud();
    }

    fn cloud_message(&mut self, message: Message) {
        let route = &message.route;
        if route.operation == Operation::KEEPALIVE {
            self.last_heard_ms = self.now.mono_ms;
        } else if route.operation == Operation::RESPONSE {
            let msg_id = message.header.parent_msg_id;
            self.cloud(delivery::Input::Acked { msg_id });
        } else if let Some(resource) = Resource::parse(&route.resource) {
            if route.operation == Operation::PATCH {
                let value: u64 = message.content_as().expect("reports carry numbers");
                let before = self.heard_reports.insert(resource.name, value);
                assert!(before.is_none_or(|before| before <= value), "a report came after a newer one");
            }
            let mut answer = message.response(self.now.unix_ms, wire::source::EDGE_CONTROLLER, "resource");
            if self.rng.below(8) == 0 && route.operation == Operation::PATCH {
                answer = answer
                    .with_content(&serde_json::json!({"Object": null, "Err": {"ErrStatus": {"code": 503}}}));
            } else if route.operation == Operation::PATCH {
                answer = answer.with_content("OK");
            }
            self.wire.cloud.push(&answer);
        }
    }

    fn time(&mut self, millis: u64) {
        self.now.mono_ms += millis;
        self.now.unix_ms += millis as i64;
        if self.mutation != Mutation::NoTicks || !self.link.is_up() {
            self.edge(Input::Tick);
        }
        self.flush_edge();
        self.cloud(delivery::Input::Tick);
        let is_silent = self.now.mono_ms > self.last_heard_ms + KEEPALIVE_MAX_MS;
        if self.wire.open && !self.wire.silent && is_silent {
            self.cut();
        }
    }

    fn step(&mut self, faults: bool) {
        let millis = self.rng.below(1_500);
        self.time(millis);
        match self.rng.below(if faults { 24 } else { 10 }) {
            0..=2 => self.edge_reads(),
            3..=5 => self.cloud_reads(),
            6 | 7 => self.edge_stores(true),
            8 | 9 => self.answer_dial(true),
            10 => self.answer_dial(false),
            11 => self.edge_stores(false),
            12 if self.rng.below(4) == 0 => self.cut(),
            13 if self.rng.below(8) == 0 => self.edge_crash(),
            14 if self.rng.below(8) == 0 => self.cloud_restart(),
            15 if self.rng.below(6) == 0 => self.wire.silent = true,
            15 if self.rng.below(3) == 0 => {
                self.wire.late_until_ms = self.now.mono_ms + self.rng.below(12_000);
            }
            15 if self.rng.below(20) == 0 => self.edge_reflashed(),
            15 if self.rng.below(10) == 0 => self.records_lost(),
            16 => self.now.unix_ms += self.rng.below(100_000_000) as i64 - 50_000_000,
            17 | 18 => self.report(),
            19 => self.request(),
            _ => self.churn(),
        }
    }

    fn report(&mut self) {
        self.counter += 1;
        let key = format!("r{}", self.rng.below(6));
        let message = Message::new(
            self.now.unix_ms,
            "edged",
            "meta",
            Operation::PATCH,
            &format!("default/podpatch/{key}"),
        )
        .with_content(&self.counter);
        self.reported.insert(key.clone(), self.counter);
        self.outbox_disk.insert(key.clone(), message.clone());
        self.edge(Input::Report { key, message: Box::new(message) });
    }

    fn request(&mut self) {
        let message = Message::new(
            self.now.unix_ms,
            "edged",
            "meta",
            Operation::QUERY,
            "default/serviceaccounttoken/a",
        );
        self.requests.insert(message.header.msg_id.clone(), 0);
        self.edge(Input::Request { message: Box::new(message), timeout_ms: 60_000 });
    }

    fn churn(&mut self) {
        self.counter += 1;
        let pick = self.rng.below(8);
        if self.rng.below(3) == 0 {
            self.objects.remove(&format!("u{pick}"));
        } else {
            self.objects.insert(format!("u{pick}"), self.counter);
        }
        self.desired();
    }

    /// Faults are over: ten minutes later both ends agree.
    fn settle(&mut self) {
        let end = self.now.mono_ms + 600_000;
        let mut held_since_ms = None;
        // Chance may keep an end from reading for so long that the other one cuts the link: then it is dialled once more.
        while self.now.mono_ms < end || (!self.link.is_up() && self.now.mono_ms < end + 60_000) {
            self.step(false);
            let is_held = self.wire.open && self.to_store.is_empty() && self.wire.edge.only_acks_wait();
            held_since_ms = is_held.then(|| held_since_ms.unwrap_or(self.now.mono_ms));
            let waits_ms = held_since_ms.map_or(0, |since| self.now.mono_ms - since);
            assert!(waits_ms < PUSH_RESEND_MS, "acknowledgements wait until the cloud sends all again");
        }
        assert!(self.link.is_up(), "no link after ten quiet minutes");
        let recorded: BTreeMap<String, u64> =
            self.records.iter().map(|(uid, r)| (uid.clone(), r.version.parse().expect("a number"))).collect();
        assert_eq!(self.stored, self.objects, "the node has not what belongs on it");
        assert_eq!(recorded, self.objects, "the cloud does not know what the node has");
        assert_eq!(self.heard_reports, self.reported, "a last report is missing in the cloud");
        assert_eq!(self.link.outbox_len(), 0);
        for (id, ends) in &self.requests {
            assert_eq!(*ends, 1, "request {id} ended {ends} times");
        }
    }

    fn live(seed: u64, mutation: Mutation) {
        let mut world = World::new(seed, mutation);
        for _ in 0..500 {
            world.step(true);
        }
        world.settle();
    }
}

/// The Node's own uid; it stays, the pods come and go.
const NODE: &str = "n";

fn resource(uid: &str) -> Resource {
    if uid == NODE { Resource::new("null", "node", "a") } else { Resource::new("default", "pod", uid) }
}

fn new_link(seed: u64) -> Link {
    Link::new(Settings {
        heartbeat_ms: HEARTBEAT_MS,
        reconnect_first_ms: 1_000,
        reconnect_max_ms: 30_000,
        seed,
    })
}

fn frames(out: &Out) -> Frames<'_> {
    match out {
        Out::Text(text) => Frames::Json(text.as_bytes()),
        Out::Binary(bytes) => Frames::Binary(bytes),
    }
}

#[test]
fn both_ends_agree_after_any_faults() {
    for seed in seeds() {
        let life = std::panic::catch_unwind(|| World::live(seed, Mutation::None));
        assert!(life.is_ok(), "reproduce: KINGLET_SEED={seed} cargo test -p wire --test link_sim both_ends");
    }
}

fn seeds() -> std::ops::RangeInclusive<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    match (number("KINGLET_SEED"), number("KINGLET_SEEDS")) {
        (Some(seed), _) => seed..=seed,
        (None, more) => 1..=more.unwrap_or(1_000),
    }
}

#[test]
fn every_mutation_is_found() {
    for mutation in [
        Mutation::AckDropped,
        Mutation::AckBeforeDurable,
        Mutation::OutboxForgottenOnSend,
        Mutation::NoTicks,
        Mutation::StaleNumbers,
        Mutation::ResumeUnchecked,
        Mutation::OldVersionsApplied,
        Mutation::NoInventory,
        Mutation::PartialInventory,
        Mutation::AcksHeldForEver,
    ] {
        let survived = (1..=40).all(|seed| std::panic::catch_unwind(|| World::live(seed, mutation)).is_ok());
        assert!(!survived, "{mutation:?} turns nothing red");
    }
}
