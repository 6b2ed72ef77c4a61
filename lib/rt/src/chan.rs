//! Bounded channels. The constructor's name says what happens when one is full.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, mpsc, watch};

/// Full: `send` waits, `try_send` refuses.
pub fn waiting<T>(len_max: usize) -> (mpsc::Sender<T>, mpsc::Receiver<T>) {
    mpsc::channel(len_max)
}

/// Only the latest value counts; never full.
pub fn latest<T>(first: T) -> (watch::Sender<T>, watch::Receiver<T>) {
    watch::channel(first)
}

/// Full: the oldest value is dropped (and counted).
pub fn drop_oldest<T>(len_max: usize) -> (Sender<u64, T>, Receiver<u64, T>) {
    queue(len_max)
}

/// A newer value replaces a waiting one with the same key, in its place. Full (more keys than `len_max`): the oldest key is
/// dropped (and counted).
pub fn merging<K: Eq + Hash + Clone, T>(len_max: usize) -> (Sender<K, T>, Receiver<K, T>) {
    queue(len_max)
}

fn queue<K, T>(len_max: usize) -> (Sender<K, T>, Receiver<K, T>) {
    assert!(len_max > 0, "a channel holds at least one value");
    let state = State {
        order: VecDeque::new(),
        values: HashMap::new(),
        len_max,
        dropped: 0,
        senders: 1,
        receiver: true,
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), filled: Notify::new() });
    (Sender { shared: shared.clone() }, Receiver { shared })
}

struct Shared<K, T> {
    state: Mutex<State<K, T>>,
    filled: Notify,
}

struct State<K, T> {
    order: VecDeque<K>,
    values: HashMap<K, T>,
    len_max: usize,
    dropped: u64,
    senders: usize,
    receiver: bool,
}

impl<K, T> Shared<K, T> {
    fn lock(&self) -> MutexGuard<'_, State<K, T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Never waits.
pub struct Sender<K, T> {
    shared: Arc<Shared<K, T>>,
}

pub struct Receiver<K, T> {
    shared: Arc<Shared<K, T>>,
}

impl<T> Sender<u64, T> {
    pub fn push(&self, value: T) {
        let mut state = self.shared.lock();
        let key = state.order.back().map_or(0, |last| last.wrapping_add(1));
        state.put(key, value);
        drop(state);
        self.shared.filled.notify_one();
    }
}

impl<K: Eq + Hash + Clone, T> Sender<K, T> {
    pub fn put(&self, key: K, value: T) {
        self.shared.lock().put(key, value);
        self.shared.filled.notify_one();
    }

    /// Values that nobody will receive, because there were too many.
    pub fn dropped(&self) -> u64 {
        self.shared.lock().dropped
    }
}

impl<K: Eq + Hash + Clone, T> State<K, T> {
    fn put(&mut self, key: K, value: T) {
        if !self.receiver {
            return;
        }
        if self.values.insert(key.clone(), value).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > self.len_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.values.remove(&oldest);
            self.dropped += 1;
        }
    }
}

impl<K: Eq + Hash, T> Receiver<K, T> {
    pub fn try_recv(&mut self) -> Option<(K, T)> {
        let mut state = self.shared.lock();
        let key = state.order.pop_front()?;
        let value = state.values.remove(&key).expect("every ordered key has a value");
        Some((key, value))
    }

    /// None: all senders are gone and everything was received. Safe to drop at any time.
    pub async fn recv(&mut self) -> Option<(K, T)> {
        loop {
            // Registered before looking, so that a value put in between wakes it.
            let shared = self.shared.clone();
            let filled = shared.filled.notified();
            if let Some(value) = self.try_recv() {
                return Some(value);
            }
            if self.shared.lock().senders == 0 {
                return None;
            }
            filled.await;
        }
    }
}

impl<K, T> Clone for Sender<K, T> {
    fn clone(&self) -> Self {
        self.shared.lock().senders += 1;
        Sender { shared: self.shared.clone() }
    }
}

impl<K, T> Drop for Sender<K, T> {
    fn drop(&mut self) {
        self.shared.lock().senders -= 1;
        self.shared.filled.notify_one();
    }
}

impl<K, T> Drop for Receiver<K, T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.receiver = false;
        state.order.clear();
        state.values.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_channel_drops_the_oldest_and_says_how_many() {
        let (tx, mut rx) = drop_oldest(3);
        (1..=5).for_each(|value| tx.push(value));
        let received: Vec<i32> = std::iter::from_fn(|| rx.try_recv()).map(|(_, value)| value).collect();
        assert_eq!((received, tx.dropped()), (vec![3, 4, 5], 2));
    }

    #[test]
    fn a_newer_value_takes_the_place_of_the_waiting_one() {
        let (tx, mut rx) = merging(2);
        for (key, value) in [("a", 1), ("b", 1), ("a", 2), ("c", 1)] {
            tx.put(key, value);
        }
        let received: Vec<_> = std::iter::from_fn(|| rx.try_recv()).collect();
        assert_eq!((received, tx.dropped()), (vec![("b", 1), ("c", 1)], 1));
    }

    #[test]
    fn receiving_waits_and_ends_with_the_last_sender() {
        let runtime = crate::runtime().unwrap();
        runtime.block_on(async {
            let (tx, mut rx) = merging(2);
            let other = tx.clone();
            let reader = tokio::spawn(async move {
                let mut received = Vec::new();
                while let Some(item) = rx.recv().await {
                    received.push(item);
                }
                received
            });
            tokio::task::yield_now().await;
            tx.put("a", 1);
            tokio::task::yield_now().await;
            other.put("a", 2);
            drop((tx, other));
            assert_eq!(reader.await.unwrap(), [("a", 1), ("a", 2)]);
        });
    }
}
