//! What the cloud still owes one node: acknowledged delivery of objects, as a value without I/O.
//!
//! The shell feeds the *whole* set of objects that belong on the node, acknowledgements and time; it carries out the
//! actions in order. It is not told what happened to an object, only what holds now, so a missed event costs nothing.
//!
//! Invariants
//! - An object is recorded (durably) before it is sent for the first time, so that it can be deleted again from the node
//!   whatever is restarted in between.
//! - A record names a version only after the node acknowledged it; a record goes only after the node acknowledged a delete.
//! - At most a window of pushes is unacknowledged at one time (one with a stock peer); they are sent in order, and one that is not
//!   acknowledged goes behind the others, so none starves.
//! - Without [`Input::Desired`] nothing is deleted: missing data is not an empty desired state.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::limits::{PUSH_RESEND_MS, PUSH_SENDS_MAX};

mod known;
#[cfg(test)]
mod tests;

pub use known::Known;

/// Recorded version of an object that was perhaps sent, but never acknowledged. KubeEdge's ObjectSync uses the same word.
pub const UNCONFIRMED: &str = "0";

/// An object that belongs on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub uid: String,
    /// `<namespace>/<type>/<name>`
    pub resource: String,
    /// Any text that changes when the node must see the object again.
    pub version: String,
    /// Lower goes first when several wait from the same moment on (a model before its devices).
    pub rank: u8,
}

/// What is known of an object on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub resource: String,
    /// [`UNCONFIRMED`] until the first acknowledgement.
    pub version: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Insert,
    Update,
    Delete,
    /// All that belongs on the node ([`crate::inventory`]).
    Inventory,
}

/// [`Push::uid`] of an inventory, which is no object.
pub const INVENTORY_UID: &str = "inventory";

/// One push of an object. Sent again under the same `msg_id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    pub msg_id: String,
    pub verb: Verb,
    pub uid: String,
    pub resource: String,
    /// The version that an acknowledgement confirms; empty for deletes.
    pub version: String,
    /// How often it was sent over this link, this time included.
    pub sends: u32,
}

#[derive(Clone, Debug)]
pub enum Input {
    /// A link came up. `nonce` (random) keeps message ids of different links apart; `window`: how many pushes may be on their
    /// way at one time; `inventory`: when all is acknowledged, the whole list follows.
    Connected {
        nonce: u128,
        window: usize,
        inventory: bool,
    },
    /// Before `Connected`: the node had stored these pushes of its last link ([`Delivery::unacked`]) when that ended.
    Resumed(Vec<Push>),
    Disconnected,
    /// The whole set of objects that belong on the node.
    Desired(Vec<Target>),
    /// The node acknowledged a message.
    Acked {
        msg_id: String,
    },
    /// The object of this push could not be read (deleted meanwhile): the next `Desired` decides anew.
    Skipped {
        msg_id: String,
    },
    /// The node has nothing (new flash, new store): everything is to be sent again.
    Reset,
    /// Nothing but time.
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Keep this record. `durable`: on disk before the next action is carried out; else soon.
    Record {
        uid: String,
        delivered: Delivered,
        durable: bool,
    },
    Forget {
        uid: String,
    },
    Send(Push),
}

#[derive(Debug)]
struct InFlight {
    sends: u32,
    /// In the order of sending.
    place: u64,
    resend_at_ms: u64,
}

/// See the module's text. Times are milliseconds of any monotonic clock.
#[derive(Debug, Default)]
pub struct Delivery {
    nonce: Option<u128>,
    window: usize,
    inventory_due: bool,
    next_id: u128,
    /// Sorted by uid.
    desired: Option<Box<[Target]>>,
    delivered: Known,
    /// Pushes of this link that wait for an acknowledgement, by uid. Only those `in_flight` are waited for.
    unacked: BTreeMap<String, Push>,
    in_flight: BTreeMap<String, InFlight>,
    next_place: u64,
    queue: VecDeque<String>,
    queued: BTreeSet<String>,
}

impl Delivery {
    /// `delivered`: the records as the actions left them.
    pub fn new(delivered: Known) -> Delivery {
        Delivery { delivered, ..Delivery::default() }
    }

    /// What the node has, as far as it said so.
    pub fn delivered(&self) -> &Known {
        &self.delivered
    }

    /// Objects that wait to be sent or acknowledged.
    pub fn backlog(&self) -> usize {
        self.queue.len() + self.in_flight.len()
    }

    /// Pushes of the link that is up, or was, which the node has not acknowledged.
    pub fn unacked(&self) -> impl Iterator<Item = &Push> {
        self.unacked.values()
    }

    /// The node has not acknowledged the inventory of this link.
    pub fn inventory_is_due(&self) -> bool {
        self.inventory_due
    }

    /// When [`Input::Tick`] is next of use.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.in_flight.values().min_by_key(|i| i.place).map(|first| first.resend_at_ms)
    }

    pub fn handle(&mut self, now_ms: u64, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Connected { nonce, window, inventory } => {
                self.unlink();
                self.nonce = Some(nonce);
                self.inventory_due = inventory;
                self.window = window.max(1);
                self.enqueue_all();
            }
            Input::Resumed(pushes) => {
                for push in pushes {
                    self.confirm(push, &mut actions);
                }
            }
            Input::Disconnected => self.unlink(),
            Input::Desired(targets) => {
                let mut targets = targets.into_boxed_slice();
                targets.sort_by(|a, b| a.uid.cmp(&b.uid));
                self.desired = Some(targets);
                self.enqueue_all();
            }
            Input::Acked { msg_id } => self.acked(now_ms, &msg_id, &mut actions),
            Input::Skipped { msg_id } => {
                if let Some(uid) = self.unacked_uid(&msg_id) {
                    self.skip(&uid);
                }
            }
            Input::Reset => {
                let gone = std::mem::take(&mut self.delivered);
                actions.extend(gone.into_uids().map(|uid| Action::Forget { uid }));
                self.unacked.clear();
                self.in_flight.clear();
                self.enqueue_all();
            }
            Input::Tick => self.resend(now_ms, &mut actions),
        }
        self.pump(now_ms, &mut actions);
        self.give_back();
        actions
    }

    /// A map or queue that was emptied one by one keeps its last room; there is one `Delivery` per node, and most are idle.
    fn give_back(&mut self) {
        if self.unacked.is_empty() {
            self.unacked.clear();
            self.in_flight.clear();
        }
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
            self.queued.clear();
        }
    }

    fn unlink(&mut self) {
        self.nonce = None;
        self.unacked.clear();
        self.in_flight.clear();
        self.queue.clear();
        self.queued.clear();
    }

    /// What the node lacks of this object, if anything.
    fn need(&self, uid: &str) -> Option<(Verb, String, String)> {
        if uid == INVENTORY_UID {
            let needed =
                self.inventory_due && self.desired.as_deref().is_some_and(crate::inventory::is_whole);
            return needed.then(|| (Verb::Inventory, String::new(), String::new()));
        }
        let desired = find(self.desired.as_ref()?, uid);
        match (desired, self.delivered.get(uid)) {
            (Some(target), Some(has)) if has.version == target.version => None,
            (Some(target), has) => {
                let confirmed = has.is_some_and(|has| has.version != UNCONFIRMED);
                let verb = if confirmed { Verb::Update } else { Verb::Insert };
                Some((verb, target.resource.clone(), target.version.clone()))
            }
            (None, Some(has)) => Some((Verb::Delete, has.resource.clone(), String::new())),
            (None, None) => None,
        }
    }

    /// Deletes first: a name may have been taken over by an object with another uid.
    fn enqueue_all(&mut self) {
        let Some(desired) = &self.desired else { return };
        let deletes = self.delivered.iter().map(|(uid, _)| uid);
        let deletes = deletes.filter(|uid| find(desired, uid).is_none()).map(|uid| (0, uid));
        let pushes = desired.iter().map(|target| (u16::from(target.rank) + 1, &target.uid));
        let mut lacking: Vec<(u16, String)> = deletes
            .chain(pushes)
            .filter(|(_, uid)| {
                !self.queued.contains(*uid) && !self.is_in_flight(uid) && self.need(uid).is_some()
            })
            .map(|(rank, uid)| (rank, uid.clone()))
            .collect();
        lacking.sort();
        for (_, uid) in lacking {
            self.enqueue(uid);
        }
    }

    fn enqueue(&mut self, uid: String) {
        if self.queued.insert(uid.clone()) {
            self.queue.push_back(uid);
        }
    }

    fn is_in_flight(&self, uid: &str) -> bool {
        self.in_flight.contains_key(uid)
    }

    fn unacked_uid(&self, msg_id: &str) -> Option<String> {
        self.unacked.values().find(|push| push.msg_id == msg_id).map(|push| push.uid.clone())
    }

    fn acked(&mut self, now_ms: u64, msg_id: &str, actions: &mut Vec<Action>) {
        let Some(uid) = self.unacked_uid(msg_id) else { return };
        let push = self.unacked.remove(&uid).expect("unacked_uid found it");
        self.confirm(push, actions);
        self.settle(&uid);
        self.wait_anew(now_ms);
    }

    /// The node has what this push says.
    fn confirm(&mut self, push: Push, actions: &mut Vec<Action>) {
        let Push { uid, resource, version, .. } = push;
        match push.verb {
            Verb::Inventory => self.inventory_due = false,
            Verb::Delete => {
                self.delivered.remove(&uid);
                actions.push(Action::Forget { uid });
            }
            Verb::Insert | Verb::Update => {
                let delivered = Delivered { resource, version };
                self.delivered.insert(&uid, delivered.clone());
                actions.push(Action::Record { uid, delivered, durable: false });
            }
        }
    }

    /// Ends the wait for an object that could not be read. Asked for again at once it would be gone again: what the cluster has
    /// shows with the next `Desired`, unless that came already while it was being read.
    fn skip(&mut self, uid: &str) {
        if self.push_is_current(uid) {
            self.unacked.remove(uid);
            self.in_flight.remove(uid);
        } else {
            self.settle(uid);
        }
    }

    /// Ends the wait for this object; it queues again if the node still lacks something of it.
    fn settle(&mut self, uid: &str) {
        self.in_flight.remove(uid);
        if self.need(uid).is_some() {
            self.enqueue(uid.to_owned());
        }
    }

    fn resend(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        // The node takes them in order, so only the one that was sent first is late; those behind it wait for it. To send them
        // all again would give a slow disk still more to do.
        let first = self.in_flight.iter().min_by_key(|(_, in_flight)| in_flight.place);
        let Some((uid, _)) = first.filter(|(_, in_flight)| in_flight.resend_at_ms <= now_ms) else { return };
        let uid = uid.clone();
        let is_current = self.push_is_current(&uid);
        match self.in_flight.get_mut(&uid).filter(|i| i.sends < PUSH_SENDS_MAX && is_current) {
            Some(in_flight) => {
                in_flight.sends += 1;
                in_flight.place = self.next_place;
                self.next_place += 1;
                self.send(&uid, actions);
            }
            None => self.settle(&uid),
        }
        self.wait_anew(now_ms);
    }

    /// On a slow link or disk, those behind the first waited for it and not for nothing. With many on their way, each repetition
    /// waits twice as long.
    fn wait_anew(&mut self, now_ms: u64) {
        for in_flight in self.in_flight.values_mut() {
            let factor = if self.window > 1 { 1 << (in_flight.sends - 1) } else { 1 };
            in_flight.resend_at_ms = now_ms + PUSH_RESEND_MS * factor;
        }
    }

    fn send(&mut self, uid: &str, actions: &mut Vec<Action>) {
        let push = self.unacked.get_mut(uid).expect("what is sent waits for its acknowledgement");
        push.sends += 1;
        actions.push(Action::Send(push.clone()));
    }

    fn push_is_current(&self, uid: &str) -> bool {
        let (Some(push), Some((verb, _, version))) = (self.unacked.get(uid), self.need(uid)) else {
            return false;
        };
        push.verb == verb && push.version == version
    }

    /// Starts the next pushes while the window has room.
    fn pump(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        let Some(nonce) = self.nonce else { return };
        while self.in_flight.len() < self.window {
            let Some(uid) = self.queue.pop_front() else {
                if self.in_flight.is_empty() && self.need(INVENTORY_UID).is_some() {
                    self.enqueue(INVENTORY_UID.into());
                    continue;
                }
                return;
            };
            self.queued.remove(&uid);
            let Some((verb, resource, version)) = self.need(&uid) else {
                self.unacked.remove(&uid);
                continue;
            };
            if verb == Verb::Insert && !self.delivered.contains(&uid) {
                let delivered = Delivered { resource: resource.clone(), version: UNCONFIRMED.into() };
                self.delivered.insert(&uid, delivered.clone());
                actions.push(Action::Record { uid: uid.clone(), delivered, durable: true });
            }
            // A push that only waited too long keeps its id, so that a late acknowledgement still counts.
            if !self.push_is_current(&uid) {
                self.next_id += 1;
                let msg_id = message_id(nonce, self.next_id);
                self.unacked.insert(
                    uid.clone(),
                    Push { msg_id, verb, uid: uid.clone(), resource, version, sends: 0 },
                );
            }
            self.send(&uid, actions);
            let in_flight =
                InFlight { sends: 1, place: self.next_place, resend_at_ms: now_ms + PUSH_RESEND_MS };
            self.next_place += 1;
            self.in_flight.insert(uid, in_flight);
        }
    }
}

fn find<'a>(sorted: &'a [Target], uid: &str) -> Option<&'a Target> {
    sorted.binary_search_by(|target| target.uid.as_str().cmp(uid)).ok().map(|at| &sorted[at])
}

fn message_id(nonce: u128, count: u128) -> String {
    uuid::Builder::from_random_bytes(nonce.wrapping_add(count << 1).to_be_bytes()).into_uuid().to_string()
}
