//! Which nodes are connected, who takes over from whom, and what is kept of a link that ended for the one that follows.
//!
//! Invariants
//! - One session per node. The newest connection wins, the old one is ended at once.
//! - Two devices under one name do not take the link from each other for ever: who was replaced does not replace its successor.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rt::Drain;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use wire::delivery::Push;

use crate::limits::{RIVAL_TIME, RIVALS_MAX};

/// Which nodes are connected.
#[derive(Clone, Default)]
pub struct Sessions(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    slots: HashMap<String, Slot>,
    /// At most as many as there may be nodes.
    parked: HashMap<String, Parked>,
    /// Of each node, who was replaced while its link was up, and when. At most [`RIVALS_MAX`] nodes.
    replaced: HashMap<String, Vec<(Origin, Instant)>>,
}

struct Slot {
    /// Stops the session that has the place or waits for it.
    stop: Drain,
    /// Of the session that came last.
    origin: Origin,
    /// One permit: the right to be the node's session.
    place: Arc<Semaphore>,
    claims: usize,
}

/// What tells one device from another beside the certificate, which both may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Empty: it says nothing.
    pub store_id: String,
    /// Number of this link; 0 on the JSON lane.
    pub link: u64,
    /// Number of the link that it dialled before; 0: none.
    pub before: u64,
}

impl Origin {
    /// `self` comes back although `replaced`, which was itself, was replaced by another device.
    fn is_return_of(&self, replaced: &Origin) -> bool {
        match (self.before, replaced.link) {
            (before, link) if before != 0 && link != 0 => before == link,
            _ => !self.store_id.is_empty() && self.store_id == replaced.store_id,
        }
    }

    /// `self` is what `live` became, or may be.
    fn may_follow(&self, live: &Origin) -> bool {
        if self.before != 0 && live.link != 0 {
            return self.before == live.link;
        }
        self.store_id.is_empty() || live.store_id.is_empty() || self.store_id == live.store_id
    }
}

/// What is kept of a link on the compact lane for the next one.
#[derive(Debug)]
pub struct Parked {
    pub link: u64,
    pub generation: u64,
    pub node_uid: Option<String>,
    pub members: BTreeSet<String>,
    /// Pushes that were not acknowledged, by their number on that link.
    pub sent: BTreeMap<u32, Push>,
    pub inventory_due: bool,
}

impl Sessions {
    /// Why this connection is refused, if it is: the node's link belongs to another device that replaced this one.
    pub fn rival(&self, node: &str, origin: &Origin) -> Option<String> {
        let state = self.lock();
        let live = state.slots.get(node).filter(|slot| slot.claims > 0)?;
        if origin.may_follow(&live.origin) {
            return None;
        }
        let now = Instant::now();
        let was_replaced = state
            .replaced
            .get(node)?
            .iter()
            .any(|(replaced, at)| now.duration_since(*at) < RIVAL_TIME && origin.is_return_of(replaced));
        let (ours, theirs) = (short(&origin.store_id), short(&live.origin.store_id));
        was_replaced.then(|| {
            format!(
                "two devices use the name {node} (stores {ours} and {theirs}), and the other one is connected; join one of them \
                 under another name"
            )
        })
    }

    /// Ends the node's session, if there is one, and waits until it has. `None`: stopped while waiting.
    pub async fn take_over(&self, node: &str, origin: Origin, stop: Drain) -> Option<Place> {
        let semaphore = {
            let mut state = self.lock();
            let State { slots, replaced, .. } = &mut *state;
            let slot = slots.entry(node.to_owned()).or_insert_with(|| Slot {
                stop: stop.clone(),
                origin: origin.clone(),
                place: Arc::new(Semaphore::new(1)),
                claims: 0,
            });
            if slot.claims > 0 {
                slot.stop.start();
                if !origin.may_follow(&slot.origin) {
                    tracing::warn!(
                        "node {node}: another device takes over its link (store {} instead of {}); if both go on, join one of \
                         them under another name",
                        short(&origin.store_id),
                        short(&slot.origin.store_id)
                    );
                }
                // After a start a device names no link before; whether it is the same one shows when the other returns.
                if origin.before == 0 || origin.before != slot.origin.link {
                    note_replaced(replaced, node, slot.origin.clone());
                }
            }
            slot.stop = stop.clone();
            slot.origin = origin;
            slot.claims += 1;
            slot.place.clone()
        };
        let claim = Claim { sessions: self.clone(), node: node.to_owned() };
        let permit = stop.or(semaphore.acquire_owned()).await?.expect("the semaphore is never closed");
        Some(Place { _permit: permit, _claim: claim })
    }

    pub fn has_room(&self, node: &str, nodes_max: usize) -> bool {
        let state = self.lock();
        state.slots.contains_key(node) || state.slots.len() < nodes_max
    }

    pub fn len(&self) -> usize {
        self.lock().slots.len()
    }

    /// What was kept of the node's last link, once.
    pub fn unpark(&self, node: &str) -> Option<Parked> {
        self.lock().parked.remove(node)
    }

    /// Full: nothing is kept, and the node registers anew.
    pub fn park(&self, node: &str, parked: Parked, nodes_max: usize) {
        let mut state = self.lock();
        if state.parked.len() < nodes_max || state.parked.contains_key(node) {
            state.parked.insert(node.to_owned(), parked);
        }
    }

    /// Held for a look-up or an insert, never across an await.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note_replaced(replaced: &mut HashMap<String, Vec<(Origin, Instant)>>, node: &str, origin: Origin) {
    let now = Instant::now();
    replaced.retain(|_, of_node| {
        of_node.retain(|(_, at)| now.duration_since(*at) < RIVAL_TIME);
        !of_node.is_empty()
    });
    if replaced.len() < RIVALS_MAX || replaced.contains_key(node) {
        let of_node = replaced.entry(node.to_owned()).or_default();
        of_node.push((origin, now));
        // Two devices are what happens; of a crowd the last few are enough.
        if of_node.len() > 8 {
            of_node.remove(0);
        }
    }
}

fn short(store_id: &str) -> &str {
    if store_id.is_empty() { "unknown" } else { &store_id[..store_id.floor_char_boundary(8)] }
}

/// The right to be the node's session; goes back when dropped. The permit goes first, so that the next one may start.
pub struct Place {
    _permit: tokio::sync::OwnedSemaphorePermit,
    _claim: Claim,
}

struct Claim {
    sessions: Sessions,
    node: String,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.sessions.lock();
        if let Some(slot) = state.slots.get_mut(&self.node) {
            slot.claims -= 1;
            if slot.claims == 0 {
                state.slots.remove(&self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(store_id: &str, link: u64, before: u64) -> Origin {
        Origin { store_id: store_id.into(), link, before }
    }

    async fn connect(sessions: &Sessions, origin: Origin) -> Result<Place, String> {
        match sessions.rival("n", &origin) {
            Some(why) => Err(why),
            None => Ok(sessions.take_over("n", origin, Drain::new()).await.expect("nobody stops it")),
        }
    }

    /// The old session ends when it is told to; here by dropping its place beforehand would hide the take-over.
    async fn replace(sessions: &Sessions, old: Place, origin: Origin) -> Result<Place, String> {
        if let Some(why) = sessions.rival("n", &origin) {
            return Err(why);
        }
        let (new, ()) = tokio::join!(sessions.take_over("n", origin, Drain::new()), async { drop(old) });
        Ok(new.expect("nobody stops it"))
    }

    #[tokio::test]
    async fn two_devices_with_one_name_do_not_take_turns() {
        for (a, b, again) in [
            // On the JSON lane they differ by their stores.
            (origin("aaaa", 0, 0), origin("bbbb", 0, 0), origin("aaaa", 0, 0)),
            // A cloned card has the same store; the links tell them apart.
            (origin("same", 1, 0), origin("same", 2, 0), origin("same", 3, 1)),
            (origin("same", 1, 0), origin("same", 2, 9), origin("same", 3, 1)),
        ] {
            let sessions = Sessions::default();
            let first = connect(&sessions, a).await.expect("the first");
            let second = replace(&sessions, first, b).await.expect("the newer connection wins");
            let why =
                connect(&sessions, again.clone()).await.err().expect("who was replaced does not come back");
            assert!(why.contains("two devices use the name n"), "{why}");
            drop(second);
            connect(&sessions, again).await.expect("the other one has gone");
        }
    }

    #[tokio::test]
    async fn one_device_that_reconnects_is_no_rival_of_itself() {
        let sessions = Sessions::default();
        let mut place = connect(&sessions, origin("s", 1, 0)).await.unwrap();
        // A dial whose answer was lost counts as well, since the node names what it dialled last.
        for link in 2..20 {
            place = replace(&sessions, place, origin("s", link, link - 1)).await.unwrap();
        }
        place = replace(&sessions, place, origin("s", 50, 0)).await.expect("after a restart");
        place = replace(&sessions, place, origin("new store", 60, 0)).await.expect("a new disk");
        replace(&sessions, place, origin("new store", 61, 60)).await.expect("and goes on");
    }
}
