//! The shell's part of pressure: looks at what the node has left, makes room, and ends pods when that does not help.

use std::time::{Duration, Instant};

use super::{Happening, Shell};
use crate::{
    contract::Condition,
    edged::{events::Event, limits, manager::Input, pressure},
};

impl Shell {
    pub(super) fn watch_pressure(&mut self) {
        let executor = self.executor.clone();
        let collect = self.up && self.collected.elapsed() >= limits::COLLECT_EVERY;
        if collect {
            self.collected = Instant::now();
        }
        self.work.push(Box::pin(async move {
            if collect {
                executor.images.collect(&executor.events).await;
            }
            tokio::time::sleep(limits::PRESSURE_CHECK).await;
            Happening::PressureDue
        }));
    }

    pub(super) fn look_at_pressure(&mut self) {
        let executor = self.executor.clone();
        let places = pressure::watch::places(&self.manager, &executor);
        self.work
            .push(Box::pin(async move { Happening::Pressed(pressure::watch::look(executor, places).await) }));
    }

    pub(super) fn pressed(&mut self, look: pressure::watch::Look) {
        let crossed = self.observe_pressure(&look.readings);
        for (uid, message) in look.over {
            self.evict(&uid, message, limits::EVICTION_GRACE_HARD);
        }
        let Some(crossed) = crossed else { return self.watch_pressure() };
        let text = format!("Attempting to reclaim {}", crossed.signal.resource());
        self.executor.events.node(Event::warning("EvictionThresholdMet", text));
        let executor = self.executor.clone();
        let places = pressure::watch::places(&self.manager, &executor);
        self.work.push(Box::pin(async move {
            let relief = pressure::watch::relieve(executor, crossed, places).await;
            Happening::Relieved(Box::new(relief))
        }));
    }

    pub(super) fn relieved(&mut self, relief: pressure::watch::Relief) {
        let still = self.observe_pressure(&relief.readings).filter(|now| now.signal == relief.crossed.signal);
        if let Some(crossed) = still {
            match pressure::rank::choose(&crossed, &relief.candidates) {
                Some((victim, message)) => {
                    self.pressure.evicting(self.now().mono, &victim.uid);
                    self.evict(&victim.uid.clone(), message, crossed.grace);
                }
                None => tracing::warn!(
                    "the node is low on {}, and no pod may be evicted",
                    crossed.signal.resource()
                ),
            }
        }
        self.watch_pressure();
    }

    fn observe_pressure(&mut self, readings: &pressure::Readings) -> Option<pressure::machine::Crossed> {
        let workers: Vec<_> = self.manager.workers().filter(|w| w.record.ended.is_none()).collect();
        let there = |uid: &str| workers.iter().any(|worker| worker.record.uid == uid);
        let crossed = self.pressure.observe(self.start.elapsed(), readings, there);
        let conditions = self.pressure.conditions();
        for condition in pressure::NodeCondition::ALL {
            let status = conditions.contains(&condition);
            let (reason, message) = if status { condition.words() } else { condition.words_over() };
            self.handles.conditions.set(Condition {
                condition_type: condition.name().into(),
                status,
                reason: reason.into(),
                message: message.into(),
            });
        }
        self.manager.pressure = conditions;
        crossed
    }

    fn evict(&mut self, uid: &str, message: String, grace: Duration) {
        let Some(worker) = self.manager.workers().find(|worker| worker.record.uid == uid) else { return };
        self.executor.events.pod(&worker.record, Event::warning("Evicted", message.clone()));
        let (uid, reason) = (uid.to_string(), "Evicted".to_string());
        self.handle(Input::Fail { uid, reason, message, grace: Some(grace) });
    }
}
