//! What the modules hold of the hub: a mailbox that never blocks, and the state of the link.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, oneshot, watch};
use wire::Message;

use crate::{
    contract::{BoxFuture, LinkState, Report, Uplink, UplinkError},
    limits::{HUB_QUEUE_LEN, OUTBOX_KEYS_MAX},
};

pub type Reply = oneshot::Sender<Result<Message, UplinkError>>;

pub struct Request {
    pub message: Message,
    pub timeout: Duration,
    pub reply: Reply,
}

/// What waits for the hub's task, which takes all of it at once.
#[derive(Default)]
pub struct Mail {
    /// One per key, in the order in which the keys first came.
    pub reports: Vec<Report>,
    pub sends: VecDeque<Message>,
    pub requests: Vec<Request>,
    pub hangup: Option<String>,
}

pub struct HubHandle {
    mail: Mutex<Mail>,
    pub(super) arrived: Notify,
    pub(super) state: watch::Sender<LinkState>,
    /// Whether the link carries streams; `None` without a link.
    pub(super) streams: watch::Sender<Option<bool>>,
    /// The link goes on where the last one ended. Set before `state`.
    pub(super) resumed: AtomicBool,
    certificates: watch::Sender<u64>,
}

impl HubHandle {
    pub fn new() -> Arc<HubHandle> {
        Arc::new(HubHandle {
            mail: Mutex::default(),
            arrived: Notify::new(),
            state: watch::Sender::new(LinkState::Disconnected("not dialled yet".into())),
            streams: watch::Sender::new(None),
            resumed: AtomicBool::new(false),
            certificates: watch::Sender::new(0),
        })
    }

    /// Ends the current connection and dials anew, for example with a new certificate.
    pub fn reconnect(&self, reason: &str) {
        self.mail().hangup = Some(reason.into());
        self.arrived.notify_one();
    }

    /// The node has another certificate: every connection that shows one begins anew.
    pub fn certificate_changed(&self) {
        self.certificates.send_modify(|count| *count += 1);
        self.reconnect("the node's certificate was renewed");
    }

    /// Changes with every new certificate.
    pub fn certificates(&self) -> watch::Receiver<u64> {
        self.certificates.subscribe()
    }

    /// Whether the link carries byte streams; `None` without a link.
    pub fn carries_streams(&self) -> watch::Receiver<Option<bool>> {
        self.streams.subscribe()
    }

    pub(super) fn take(&self) -> Mail {
        std::mem::take(&mut *self.mail())
    }

    /// Held for a push or a swap only; a panic in between leaves whole values.
    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disconnected(&self) -> Option<UplinkError> {
        match &*self.state.borrow() {
            LinkState::Connected => None,
            LinkState::Disconnected(why) => Some(UplinkError::Disconnected(why.clone())),
        }
    }
}

impl Uplink for HubHandle {
    fn report(&self, report: Report) {
        let mut mail = self.mail();
        match mail.reports.iter().position(|waiting| waiting.key == report.key) {
            Some(at) => mail.reports[at] = report,
            None if mail.reports.len() >= OUTBOX_KEYS_MAX => {
                tracing::error!(target: "hub", "report {} is lost: {OUTBOX_KEYS_MAX} others wait", report.key);
            }
            None => mail.reports.push(report),
        }
        drop(mail);
        self.arrived.notify_one();
    }

    fn send(&self, message: Message) {
        let mut mail = self.mail();
        if mail.sends.len() >= HUB_QUEUE_LEN {
            tracing::debug!(target: "hub", "{} is dropped: {HUB_QUEUE_LEN} others wait", message.route.resource);
            return;
        }
        mail.sends.push_back(message);
        drop(mail);
        self.arrived.notify_one();
    }

    fn request<'a>(
        &'a self,
        message: Message,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Message, UplinkError>> {
        Box::pin(async move {
            if let Some(error) = self.disconnected() {
                return Err(error);
            }
            let (reply, answer) = oneshot::channel();
            {
                let mut mail = self.mail();
                if mail.requests.len() >= HUB_QUEUE_LEN {
                    return Err(UplinkError::Disconnected("too many requests wait; try again".into()));
                }
                mail.requests.push(Request { message, timeout, reply });
            }
            self.arrived.notify_one();
            // The link ends every request; the reply is dropped only when the hub itself ends.
            answer.await.unwrap_or_else(|_| Err(UplinkError::Disconnected("edgecore is stopping".into())))
        })
    }

    fn state(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    fn is_resumed(&self) -> bool {
        self.resumed.load(Ordering::Relaxed)
    }
}
