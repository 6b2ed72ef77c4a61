//! One line and who may speak on it: requests of several devices, one at a time, each client in its turn.
//!
//! A plain value: bytes and times go in, bytes and results come out. A late answer is not taken for the next one: TCP has transaction
//! numbers; on RTU and ASCII, which have none, a unit that missed its time is not spoken to for as long again, what comes meanwhile is dropped,
//! and others have their turn.

use std::collections::{BTreeMap, VecDeque};

use super::{
    adu::{self, Adu, Found, Framing, Receiver},
    pdu::{Answer, Exception, Refusal, Request},
};
use crate::limits::MODBUS_JOBS_MAX;

/// After a broadcast nobody answers; devices get this long to act (Modbus over Serial Line, section 2.4.1: 100 to 200 ms).
const BROADCAST_MS: u64 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Silence before a request: 3.5 characters on a serial line.
    pub gap_ms: u64,
    /// More silence, for slow devices (`pauseBetweenRequests`).
    pub pause_ms: u64,
    pub after_connect_ms: u64,
    /// How long a byte takes; 0 on TCP.
    pub byte_us: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub unit: u8,
    pub request: Request,
    pub timeout_ms: u64,
    /// Further tries when there was no answer, or a wrong one.
    pub retries: u8,
    /// Further tries when the slave said that it is busy.
    pub busy_retries: u8,
    pub busy_pause_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    Exception(Exception),
    /// It answered something else.
    Wrong,
    /// `noise`: bytes came, but no answer.
    NoAnswer {
        tries: u8,
        noise: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    pub ticket: u32,
    pub result: Result<Answer, Failure>,
}

#[derive(Default)]
struct Client {
    queue: VecDeque<Waiting>,
    done: VecDeque<Done>,
}

struct Waiting {
    ticket: u32,
    job: Job,
    tries: u8,
    busy_tries: u8,
    not_before_ms: u64,
    noise: bool,
}

struct Current {
    client: u32,
    waiting: Waiting,
    deadline_ms: u64,
    strays_before: u64,
}

pub struct Line {
    framing: Framing,
    timing: Timing,
    up: bool,
    ready_at_ms: u64,
    clients: BTreeMap<u32, Client>,
    next_client: u32,
    next_ticket: u32,
    served_last: u32,
    current: Option<Current>,
    receiver: Receiver,
    transaction: u16,
    /// Units that missed their time, and until when they are left alone. Empty on TCP.
    held: BTreeMap<u8, u64>,
    output: Adu,
}

impl Line {
    pub fn new(framing: Framing, timing: Timing) -> Line {
        Line {
            framing,
            timing,
            up: false,
            ready_at_ms: 0,
            clients: BTreeMap::new(),
            next_client: 0,
            next_ticket: 0,
            served_last: 0,
            current: None,
            receiver: Receiver::default(),
            transaction: 0,
            held: BTreeMap::new(),
            output: Adu::new(),
        }
    }

    pub fn is_anonymous(&self) -> bool {
        self.framing.is_anonymous()
    }

    pub fn join(&mut self) -> u32 {
        self.next_client += 1;
        self.clients.insert(self.next_client, Client::default());
        self.next_client
    }

    /// A request of it that is out stays out, so that its answer is known for what it is.
    pub fn leave(&mut self, client: u32) {
        self.clients.remove(&client);
    }

    /// Queues a request; `urgent` before the client's others. `None` when the client has too many.
    pub fn submit(&mut self, client: u32, job: Job, urgent: bool) -> Option<u32> {
        let client = self.clients.get_mut(&client)?;
        if client.queue.len() + client.done.len() >= MODBUS_JOBS_MAX {
            return None;
        }
        self.next_ticket = self.next_ticket.wrapping_add(1);
        let waiting = Waiting {
            ticket: self.next_ticket,
            job,
            tries: 0,
            busy_tries: 0,
            not_before_ms: 0,
            noise: false,
        };
        if urgent {
            client.queue.push_front(waiting);
        } else {
            client.queue.push_back(waiting);
        }
        Some(self.next_ticket)
    }

    /// Takes back what a client has not got an answer to.
    pub fn cancel(&mut self, client: u32) {
        if let Some(client) = self.clients.get_mut(&client) {
            *client = Client::default();
        }
    }

    pub fn take_done(&mut self, client: u32) -> Option<Done> {
        self.clients.get_mut(&client)?.done.pop_front()
    }

    pub fn has_done(&self, client: u32) -> bool {
        self.clients.get(&client).is_some_and(|client| !client.done.is_empty())
    }

    /// Bytes for the wire; the caller takes away what it wrote.
    pub fn output(&mut self) -> &mut Adu {
        &mut self.output
    }

    pub fn wants_to_write(&self) -> bool {
        !self.output.is_empty()
    }

    pub fn opened(&mut self, now_ms: u64) {
        self.up = true;
        self.ready_at_ms = now_ms + self.timing.after_connect_ms.max(self.timing.gap_ms);
        self.start_next(now_ms);
    }

    /// The wire is gone, and with it all that was asked.
    pub fn closed(&mut self) {
        self.up = false;
        self.current = None;
        self.output.clear();
        self.receiver.clear();
        self.held.clear();
        self.clients.values_mut().for_each(|client| *client = Client::default());
    }

    /// Nothing is out and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.current.is_none() && self.clients.values().all(|client| client.queue.is_empty())
    }

    /// An error means that the connection is of no use any more.
    pub fn received(&mut self, now_ms: u64, bytes: &[u8]) -> Result<(), String> {
        let Some(current) = &self.current else {
            if self.framing.is_anonymous() {
                self.receiver.strays += bytes.len() as u64;
                self.ready_at_ms = self.ready_at_ms.max(now_ms + self.timing.gap_ms);
                return Ok(());
            }
            // Frames go on in what comes next; transaction numbers tell late answers.
            return match self.receiver.feed(bytes, self.framing, self.transaction, 0, &NOTHING) {
                Found::Broken => Err(BROKEN.into()),
                Found::Nothing | Found::Answer(_) => Ok(()),
            };
        };
        let job = &current.waiting.job;
        if job.unit == 0 && self.framing.is_anonymous() {
            // Nobody may answer what is for all; who does it nevertheless speaks for himself.
            self.receiver.strays += bytes.len() as u64;
            return Ok(());
        }
        let found = self.receiver.feed(bytes, self.framing, self.transaction, job.unit, &job.request);
        match found {
            Found::Nothing => Ok(()),
            Found::Broken => Err(BROKEN.into()),
            Found::Answer(pdu) => {
                let result = job.request.decode(&pdu);
                self.answered(now_ms, result);
                self.start_next(now_ms);
                Ok(())
            }
        }
    }

    fn answered(&mut self, now_ms: u64, result: Result<Answer, Refusal>) {
        let Some(mut current) = self.current.take() else { return };
        self.ready_at_ms = now_ms + self.timing.gap_ms.max(self.timing.pause_ms);
        let waiting = &mut current.waiting;
        match result {
            Ok(answer) => self.finish(current, Ok(answer)),
            Err(Refusal::Exception(exception))
                if exception.is_busy() && waiting.busy_tries < waiting.job.busy_retries =>
            {
                waiting.busy_tries += 1;
                waiting.not_before_ms = now_ms + waiting.job.busy_pause_ms;
                self.again(current);
            }
            Err(Refusal::Exception(exception)) => self.finish(current, Err(Failure::Exception(exception))),
            Err(Refusal::Wrong) if waiting.tries <= waiting.job.retries => self.again(current),
            Err(Refusal::Wrong) => self.finish(current, Err(Failure::Wrong)),
        }
    }

    fn timed_out(&mut self, now_ms: u64) {
        let Some(mut current) = self.current.take() else { return };
        self.output.clear();
        self.ready_at_ms = self.ready_at_ms.max(now_ms + self.timing.gap_ms.max(self.timing.pause_ms));
        if self.framing.is_anonymous() {
            if current.waiting.job.unit == 0 {
                return self.finish(current, Ok(Answer::Written));
            }
            self.held.insert(current.waiting.job.unit, now_ms + current.waiting.job.timeout_ms);
            self.receiver.clear();
        }
        current.waiting.noise |= self.receiver.strays != current.strays_before;
        let Waiting { tries, noise, .. } = current.waiting;
        if tries <= current.waiting.job.retries {
            self.again(current);
        } else {
            self.finish(current, Err(Failure::NoAnswer { tries, noise }));
        }
    }

    /// Back to the front of its client's queue: others have their turn before.
    fn again(&mut self, current: Current) {
        if let Some(client) = self.clients.get_mut(&current.client) {
            client.queue.push_front(current.waiting);
        }
    }

    fn finish(&mut self, current: Current, result: Result<Answer, Failure>) {
        if let Some(client) = self.clients.get_mut(&current.client) {
            client.done.push_back(Done { ticket: current.waiting.ticket, result });
        }
    }

    /// Looks at the clock: ends what has waited too long, and starts what may start.
    pub fn tick(&mut self, now_ms: u64) {
        if self.current.as_ref().is_some_and(|current| current.deadline_ms <= now_ms) {
            self.timed_out(now_ms);
        }
        self.held.retain(|_, until_ms| *until_ms > now_ms);
        self.start_next(now_ms);
    }

    fn startable_at(&self, waiting: &Waiting) -> u64 {
        let held = self.held.get(&waiting.job.unit).copied().unwrap_or(0);
        waiting.not_before_ms.max(held).max(self.ready_at_ms)
    }

    fn start_next(&mut self, now_ms: u64) {
        if !self.up || self.current.is_some() || !self.output.is_empty() {
            return;
        }
        let startable = |client: &Client| {
            client.queue.front().is_some_and(|waiting| self.startable_at(waiting) <= now_ms)
        };
        let after = self.clients.range(self.served_last + 1..);
        let mut turns = after.chain(self.clients.range(..=self.served_last));
        let Some(id) = turns.find(|(_, client)| startable(client)).map(|(id, _)| *id) else { return };
        self.served_last = id;
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some(mut waiting) = client.queue.pop_front() else { return };
        self.transaction = self.transaction.wrapping_add(1);
        let Some(bytes) = adu::encode(self.framing, self.transaction, waiting.job.unit, &waiting.job.request)
        else {
            client.done.push_back(Done { ticket: waiting.ticket, result: Err(Failure::Wrong) });
            return;
        };
        if self.framing.is_anonymous() {
            self.receiver.clear();
        }
        waiting.tries = waiting.tries.saturating_add(1);
        let answer_len = self.framing.wire_len(waiting.job.request.answer_len());
        let on_the_wire = (bytes.len() + answer_len) as u64 * self.timing.byte_us;
        let broadcast = self.framing.is_anonymous() && waiting.job.unit == 0;
        let patience_ms = if broadcast { BROADCAST_MS } else { waiting.job.timeout_ms };
        self.current = Some(Current {
            client: id,
            deadline_ms: now_ms + patience_ms + on_the_wire.div_ceil(1000),
            strays_before: self.receiver.strays,
            waiting,
        });
        self.output = bytes;
    }

    pub fn deadline_ms(&self) -> Option<u64> {
        if !self.up {
            return None;
        }
        if let Some(current) = &self.current {
            return Some(current.deadline_ms);
        }
        let fronts = self.clients.values().filter_map(|client| client.queue.front());
        fronts.map(|waiting| self.startable_at(waiting)).min()
    }
}

const BROKEN: &str = "what comes is not Modbus TCP; check the port, or set transmissionMode to RTUoverTCP for a gateway that passes bytes on";
const NOTHING: Request = Request::WriteRegisters { address: 0, values: Vec::new(), multiple: false };
