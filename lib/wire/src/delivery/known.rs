//! What is known of the objects on one node, by uid. Most nodes have a few, and a hub has many nodes: nothing but the entries is held.

use super::Delivered;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known(Vec<(String, Delivered)>);

impl Known {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, uid: &str) -> Option<&Delivered> {
        self.place(uid).ok().map(|at| &self.0[at].1)
    }

    pub fn contains(&self, uid: &str) -> bool {
        self.place(uid).is_ok()
    }

    /// By uid.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Delivered)> {
        self.0.iter().map(|(uid, delivered)| (uid, delivered))
    }

    pub fn insert(&mut self, uid: &str, delivered: Delivered) {
        match self.place(uid) {
            Ok(at) => self.0[at].1 = delivered,
            Err(at) => {
                if self.0.is_empty() {
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, (uid.to_owned(), delivered));
            }
        }
    }

    pub fn remove(&mut self, uid: &str) {
        if let Ok(at) = self.place(uid) {
            self.0.remove(at);
        }
    }

    pub fn into_uids(self) -> impl Iterator<Item = String> {
        self.0.into_iter().map(|(uid, _)| uid)
    }

    fn place(&self, uid: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.as_str().cmp(uid))
    }
}

impl FromIterator<(String, Delivered)> for Known {
    fn from_iter<T: IntoIterator<Item = (String, Delivered)>>(entries: T) -> Known {
        // Of several with one uid the last one counts.
        let sorted: std::collections::BTreeMap<String, Delivered> = entries.into_iter().collect();
        let mut entries = Vec::with_capacity(sorted.len());
        entries.extend(sorted);
        Known(entries)
    }
}
