//! How a new pod comes in: the gate is asked once, devices and the cloud's newest Node object may hold it up.

use super::{Action, Manager};
use crate::edged::{
    admission::{self, Entry, Rejection},
    events::Event,
    pod::Pod,
    pressure::refuses,
    worker::Worker,
};

impl Manager {
    /// The newest Node object is there, or cannot be had.
    pub(super) fn node_asked(&mut self, incarnation: String, actions: &mut Vec<Action>) {
        self.doubted.remove(&incarnation);
        let Some(mut worker) = self.workers.remove(&incarnation) else { return };
        if !worker.is_deleting() {
            self.enter(&mut worker, false, actions);
        }
        worker.touch();
        self.workers.insert(incarnation, worker);
    }

    /// A newcomer is admitted, for a critical one others are ended, or it is Failed before it ran. `may_doubt`: the label that it
    /// lacks may be on its way; as a kubelet does, the cloud is asked for the node before the pod is Failed for good.
    pub(super) fn enter(&mut self, newcomer: &mut Worker, may_doubt: bool, actions: &mut Vec<Action>) {
        let Some(pod) = newcomer.desired.clone() else { return };
        if let Some(message) = refuses(&pod, &self.pressure) {
            return reject(newcomer, &Rejection::new("Evicted", message), actions);
        }
        let incarnation = newcomer.record.incarnation.clone();
        let has_place = |worker: &&Worker| worker.record.ended.is_none() && worker.record.failing.is_none();
        let placed = self.workers.values().map(Box::as_ref).filter(has_place);
        let others: Vec<&Pod> = placed.filter_map(|worker| worker.desired.as_deref()).collect();
        match self.gate.enter(&incarnation, &pod, &others) {
            Entry::Admitted { claims, victims } => {
                for uid in victims {
                    self.preempt(&uid, actions);
                }
                if !claims.is_empty() {
                    actions.push(Action::Allocate { incarnation, claims });
                }
            }
            Entry::Rejected(rejection) if may_doubt && rejection.is_of_labels() => {
                self.doubted.insert(incarnation.clone());
                actions.push(Action::AskNode { incarnation });
            }
            Entry::Rejected(rejection) => reject(newcomer, &rejection, actions),
        }
    }

    fn preempt(&mut self, uid: &str, actions: &mut Vec<Action>) {
        const REASON: &str = "Preempting";
        const MESSAGE: &str = "Preempted in order to admit critical pod";
        let Some(worker) = self.workers.values_mut().find(|worker| worker.record.uid == uid) else { return };
        if worker.give_up(REASON, MESSAGE, None) {
            let incarnation = worker.record.incarnation.clone();
            actions.push(Action::Event { incarnation, event: Event::warning(REASON, MESSAGE) });
        }
    }

    pub(super) fn allocated(
        &mut self,
        incarnation: &str,
        result: Result<(), String>,
        actions: &mut Vec<Action>,
    ) {
        self.gate.devices.answered(incarnation, result.is_ok());
        let Some(worker) = self.workers.get_mut(incarnation) else { return };
        worker.touch();
        if let Err(error) = result {
            reject(worker, &admission::allocation_failed(&error), actions);
        }
    }
}

fn reject(worker: &mut Worker, rejection: &Rejection, actions: &mut Vec<Action>) {
    if worker.turn_away(&rejection.reason, &rejection.status_message()) {
        let event = Event::warning(rejection.reason.clone(), rejection.message.clone());
        actions.push(Action::Event { incarnation: worker.record.incarnation.clone(), event });
    }
}
