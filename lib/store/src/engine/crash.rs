//! The power is cut at every operation on the disk, in every way, and the invariants of the store are checked after each cut.
//!
//! One case: a first life until the cut, a second one that goes on from what is left until another cut, then a third. A model
//! beside the store knows every state that may be there and everything that anybody saw. Now and then the disk is full or
//! a sync fails on the way.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Engine, Request};
use crate::{
    Durability, EventKind, Expect, Key, Op, OpenError, Options, Put, Recovery, Value, Watch,
    sim::{Cut, Rng, SimDisk},
};

type Objects = BTreeMap<String, Bytes>;
type Failure = String;

/// What was ever seen or may be there.
#[derive(Default)]
struct Model {
    /// The state at each revision of the present history.
    states: BTreeMap<u64, Objects>,
    /// Revisions that end a commit: only these may be found after a cut.
    boundaries: BTreeSet<u64>,
    /// States of commits that failed: not there for readers, but perhaps on the disk until the next commit succeeds.
    failed: Vec<(BTreeMap<u64, Objects>, BTreeSet<u64>)>,
    /// Must survive.
    durable: u64,
    /// Was visible.
    shown: u64,
    /// Submitted, answered or not.
    submitted: u64,
    /// Every event and every list that anybody ever saw, in all lives.
    seen_events: BTreeMap<u64, String>,
    seen_lists: BTreeMap<u64, Objects>,
    values: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Kill,
    Power(Cut),
}

struct Life {
    disk: SimDisk,
    engine: Engine,
    watch: Option<Watch>,
}

fn options() -> Options {
    Options { history_len_max: 6000, rewrite_len_min: 3000, revision_block: 5, ..Options::default() }
}

fn check(condition: bool, what: impl FnOnce() -> String) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(what()) }
}

fn objects(engine: &Engine) -> (u64, Objects) {
    let list = engine.shared().memory().list("things", None);
    (
        list.revision,
        list.records.iter().map(|record| (record.key.name.to_string(), record.value.clone())).collect(),
    )
}

fn last_event(engine: &Engine) -> u64 {
    let memory = engine.shared().memory();
    memory.events_after(memory.floor()).last().map_or(memory.floor(), |event| event.revision)
}

impl Model {
    fn state(&self) -> Objects {
        self.states.get(&self.submitted).cloned().unwrap_or_default()
    }

    /// A commit as random operations, and the states that it leads to.
    fn commit(&mut self, rng: &mut Rng) -> Vec<Op> {
        let (mut ops, mut state) = (Vec::new(), self.state());
        for _ in 0..[1, 1, 1, 2, 4][rng.below(5) as usize] {
            let name = format!("o{}", rng.below(6));
            let key = Key::new("things", "ns", &name);
            let revision = self.submitted + 1;
            if rng.below(5) == 0 {
                ops.push(Op::Delete(key, Expect::Any));
                if state.remove(&name).is_none() {
                    continue;
                }
            } else {
                self.values += 1;
                let (number, padding) = (self.values, [0, 10, 200, 1500][rng.below(4) as usize]);
                let value =
                    move |revision| Bytes::from(format!("{revision} {number} {}", "x".repeat(padding)));
                state.insert(name, value(revision));
                let value = Value::Render(Box::new(value));
                ops.push(Op::Put(
                    Put { key, uid: std::sync::Arc::default(), upstream: None, key_id: 0, value },
                    Expect::Any,
                ));
            }
            self.submitted = revision;
            self.states.insert(revision, state.clone());
        }
        self.boundaries.insert(self.submitted);
        ops
    }

    /// The last group failed, and the store goes on without it.
    fn fail(&mut self) {
        let after = self.shown + 1;
        self.failed.push((self.states.split_off(&after), self.boundaries.split_off(&after)));
        self.submitted = self.shown;
    }

    fn see_event(&mut self, revision: u64, content: String) -> Result<(), Failure> {
        let before = self.seen_events.entry(revision).or_insert_with(|| content.clone());
        check(*before == content, || format!("revision {revision} was {before:?} and is {content:?}"))
    }

    fn see_list(&mut self, revision: u64, list: &Objects) -> Result<(), Failure> {
        let before = self.seen_lists.entry(revision).or_insert_with(|| list.clone());
        check(before == list, || format!("the list of revision {revision} changed"))
    }

    /// The store was opened after an end: which of the possible states is it, and does it keep what was promised?
    fn reopened(&mut self, life: &Life, recovery: &Recovery, power_lost: bool) -> Result<(), Failure> {
        let (revision, found) = objects(&life.engine);
        let least = if power_lost { self.durable } else { self.shown };
        // Where the log ended, before the numbers that are left out now, or by an opening that did not get through.
        let ended = if recovery.clean { revision } else { revision - 1 - recovery.skipped };
        let kept = if self.states.contains_key(&ended) { ended } else { last_event(&life.engine) };
        let matches = |states: &BTreeMap<u64, Objects>, boundaries: &BTreeSet<u64>| {
            states.get(&kept) == Some(&found) && boundaries.contains(&kept)
        };
        if !matches(&self.states, &self.boundaries) {
            let failed = self.failed.drain(..).find(|(states, boundaries)| matches(states, boundaries));
            self.states.extend(failed.into_iter().flat_map(|(states, _)| states));
        }
        let good = kept >= least && self.states.get(&kept) == Some(&found);
        check(good, || format!("{kept} is not one of the states from {least} to {}", self.submitted))?;
        let seen = self.seen_lists.keys().chain(self.seen_events.keys()).max().copied().unwrap_or(0);
        check(revision >= seen, || format!("revision {revision} is behind {seen}, which was seen"))?;

        // Whoever saw a revision may go on from it only if that leads to what is there now.
        for after in 0..=revision {
            let events =
                Watch::new(life.engine.shared().clone(), None, after).and_then(|mut watch| all(&mut watch));
            let Ok(events) = events else { continue };
            let was_seen = self.seen_lists.contains_key(&after) || self.seen_events.contains_key(&after);
            let lost = was_seen && after > kept && after < revision;
            check(!lost, || {
                format!("a watch after {after} goes on, although it is lost ({kept} to {revision})")
            })?;
            // A number that was foreseen for a commit but never shown may come back as the number after a gap.
            let state = if after == revision { Some(&found) } else { self.states.get(&after) };
            let Some(mut state) = state.cloned() else {
                check(!was_seen, || format!("a watch after {after} goes on, where nothing can be known"))?;
                continue;
            };
            for (revision, event) in &events {
                self.see_event(*revision, event.clone())?;
                apply(&mut state, event);
            }
            check(state == found, || format!("a watch after {after} misses something"))?;
        }
        self.states.retain(|state, _| *state <= kept);
        self.boundaries.retain(|state| *state <= kept);
        self.failed.clear();
        self.states.insert(revision, found.clone());
        self.boundaries.insert(revision);
        (self.durable, self.shown, self.submitted) = (revision, revision, revision);
        self.see_list(revision, &found)
    }
}

fn all(watch: &mut Watch) -> Result<Vec<(u64, String)>, crate::Compacted> {
    let mut events = Vec::new();
    while let Some(event) = watch.try_next()? {
        let name = &event.record.key.name;
        let text = match event.kind {
            EventKind::Put => format!("{name}={}", String::from_utf8_lossy(&event.record.value)),
            EventKind::Delete => name.to_string(),
        };
        events.push((event.revision, text));
    }
    Ok(events)
}

fn apply(state: &mut Objects, event: &str) {
    match event.split_once('=') {
        Some((name, value)) => state.insert(name.to_owned(), Bytes::from(value.to_owned())),
        None => state.remove(event),
    };
}

impl Life {
    fn new(disk: SimDisk, engine: Engine) -> Life {
        let watch = Watch::new(engine.shared().clone(), None, engine.shared().memory().revision()).ok();
        Life { disk, engine, watch }
    }

    /// Runs a random workload until it is over (`Ok(true)`) or the disk fails.
    fn run(&mut self, model: &mut Model, rng: &mut Rng, steps: usize) -> Result<bool, Failure> {
        for _ in 0..steps {
            let alive = match rng.below(12) {
                0 => self.group(model, Vec::new(), Durability::Sync)?,
                1 => self.restart(model)?,
                step => {
                    let durability = if step % 3 == 0 { Durability::Lazy } else { Durability::Sync };
                    let commits = (0..1 + step / 9).map(|_| model.commit(rng)).collect();
                    let trouble = rng.below(12);
                    self.disk.fail_syncs(trouble == 0);
                    self.disk.limit_space((trouble == 1).then_some(self.engine.len + rng.below(300)));
                    let alive = self.group(model, commits, durability)?;
                    self.disk.fail_syncs(false);
                    self.disk.limit_space(None);
                    if !alive {
                        model.fail();
                    }
                    alive || trouble < 2
                }
            };
            if !alive {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One group commit. False: the disk failed.
    fn group(
        &mut self,
        model: &mut Model,
        commits: Vec<Vec<Op>>,
        durability: Durability,
    ) -> Result<bool, Failure> {
        let mut answers = Vec::new();
        let mut batch = Vec::new();
        let commits = if commits.is_empty() { vec![Vec::new()] } else { commits };
        for ops in commits {
            let (reply, answer) = oneshot::channel();
            answers.push(answer);
            batch.push(Request { ops, durability, reply, permit: None });
        }
        self.engine.run(batch);
        self.look(model)?;
        for mut answer in answers {
            let Ok(Ok(committed)) = answer.try_recv() else { return Ok(false) };
            check(model.boundaries.contains(&committed.revision), || {
                "another revision than foreseen".to_owned()
            })?;
            check(committed.revision <= model.shown, || "answered before it was shown".to_owned())?;
            if durability == Durability::Sync {
                model.durable = model.durable.max(committed.revision);
            }
            model.failed.clear();
        }
        if durability == Durability::Sync {
            model.durable = model.shown;
        }
        Ok(true)
    }

    fn restart(&mut self, model: &mut Model) -> Result<bool, Failure> {
        if self.engine.close().is_err() {
            return Ok(false);
        }
        model.durable = model.shown;
        let before = objects(&self.engine);
        let Ok((engine, recovery)) = Engine::open(Box::new(self.disk.clone()), options()) else {
            return Ok(false);
        };
        check(recovery.clean, || format!("not clean after a clean stop: {recovery}"))?;
        check(objects(&engine) == before, || "a clean restart changed something".to_owned())?;
        let position = self.watch.as_ref().map_or(0, Watch::position);
        self.watch = Watch::new(engine.shared().clone(), None, position).ok();
        self.engine = engine;
        Ok(true)
    }

    /// Readers see what the model foresaw, and remember it.
    fn look(&mut self, model: &mut Model) -> Result<(), Failure> {
        let (revision, list) = objects(&self.engine);
        check(model.states.get(&revision) == Some(&list), || {
            format!("the list of revision {revision} is another one")
        })?;
        check(model.boundaries.contains(&revision), || format!("half a commit is visible at {revision}"))?;
        model.see_list(revision, &list)?;
        model.shown = revision;
        match self.watch.as_mut().map(all) {
            Some(Ok(events)) => {
                for (revision, event) in events {
                    model.see_event(revision, event)?;
                }
            }
            // Slower than the history is long: list again, as every reader does.
            _ => self.watch = Watch::new(self.engine.shared().clone(), None, revision).ok(),
        }
        Ok(())
    }
}

/// How a case differs from the store as it is.
#[derive(Clone, Copy, Default)]
struct Mutation {
    no_file_sync: bool,
    no_dir_sync: bool,
}

/// True: the cut lies behind the first life's last operation.
fn case(seed: u64, cut_at: u64, end: End, mutation: Mutation) -> Result<bool, Failure> {
    let mut rng = Rng::new(seed);
    let mut model = Model::default();
    model.states.insert(1, Objects::new());
    model.boundaries.insert(1);
    (model.durable, model.shown, model.submitted) = (1, 1, 1);
    // The second life is cut as well, often while it recovers.
    let mut second = Rng::new(seed ^ cut_at << 8);
    let second_end = match second.below(3) {
        0 => End::Kill,
        1 => End::Power(Cut::LoseAll),
        _ => End::Power(Cut::Random(second.number())),
    };
    let lives = [(cut_at, 22, end), (second.below(30), 8, second_end)];

    let mut disk = SimDisk::new();
    disk.ignore_syncs(mutation.no_file_sync, mutation.no_dir_sync);
    let mut power_lost = false;
    for (number, (cut_at, steps, end)) in lives.into_iter().enumerate() {
        disk.fail_from(cut_at);
        match Engine::open(Box::new(disk.clone()), options()) {
            Ok((engine, recovery)) => {
                let mut life = Life::new(disk.clone(), engine);
                model.reopened(&life, &recovery, power_lost)?;
                power_lost = false;
                let survived = life.run(&mut model, &mut rng, steps)?;
                if survived && number == 0 {
                    return Ok(true);
                }
            }
            // The power went while it was opened.
            Err(OpenError::Io { .. }) => {}
            Err(error) => return Err(error.to_string()),
        }
        power_lost |= end != End::Kill;
        disk = match end {
            End::Kill => disk.after_kill(),
            End::Power(cut) => disk.after_power_cut(cut),
        };
    }
    let (engine, recovery) =
        Engine::open(Box::new(disk.clone()), options()).map_err(|error| error.to_string())?;
    let mut life = Life::new(disk, engine);
    model.reopened(&life, &recovery, power_lost)?;
    check(life.run(&mut model, &mut rng, 3)?, || "the third life fails without a cut".to_owned())?;
    Ok(false)
}

fn ends(seed: u64, cut_at: u64) -> [End; 6] {
    let random = |n: u64| End::Power(Cut::Random(seed << 32 ^ cut_at << 4 ^ n));
    [End::Kill, End::Power(Cut::LoseAll), End::Power(Cut::KeepAll), random(1), random(2), random(3)]
}

/// All cut points of some seeds; the first failure, or the number of cuts.
fn enumerate(seeds: std::ops::Range<u64>, mutation: Mutation) -> Result<u64, Failure> {
    let mut cuts = 0;
    for seed in seeds {
        for cut_at in 0.. {
            let mut over = false;
            for end in ends(seed, cut_at) {
                let context = |failure| format!("seed {seed}, cut at operation {cut_at}, {end:?}: {failure}");
                over = case(seed, cut_at, end, mutation).map_err(context)?;
                cuts += 1;
            }
            if over {
                break;
            }
        }
    }
    Ok(cuts)
}

#[test]
fn no_cut_at_any_operation_breaks_an_invariant() {
    match enumerate(0..8, Mutation::default()) {
        Ok(cuts) => {
            println!("{cuts} cuts");
            assert!(cuts > 2000, "{cuts} are too few: the workload does not reach the disk");
        }
        Err(failure) => panic!("{failure}"),
    }
}

#[test]
fn a_removed_fsync_turns_the_test_red() {
    for mutation in [
        Mutation { no_file_sync: true, no_dir_sync: false },
        Mutation { no_file_sync: false, no_dir_sync: true },
    ] {
        let failure = enumerate(0..12, mutation).expect_err("a store without fsync was not noticed");
        println!("noticed: {failure}");
    }
}
