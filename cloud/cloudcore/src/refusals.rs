//! Refused peers in the log: once each, however often they come back.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The same peer is told of again after this long.
const REPEAT: Duration = Duration::from_secs(600);
/// Peers that are remembered. More: the others share one line per [`REPEAT`].
const PEERS_MAX: usize = 1024;
const OTHERS: &str = "others";

/// Keyed by who it is: a node's name where a certificate tells it, else an address without its port.
#[derive(Default)]
pub struct RefusalLog(Mutex<HashMap<String, (Instant, u64)>>);

impl RefusalLog {
    /// Logs the line, unless the peer had one a short while ago.
    pub fn tell(&self, peer: &str, line: &str) {
        if let Some(silent) = self.due(peer, Instant::now()) {
            let more = if silent == 0 { String::new() } else { format!(" ({silent} times in between)") };
            tracing::warn!("{line}{more}");
        }
    }

    /// `Some`: now, with how often it was kept silent.
    fn due(&self, peer: &str, now: Instant) -> Option<u64> {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !peers.contains_key(peer) && peers.len() >= PEERS_MAX {
            peers.retain(|_, (told, _)| now.duration_since(*told) < REPEAT);
        }
        let peer = if peers.contains_key(peer) || peers.len() < PEERS_MAX { peer } else { OTHERS };
        match peers.get_mut(peer) {
            Some((told, silent)) if now.duration_since(*told) < REPEAT => {
                *silent += 1;
                None
            }
            Some(entry) => Some(std::mem::replace(entry, (now, 0)).1),
            None => {
                peers.insert(peer.to_owned(), (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_comes_back_costs_one_line_and_many_peers_cost_bounded_memory() {
        let (log, start) = (RefusalLog::default(), Instant::now());
        assert_eq!(log.due("pi", start), Some(0));
        assert_eq!((0..5).filter_map(|_| log.due("pi", start)).count(), 0);
        assert_eq!(log.due("pi", start + REPEAT), Some(5));
        let lines = (0..10 * PEERS_MAX).filter_map(|n| log.due(&format!("10.0.{n}"), start + REPEAT)).count();
        assert!(lines <= PEERS_MAX, "{lines}");
        assert!(log.0.lock().unwrap().len() <= PEERS_MAX + 1);
        assert_eq!(log.due("pj", start + 3 * REPEAT), Some(0), "old ones make room");
    }
}
