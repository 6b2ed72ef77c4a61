//! One seed is a whole life of a node: cuts, lost frames, restarts of either end with lost lazy writes, churn of objects.

use super::*;

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
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn target(uid: &str, version: u64) -> Target {
    Target { uid: uid.into(), resource: format!("default/pod/{uid}"), version: version.to_string(), rank: 0 }
}

/// The cloud's objects, its delivery value with its disk, a link that loses frames, and an edge that stores before it acks.
struct World {
    rng: Rng,
    now_ms: u64,
    objects: BTreeMap<String, u64>,
    next: u64,
    delivery: Delivery,
    disk: BTreeMap<String, Delivered>,
    lazy: Vec<Action>,
    connected: bool,
    down: VecDeque<Push>,
    up: VecDeque<String>,
    edge: BTreeMap<String, String>,
    sends: u64,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            rng: Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            now_ms: 0,
            objects: BTreeMap::new(),
            next: 0,
            delivery: Delivery::default(),
            disk: BTreeMap::new(),
            lazy: Vec::new(),
            connected: false,
            down: VecDeque::new(),
            up: VecDeque::new(),
            edge: BTreeMap::new(),
            sends: 0,
        }
    }

    fn input(&mut self, input: Input) {
        for action in self.delivery.handle(self.now_ms, input) {
            match action {
                Action::Record { durable: false, .. } => self.lazy.push(action),
                Action::Send(push) => {
                    assert!(
                        self.disk.contains_key(&push.uid) || self.lazy_has(&push.uid),
                        "{} is sent but not recorded",
                        push.uid
                    );
                    self.sends += 1;
                    self.down.push_back(push);
                }
                action => {
                    // A durable write takes the lazy ones before it along: the log has one order.
                    self.sync();
                    self.lazy.push(action);
                    self.sync();
                }
            }
        }
    }

    fn lazy_has(&self, uid: &str) -> bool {
        self.lazy.iter().any(|action| matches!(action, Action::Record { uid: have, .. } if have == uid))
    }

    fn sync(&mut self) {
        for action in self.lazy.drain(..) {
            match action {
                Action::Record { uid, delivered, .. } => {
                    self.disk.insert(uid, delivered);
                }
                Action::Forget { uid } => {
                    self.disk.remove(&uid);
                }
                Action::Send(_) => unreachable!("sends are not written"),
            }
        }
    }

    fn desired(&mut self) {
        let all = self.objects.iter().map(|(uid, version)| target(uid, *version)).collect();
        self.input(Input::Desired(all));
    }

    fn connect(&mut self) {
        self.connected = true;
        let nonce = u128::from(self.rng.next()) << 64 | u128::from(self.rng.next());
        self.input(Input::Connected { nonce, window: 1 + (nonce % 2) as usize * 7, inventory: false });
    }

    fn cut(&mut self) {
        self.connected = false;
        self.down.clear();
        self.up.clear();
        self.input(Input::Disconnected);
    }

    fn cloud_restart(&mut self) {
        self.cut();
        self.lazy.clear();
        self.delivery = Delivery::new(self.disk.clone().into_iter().collect());
        self.desired();
    }

    fn edge_receives(&mut self) {
        let Some(push) = self.down.pop_front() else { return };
        match push.verb {
            Verb::Delete => self.edge.remove(&push.uid),
            _ => self.edge.insert(push.uid.clone(), push.version.clone()),
        };
        self.up.push_back(push.msg_id);
    }

    fn step(&mut self, faults: bool) {
        self.now_ms += self.rng.below(900);
        match self.rng.below(if faults { 14 } else { 4 }) {
            0 | 1 => self.edge_receives(),
            2 => {
                if let Some(msg_id) = self.up.pop_front() {
                    self.input(Input::Acked { msg_id });
                }
            }
            3 => self.input(Input::Tick),
            4 => drop(self.down.pop_front()),
            5 => drop(self.up.pop_front()),
            6 if self.connected && self.rng.one_in(4) => self.cut(),
            7 if self.rng.one_in(6) => self.cloud_restart(),
            8 => self.sync(),
            9 | 10 if !self.connected => self.connect(),
            _ => self.churn(),
        }
    }

    fn churn(&mut self) {
        self.next += 1;
        let count = self.objects.len() as u64;
        let pick =
            if count == 0 { None } else { self.objects.keys().nth(self.rng.below(count) as usize).cloned() };
        match (self.rng.below(3), pick) {
            (0, Some(uid)) => drop(self.objects.remove(&uid)),
            (1, Some(uid)) => drop(self.objects.insert(uid, self.next)),
            _ => drop(self.objects.insert(format!("u{}", self.next), self.next)),
        }
        self.desired();
    }

    fn settle(&mut self) {
        if !self.connected {
            self.connect();
        }
        let bound = 400 + 60 * (self.objects.len() + self.disk.len());
        for _ in 0..bound {
            if self.delivery.backlog() == 0 && self.down.is_empty() {
                break;
            }
            self.step(false);
        }
        let want: BTreeMap<String, String> =
            self.objects.iter().map(|(uid, v)| (uid.clone(), v.to_string())).collect();
        assert_eq!(self.edge, want, "the node has not what it should have");
        self.sync();
        let recorded: BTreeMap<String, String> =
            self.disk.iter().map(|(uid, d)| (uid.clone(), d.version.clone())).collect();
        assert_eq!(recorded, want, "the records differ from what the node has");
    }
}

#[test]
fn every_seed_converges_whatever_was_lost() {
    for seed in 1..=400 {
        let mut world = World::new(seed);
        world.desired();
        for _ in 0..3 {
            for _ in 0..300 {
                world.step(true);
            }
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.settle()));
            assert!(
                caught.is_ok(),
                "seed {seed} of wire::delivery::tests::every_seed_converges_whatever_was_lost failed"
            );
        }
    }
}

#[test]
fn a_restart_sends_nothing_that_was_acknowledged() {
    let mut world = World::new(7);
    for n in 0..20 {
        world.objects.insert(format!("u{n}"), n + 1);
    }
    world.desired();
    world.settle();
    let before = world.sends;
    world.cloud_restart();
    world.settle();
    assert_eq!(world.sends, before);
    world.objects.remove("u3");
    world.cloud_restart();
    world.settle();
    assert_eq!(world.sends, before + 1, "only the delete is sent");
}

#[test]
fn an_object_that_is_never_acknowledged_does_not_starve_the_others() {
    let mut delivery = Delivery::default();
    let mut now_ms = 0;
    let mut pending = delivery.handle(now_ms, Input::Connected { nonce: 5, window: 1, inventory: false });
    pending.extend(
        delivery.handle(now_ms, Input::Desired((0..10).map(|n| target(&format!("u{n}"), 1)).collect())),
    );
    let mut ids = BTreeSet::new();
    for _ in 0..60 {
        let actions = std::mem::take(&mut pending);
        for action in actions {
            if let Action::Send(push) = action {
                if push.uid == "u0" {
                    ids.insert(push.msg_id);
                } else {
                    pending.extend(delivery.handle(now_ms, Input::Acked { msg_id: push.msg_id }));
                }
            }
        }
        now_ms += 1_000;
        pending.extend(delivery.handle(now_ms, Input::Tick));
    }
    let confirmed = delivery.delivered().iter().filter(|(_, d)| d.version != UNCONFIRMED).count();
    assert_eq!(confirmed, 9);
    assert_eq!(ids.len(), 1, "the same push keeps its id");
    delivery.handle(now_ms, Input::Acked { msg_id: ids.pop_first().unwrap() });
    assert_eq!(delivery.delivered().get("u0").unwrap().version, "1", "a late acknowledgement counts");
}

#[test]
fn resend_after_five_seconds_and_not_before() {
    let mut delivery = Delivery::default();
    delivery.handle(0, Input::Connected { nonce: 1, window: 1, inventory: false });
    let sent = delivery.handle(0, Input::Desired(vec![target("a", 1)]));
    assert!(matches!(&sent[..], [Action::Record { durable: true, .. }, Action::Send(_)]), "{sent:?}");
    assert!(delivery.handle(PUSH_RESEND_MS - 1, Input::Tick).is_empty());
    let Action::Send(first) = sent[1].clone() else { unreachable!("matched above") };
    assert_eq!(first.sends, 1);
    assert_eq!(delivery.handle(PUSH_RESEND_MS, Input::Tick), [Action::Send(Push { sends: 2, ..first })]);
}

#[test]
fn unknown_desired_state_deletes_nothing_and_a_reset_sends_all() {
    let has = Delivered { resource: "default/pod/a".into(), version: "1".into() };
    let mut delivery = Delivery::new(Known::from_iter([("a".to_string(), has)]));
    assert!(delivery.handle(0, Input::Connected { nonce: 1, window: 1, inventory: false }).is_empty());
    assert!(delivery.handle(0, Input::Desired(vec![target("a", 1)])).is_empty());
    let actions = delivery.handle(0, Input::Reset);
    assert!(
        matches!(&actions[..], [Action::Forget { .. }, Action::Record { .. }, Action::Send(push)] if push.verb == Verb::Insert)
    );
}

/// At the first join the node's own Node is made a moment after the link is up.
#[test]
fn a_list_waits_for_the_node_itself() {
    let mut delivery = Delivery::default();
    delivery.handle(0, Input::Connected { nonce: 1, window: 8, inventory: true });
    assert!(delivery.handle(0, Input::Desired(Vec::new())).is_empty() && delivery.inventory_is_due());
    let pod = sent(delivery.handle(1, Input::Desired(vec![target("a", 1)])));
    assert!(delivery.handle(2, Input::Acked { msg_id: pod.msg_id }).iter().all(is_no_push));
    let node = Target { uid: "n".into(), resource: "null/node/pi".into(), version: "1".into(), rank: 0 };
    let push = sent(delivery.handle(3, Input::Desired(vec![target("a", 1), node])));
    assert_eq!(push.uid, "n");
    let list = sent(delivery.handle(4, Input::Acked { msg_id: push.msg_id }));
    assert_eq!(list.verb, Verb::Inventory);
    delivery.handle(5, Input::Acked { msg_id: list.msg_id });
    assert!(!delivery.inventory_is_due());
}

fn is_no_push(action: &Action) -> bool {
    !matches!(action, Action::Send(_))
}

#[test]
fn deletes_go_before_the_object_that_took_the_name() {
    let has = Delivered { resource: "default/pod/web".into(), version: "1".into() };
    let mut delivery = Delivery::new(Known::from_iter([("z-old".to_string(), has)]));
    delivery.handle(0, Input::Connected { nonce: 1, window: 1, inventory: false });
    let new =
        Target { uid: "a-new".into(), resource: "default/pod/web".into(), version: "9".into(), rank: 0 };
    let actions = delivery.handle(0, Input::Desired(vec![new]));
    assert!(matches!(&actions[..], [Action::Send(push)] if push.verb == Verb::Delete), "{actions:?}");
}

#[test]
fn what_could_not_be_read_is_not_asked_for_again_before_the_cluster_shows_why() {
    let mut delivery = Delivery::default();
    delivery.handle(0, Input::Connected { nonce: 1, window: 1, inventory: false });
    let first = sent(delivery.handle(0, Input::Desired(vec![target("a", 1), target("b", 1)])));
    assert_eq!(first.uid, "a");
    let second = sent(delivery.handle(1, Input::Skipped { msg_id: first.msg_id.clone() }));
    assert_eq!(second.uid, "b", "the others do not wait");
    let quiet = delivery.handle(2, Input::Acked { msg_id: second.msg_id });
    assert!(!quiet.iter().any(|action| matches!(action, Action::Send(_))), "{quiet:?}");
    assert_eq!(delivery.next_deadline_ms(), None);
    // It was gone, and the watch says so: the node may have it all the same, from before.
    let delete = sent(delivery.handle(3, Input::Desired(vec![target("b", 1)])));
    assert_eq!((delete.verb, delete.sends, delete.msg_id == first.msg_id), (Verb::Delete, 1, false));
    // Or it is there again.
    let again = sent(
        delivery
            .handle(4, Input::Acked { msg_id: delete.msg_id.clone() })
            .into_iter()
            .chain(delivery.handle(5, Input::Desired(vec![target("a", 2), target("b", 1)])))
            .collect(),
    );
    assert_eq!((again.verb, again.sends), (Verb::Insert, 1));
}

#[test]
fn what_could_not_be_read_goes_at_once_if_the_cluster_has_shown_why_meanwhile() {
    let has = Delivered { resource: "default/pod/a".into(), version: "1".into() };
    let mut delivery = Delivery::new(Known::from_iter([("a".to_string(), has)]));
    delivery.handle(0, Input::Connected { nonce: 1, window: 1, inventory: false });
    let update = sent(delivery.handle(0, Input::Desired(vec![target("a", 2)])));
    // Deleted while it was being read.
    assert!(delivery.handle(1, Input::Desired(Vec::new())).is_empty());
    let delete = sent(delivery.handle(2, Input::Skipped { msg_id: update.msg_id }));
    assert_eq!((update.verb, delete.verb, delete.sends), (Verb::Update, Verb::Delete, 1));
}

fn sent(actions: Vec<Action>) -> Push {
    let mut pushes = actions.into_iter().filter_map(|action| match action {
        Action::Send(push) => Some(push),
        _ => None,
    });
    let push = pushes.next().expect("a push");
    assert_eq!(pushes.next(), None, "one at a time");
    push
}
