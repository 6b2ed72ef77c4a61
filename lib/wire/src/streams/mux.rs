//! All streams of one link at one end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Frame, Read, StreamEnd, entry::Entry};
use crate::limits::{
    STREAM_ANSWERS_MAX, STREAM_WINDOW_MAX, STREAM_WINDOW_MIN, STREAMS_BYTES_MAX, STREAMS_MAX,
};

/// A new stream gets at most this share of the bytes that are left, so that a few streams have whole windows and many still fit.
const WINDOW_SHARE: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub streams_max: usize,
    /// Windows of all streams together.
    pub link_bytes_max: usize,
    pub window_max: u32,
    pub window_min: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            streams_max: STREAMS_MAX,
            link_bytes_max: STREAMS_BYTES_MAX,
            window_max: STREAM_WINDOW_MAX,
            window_min: STREAM_WINDOW_MIN,
        }
    }
}

/// What the shell has to tell whoever holds a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The peer opened this stream, and it was taken.
    Opened(u32),
    /// Something changed: who waits to read, to write or for the acceptance of this stream should try again.
    Ready(u32),
}

/// The peer breaks rules that hold for the whole link, which must be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("the peer opened stream {id} after {last}; ids must rise")]
    Id { id: u32, last: u32 },
    #[error("the peer sent a frame for stream {0}, which was never opened")]
    NeverOpened(u32),
    #[error("the peer opened a stream, but only the cloud opens streams")]
    NotTheOpener,
    #[error("the peer opens streams faster than it takes the refusals")]
    Flood,
}

/// No stream can be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{0} streams are open, which is the limit")]
    TooMany(usize),
    #[error("the streams that are open have all {0} bytes of the link")]
    NoBytes(usize),
    #[error("the link takes nothing at the moment, {0} frames wait")]
    Stalled(usize),
}

/// See the module's text. The shell feeds what came ([`Mux::handle`]), takes what is to be sent when the socket takes it
/// ([`Mux::transmit`]), and reads and writes for the streams' owners.
#[derive(Debug)]
pub struct Mux {
    settings: Settings,
    is_opener: bool,
    /// The last id that was opened.
    last: u32,
    entries: BTreeMap<u32, Entry>,
    /// Opens, accepts, resets: in order, before everything else.
    answers: VecDeque<Frame>,
    /// Streams whose window is to be opened again.
    grants: BTreeSet<u32>,
    /// Streams with something to send that the peer takes, in the order of their turns. Each at most once.
    turns: VecDeque<u32>,
    reported: BTreeSet<u16>,
}

impl Mux {
    /// The end that opens streams: the cloud's.
    pub fn opener(settings: Settings) -> Mux {
        Mux::new(settings, true)
    }

    /// The end that accepts streams: the node's.
    pub fn acceptor(settings: Settings) -> Mux {
        Mux::new(settings, false)
    }

    fn new(settings: Settings, is_opener: bool) -> Mux {
        Mux {
            settings,
            is_opener,
            last: 0,
            entries: BTreeMap::new(),
            answers: VecDeque::new(),
            grants: BTreeSet::new(),
            turns: VecDeque::new(),
            reported: BTreeSet::new(),
        }
    }

    /// A new stream. It can be written to at once; data leaves when the peer has accepted.
    pub fn open(&mut self) -> Result<u32, Refused> {
        assert!(self.is_opener, "only the opener's end opens streams");
        let window = self.new_window()?;
        if self.answers.len() >= STREAM_ANSWERS_MAX {
            return Err(Refused::Stalled(self.answers.len()));
        }
        self.last += 1;
        let id = self.last;
        self.entries.insert(id, Entry::new(window, 0, false));
        self.answers.push_back(Frame::Open { id, window });
        Ok(id)
    }

    pub fn is_accepted(&self, id: u32) -> Result<bool, StreamEnd> {
        let entry = self.entry(id);
        match entry.ended() {
            Some(reason) => Err(StreamEnd(reason.into())),
            None => Ok(entry.accepted),
        }
    }

    /// How many bytes were taken; 0: wait for [`Action::Ready`].
    pub fn write(&mut self, id: u32, bytes: &[u8]) -> Result<usize, StreamEnd> {
        let taken = self.entry_mut(id).write(bytes)?;
        self.queue_turn(id);
        Ok(taken)
    }

    pub fn read(&mut self, id: u32, into: &mut [u8]) -> Result<Read, StreamEnd> {
        let entry = self.entry_mut(id);
        let read = entry.read(into)?;
        if entry.grant_is_due() {
            self.grants.insert(id);
        }
        Ok(read)
    }

    /// No more data from this end; what was written still goes out, and reading goes on.
    pub fn finish(&mut self, id: u32) {
        self.entry_mut(id).finish();
        self.queue_turn(id);
    }

    /// Whoever held the stream has gone. A stream that was finished still sends what is left; any
    /// other one is reset.
    pub fn close(&mut self, id: u32) {
        let entry = self.entry_mut(id);
        entry.dropped = true;
        if !entry.is_finishing() {
            self.reset(id, "closed by the other end");
        } else if entry.ended().is_none() && !entry.has_peer_finished() {
            // Without it two ends that have both gone would wait for each other's window.
            self.answers.push_back(Frame::Stop { id });
        }
        self.tidy(id);
    }

    /// Ends every stream here; nothing is sent any more. For a link that has ended.
    pub fn end_all(&mut self, reason: &str) -> Vec<Action> {
        (self.answers, self.grants, self.turns) = Default::default();
        self.entries.retain(|_, entry| !entry.dropped);
        let mut actions = Vec::new();
        for (id, entry) in &mut self.entries {
            entry.end(reason);
            actions.push(Action::Ready(*id));
        }
        actions
    }

    /// Takes a frame of the peer.
    pub fn handle(&mut self, frame: Frame) -> Result<Option<Action>, Violation> {
        match frame {
            Frame::Open { id, window } => self.opened(id, window),
            Frame::Accept { id, window } => {
                let Some(entry) = self.find(id)? else { return Ok(None) };
                if !self.is_opener || entry.accepted {
                    return Ok(self.broken(id, "it was accepted twice"));
                }
                let entry = self.entry_mut(id);
                entry.accepted = true;
                let credited = entry.credit(window);
                self.credited(id, credited)
            }
            Frame::Data { id, bytes } => {
                if self.find(id)?.is_none() {
                    return Ok(None);
                }
                match self.entry_mut(id).data(&bytes) {
                    Ok(()) => Ok(Some(Action::Ready(id))),
                    Err(why) => Ok(self.broken(id, &why)),
                }
            }
            Frame::Window { id, add } => {
                if self.find(id)?.is_none() {
                    return Ok(None);
                }
                let credited = self.entry_mut(id).credit(add);
                self.credited(id, credited)
            }
            Frame::Finish { id } => {
                if self.find(id)?.is_none() {
                    return Ok(None);
                }
                self.entry_mut(id).peer_finished();
                self.tidy(id);
                Ok(Some(Action::Ready(id)))
            }
            Frame::Stop { id } => {
                if self.find(id)?.is_none() {
                    return Ok(None);
                }
                self.entry_mut(id).stop();
                self.queue_turn(id);
                Ok(Some(Action::Ready(id)))
            }
            Frame::Reset { id, reason } => {
                if self.find(id)?.is_none() {
                    return Ok(None);
                }
                self.entry_mut(id).end(&reason);
                self.tidy(id);
                Ok(Some(Action::Ready(id)))
            }
            Frame::Skipped { kind } => {
                // Once per kind, and not for ever.
                if self.reported.len() < 64 && self.reported.insert(kind) {
                    self.answers.push_back(Frame::Unknown { kind });
                }
                Ok(None)
            }
            Frame::Unknown { .. } => Ok(None),
        }
    }

    /// The next frame for the peer, to be asked for when the socket takes one; and who may go on writing then.
    pub fn transmit(&mut self) -> Option<(Frame, Option<Action>)> {
        if let Some(frame) = self.answers.pop_front() {
            return Some((frame, None));
        }
        while let Some(id) = self.grants.pop_first() {
            if let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.grant_is_due()) {
                return Some((Frame::Window { id, add: entry.grant() }, None));
            }
        }
        while let Some(id) = self.turns.pop_front() {
            let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.is_ready()) else { continue };
            let (frame, may_write) = entry.transmit(id);
            self.queue_turn(id);
            self.tidy(id);
            return Some((frame, may_write.then_some(Action::Ready(id))));
        }
        None
    }

    pub fn has_work(&self) -> bool {
        !self.answers.is_empty() || !self.grants.is_empty() || !self.turns.is_empty()
    }

    /// Streams that are open or still have something to send.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that were received and not read.
    pub fn kept_len(&self) -> usize {
        self.entries.values().map(Entry::kept_len).sum()
    }

    /// Bytes that were written and not sent.
    pub fn queued_len(&self) -> usize {
        self.entries.values().map(Entry::queued_len).sum()
    }

    fn opened(&mut self, id: u32, credit: u32) -> Result<Option<Action>, Violation> {
        if self.is_opener {
            return Err(Violation::NotTheOpener);
        }
        if id <= self.last {
            return Err(Violation::Id { id, last: self.last });
        }
        if self.answers.len() >= STREAM_ANSWERS_MAX {
            return Err(Violation::Flood);
        }
        self.last = id;
        match self.new_window() {
            Ok(window) => {
                self.entries.insert(id, Entry::new(window, credit, true));
                self.answers.push_back(Frame::Accept { id, window });
                Ok(Some(Action::Opened(id)))
            }
            Err(why) => {
                self.answers.push_back(Frame::Reset { id, reason: why.to_string() });
                Ok(None)
            }
        }
    }

    fn new_window(&self) -> Result<u32, Refused> {
        let Settings { streams_max, link_bytes_max, window_max, window_min } = self.settings;
        if self.entries.len() >= streams_max {
            return Err(Refused::TooMany(streams_max));
        }
        let granted: usize = self.entries.values().map(|entry| entry.window as usize).sum();
        let left = link_bytes_max.saturating_sub(granted);
        if left < window_min as usize {
            return Err(Refused::NoBytes(link_bytes_max));
        }
        Ok(((left / WINDOW_SHARE) as u32).clamp(window_min, window_max))
    }

    /// `None`: it was here and has gone, so that frames for it are late and not wrong.
    fn find(&self, id: u32) -> Result<Option<&Entry>, Violation> {
        match self.entries.get(&id) {
            Some(entry) => Ok(Some(entry)),
            None if id <= self.last => Ok(None),
            None => Err(Violation::NeverOpened(id)),
        }
    }

    fn credited(&mut self, id: u32, credited: Result<(), String>) -> Result<Option<Action>, Violation> {
        Ok(match credited {
            Ok(()) => {
                self.queue_turn(id);
                Some(Action::Ready(id))
            }
            Err(why) => self.broken(id, &why),
        })
    }

    /// The peer broke the stream's rules.
    fn broken(&mut self, id: u32, why: &str) -> Option<Action> {
        let reason = format!("the stream's rules were broken: {why}");
        self.reset(id, &reason);
        self.tidy(id);
        Some(Action::Ready(id))
    }

    fn reset(&mut self, id: u32, reason: &str) {
        let entry = self.entry_mut(id);
        if entry.ended().is_none() {
            entry.end(reason);
            self.answers.push_back(Frame::Reset { id, reason: reason.into() });
        }
    }

    /// Forgets a stream that nobody holds and about which everything was said.
    fn tidy(&mut self, id: u32) {
        let entry = self.entry(id);
        if entry.dropped && (entry.ended().is_some() || (entry.has_finished() && entry.has_peer_finished())) {
            self.entries.remove(&id);
        }
    }

    fn queue_turn(&mut self, id: u32) {
        if self.entry(id).is_ready() && !self.turns.contains(&id) {
            self.turns.push_back(id);
        }
    }

    fn entry(&self, id: u32) -> &Entry {
        self.entries.get(&id).expect("a stream that somebody holds is known")
    }

    fn entry_mut(&mut self, id: u32) -> &mut Entry {
        self.entries.get_mut(&id).expect("a stream that somebody holds is known")
    }
}
