//! Lists that are read page by page. A page is a consistent snapshot: the rest of the list is kept (as references, not
//! copies) until it is read, too old, or pushed out by newer lists.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use store::Record;

use crate::limits::{PAGED_LIST_AGE_MAX, PAGED_LISTS_MAX};

/// What a `continue` token says. It is opaque to clients; nothing in it is trusted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Token {
    /// Snapshot; 0 for "go on from what is there now".
    pub rv: u64,
    pub id: u64,
    /// The last key that was sent.
    pub ns: String,
    pub name: String,
}

impl Token {
    pub fn encode(&self) -> String {
        let json = serde_json::to_vec(self).expect("strings and numbers serialize");
        json.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub fn decode(text: &str) -> Option<Token> {
        let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
        let bytes: Vec<u8> =
            digits?.chunks(2).map(|pair| pair.iter().fold(0, |sum, digit| sum << 4 | digit)).collect();
        serde_json::from_slice(&bytes).ok()
    }
}

struct Kept {
    id: u64,
    kind: String,
    since: Instant,
    rest: Vec<Arc<Record>>,
}

#[derive(Default)]
pub(crate) struct Pages {
    kept: Mutex<(u64, VecDeque<Kept>)>,
}

impl Pages {
    /// Keeps the rest of a list; the number goes into the token.
    pub fn keep(&self, kind: &str, rest: Vec<Arc<Record>>) -> u64 {
        let mut state = self.kept.lock().expect("no holder of this lock panics");
        let (last_id, lists) = &mut *state;
        *last_id += 1;
        lists.retain(|list| list.since.elapsed() < PAGED_LIST_AGE_MAX);
        if lists.len() == PAGED_LISTS_MAX {
            lists.pop_front();
        }
        lists.push_back(Kept { id: *last_id, kind: kind.to_string(), since: Instant::now(), rest });
        *last_id
    }

    /// A page can be asked for again (after a lost answer), so it stays.
    pub fn find(&self, kind: &str, id: u64) -> Option<Vec<Arc<Record>>> {
        let state = self.kept.lock().expect("no holder of this lock panics");
        let list = state.1.iter().find(|list| list.id == id && list.kind == kind)?;
        (list.since.elapsed() < PAGED_LIST_AGE_MAX).then(|| list.rest.clone())
    }
}

/// For fuzzing: any text is a token or none.
pub fn fuzz_token(data: &[u8]) -> bool {
    Token::decode(&String::from_utf8_lossy(data)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_way_to_the_client_and_nothing_else_does() {
        let token = Token { rv: 7, id: 3, ns: "a".into(), name: "ü".into() };
        let text = token.encode();
        assert_eq!(Token::decode(&text), Some(token));
        let mut state = 7_u64;
        let mut accepted = 0;
        for _ in 0..20_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let mut bytes = text.clone().into_bytes();
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] = (state >> 20) as u8;
            bytes.truncate(1 + (state >> 40) as usize % bytes.len());
            accepted += usize::from(fuzz_token(&bytes));
        }
        assert!(accepted < 20_000, "mutations must be able to fail");
    }
}
