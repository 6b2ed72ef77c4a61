//! Both ends of the link in one process: `Link` on the node, `Delivery` in the cloud, and between them a wire that is cut, goes
//! silent, or dies with either end. One seed is one life. Mutated shells must fail, so that a test that cannot fail shows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use wire::{
    Message, Operation, Resource,
    delivery::{self, Delivered, Delivery, Target, Verb},
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
/// The cloud drops a session without keepalive, as KubeEdge does.
const KEEPALIVE_MAX_MS: u64 = 30_000;

#[derive(Default)]
struct Wire {
    open: bool,
    /// Nothing arrives any more and nobody is told.
    silent: bool,
    down: VecDeque<Message>,
    up: VecDeque<Message>,
    pongs: u32,
}

struct World {
    mutation: Mutation,
    rng: Rng,
    now: Now,
    wire: Wire,

    // the cloud
    objects: BTreeMap<String, u64>,
    delivery: Delivery,
    records: BTreeMap<String, Delivered>,
    last_keepalive_ms: u64,
    heard_reports: BTreeMap<String, u64>,

    // the node
    link: Link,
    dialling: bool,
    to_store: VecDeque<Box<Message>>,
    stored: BTreeMap<String, u64>,
    durable_ids: BTreeSet<String>,
    outbox_disk: BTreeMap<String, Message>,
    reported: BTreeMap<String, u64>,
    requests: BTreeMap<String, u32>,
    counter: u64,
}

impl World {
    fn new(seed: u64, mutation: Mutation) -> World {
        World {
            mutation,
            rng: Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            now: Now { mono_ms: 1, unix_ms: 1_700_000_000_000 },
            wire: Wire::default(),
            objects: BTreeMap::new(),
            delivery: Delivery::default(),
            records: BTreeMap::new(),
            last_keepalive_ms: 0,
            heard_reports: BTreeMap::new(),
            link: new_link(seed),
            dialling: false,
            to_store: VecDeque::new(),
            stored: BTreeMap::new(),
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
                    if self.wire.open && !self.wire.silent {
                        self.wire.up.push_back(*message);
                    }
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
    }

    fn cloud(&mut self, input: delivery::Input) {
        for action in self.delivery.handle(self.now.mono_ms, input) {
            match action {
                delivery::Action::Record { uid, delivered, .. } => drop(self.records.insert(uid, delivered)),
                delivery::Action::Forget { uid } => drop(self.records.remove(&uid)),
                delivery::Action::Send(push) => {
                    let operation = match push.verb {
                        Verb::Insert => Operation::INSERT,
                        Verb::Update => Operation::UPDATE,
                        Verb::Delete => Operation::DELETE,
                    };
                    let mut message = Message::new(
                        self.now.unix_ms,
                        wire::source::EDGE_CONTROLLER,
                        "resource",
                        operation,
                        &push.resource,
                    )
                    .with_content(&push.uid)
                    .with_resource_version(&push.version);
                    message.header.msg_id = push.msg_id;
                    if self.wire.open && !self.wire.silent {
                        self.wire.down.push_back(message);
                    }
                }
            }
        }
    }

    fn close_from_edge(&mut self) {
        self.wire = Wire::default();
        self.cloud(delivery::Input::Disconnected);
    }

    fn cut(&mut self) {
        if self.wire.open {
            self.close_from_edge();
            self.edge(Input::Lost("cut".into()));
        }
    }

    fn answer_dial(&mut self, success: bool) {
        if !std::mem::take(&mut self.dialling) {
            return;
        }
        if !success {
            return self.edge(Input::Lost("refused".into()));
        }
        self.wire = Wire { open: true, ..Wire::default() };
        self.last_keepalive_ms = self.now.mono_ms;
        let nonce = u128::from(self.rng.next());
        self.edge(Input::Connected);
        self.cloud(delivery::Input::Connected { nonce });
    }

    fn edge_crash(&mut self) {
        if self.wire.open {
            self.close_from_edge();
        }
        self.dialling = false;
        self.to_store.clear();
        self.requests.clear();
        self.link = new_link(self.rng.next());
        for (key, message) in self.outbox_disk.clone() {
            self.edge(Input::Report { key, message: Box::new(message) });
        }
    }

    fn cloud_restart(&mut self) {
        self.cut();
        self.delivery = Delivery::new(self.records.clone());
        self.desired();
    }

    fn desired(&mut self) {
        let targets = self.objects.iter().map(|(uid, version)| Target {
            uid: uid.clone(),
            resource: format!("default/pod/{uid}"),
            version: version.to_string(),
            rank: 0,
        });
        let targets = targets.collect();
        self.cloud(delivery::Input::Desired(targets));
    }

    fn edge_reads(&mut self) {
        if std::mem::take(&mut self.wire.pongs) > 0 {
            self.edge(Input::Heard);
        }
        if let Some(message) = self.wire.down.pop_front() {
            // Through the text form, as on the socket.
            let message = Message::decode(message.encode().as_bytes()).expect("we wrote it");
            self.edge(Input::Received(Box::new(message)));
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
        let uid: String = message.content_as().expect("the cloud of this test sends uids");
        if message.route.operation == Operation::DELETE {
            self.stored.remove(&uid);
        } else {
            let version: u64 = message.header.resourceversion.parse().expect("a number");
            let stored = self.stored.entry(uid).or_default();
            *stored = version.max(*stored);
        }
        self.durable_ids.insert(message.header.msg_id.clone());
        if self.mutation != Mutation::AckDropped {
            self.edge(Input::Stored(message));
        }
    }

    fn cloud_reads(&mut self) {
        let Some(message) = self.wire.up.pop_front() else { return };
        let route = &message.route;
        if route.operation == Operation::KEEPALIVE {
            self.last_keepalive_ms = self.now.mono_ms;
        } else if route.operation == Operation::RESPONSE {
            let msg_id = message.header.parent_msg_id;
            assert!(self.durable_ids.contains(&msg_id), "{msg_id} is acknowledged but not durable");
            self.cloud(delivery::Input::Acked { msg_id });
        } else if let Some(resource) = Resource::parse(&route.resource) {
            if route.operation == Operation::PATCH {
                let value = message.content_as().expect("reports carry numbers");
                self.heard_reports.insert(resource.name, value);
            }
            let mut answer = message.response(self.now.unix_ms, wire::source::EDGE_CONTROLLER, "resource");
            if self.rng.below(8) == 0 && route.operation == Operation::PATCH {
                answer = answer
                    .with_content(&serde_json::json!({"Object": null, "Err": {"ErrStatus": {"code": 503}}}));
            }
            if !self.wire.silent {
                self.wire.down.push_back(answer);
            }
        }
    }

    fn time(&mut self, millis: u64) {
        self.now.mono_ms += millis;
        self.now.unix_ms += millis as i64;
        if self.mutation != Mutation::NoTicks || !self.link.is_up() {
            self.edge(Input::Tick);
        }
        self.cloud(delivery::Input::Tick);
        if self.wire.open && !self.wire.silent && self.now.mono_ms > self.last_keepalive_ms + KEEPALIVE_MAX_MS
        {
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
        while self.now.mono_ms < end {
            self.step(false);
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

fn new_link(seed: u64) -> Link {
    Link::new(Settings {
        heartbeat_ms: HEARTBEAT_MS,
        reconnect_first_ms: 1_000,
        reconnect_max_ms: 30_000,
        seed,
    })
}

#[test]
fn both_ends_agree_after_any_faults() {
    for seed in seeds() {
        let life = std::panic::catch_unwind(|| World::live(seed, Mutation::None));
        assert!(life.is_ok(), "reproduce: KINGLET_SEED={seed} cargo test -p wire --test link_sim both_ends");
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("KINGLET_SEED") {
        Ok(seed) => vec![seed.parse().expect("KINGLET_SEED is a number")],
        Err(_) => (1..=150).collect(),
    }
}

#[test]
fn every_mutation_is_found() {
    for mutation in
        [Mutation::AckDropped, Mutation::AckBeforeDurable, Mutation::OutboxForgottenOnSend, Mutation::NoTicks]
    {
        let survived = (1..=20).all(|seed| std::panic::catch_unwind(|| World::live(seed, mutation)).is_ok());
        assert!(!survived, "{mutation:?} turns nothing red");
    }
}
