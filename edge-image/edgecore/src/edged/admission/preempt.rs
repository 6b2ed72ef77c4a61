//! Which pods give their place to a critical one: guaranteed pods as few as possible, then burstable, then best effort.

use crate::edged::{
    cgroup::{
        Class,
        values::{Amounts, pod_requests},
    },
    pod::Pod,
};

fn share(pod: &Pod, resource: &str) -> u64 {
    if resource == "pods" { 1 } else { pod_requests(pod).get(resource).copied().unwrap_or(0) }
}

fn is_preemptable(newcomer: &Pod, pod: &Pod) -> bool {
    if newcomer.is_critical() && !pod.is_critical() {
        return true;
    }
    matches!((newcomer.spec.priority, pod.spec.priority), (Some(new), Some(old)) if new > old)
}

/// What is still missing when these pods are gone.
fn without<'a>(missing: &Amounts, gone: impl Iterator<Item = &'a Pod> + Clone) -> Amounts {
    let left = |(resource, amount): (&String, &u64)| {
        let freed: u64 = gone.clone().map(|pod| share(pod, resource)).sum();
        Some((resource.clone(), amount.checked_sub(freed).filter(|left| *left > 0)?))
    };
    missing.iter().filter_map(left).collect()
}

/// How far from enough a pod is: each resource counts the same, whatever its unit.
fn distance(missing: &Amounts, pod: &Pod) -> f64 {
    let part = |(resource, amount): (&String, &u64)| {
        let left = amount.saturating_sub(share(pod, resource));
        (left as f64 / *amount as f64).powi(2)
    };
    missing.iter().map(part).sum()
}

/// The fewest of one class that free what is missing; of two alike the one that asks for less.
fn fewest(mut pool: Vec<&Pod>, missing: Amounts) -> Result<Vec<&Pod>, String> {
    let (mut missing, mut chosen) = (missing, Vec::new());
    while !missing.is_empty() {
        let size = |pod: &Pod| (share(pod, "memory"), share(pod, "cpu"));
        let best = pool.iter().enumerate().min_by(|(_, a), (_, b)| {
            distance(&missing, a).total_cmp(&distance(&missing, b)).then(size(a).cmp(&size(b)))
        });
        let Some((at, _)) = best else { return Err(describe(&missing)) };
        let pod = pool.swap_remove(at);
        missing = without(&missing, std::iter::once(pod));
        chosen.push(pod);
    }
    Ok(chosen)
}

fn describe(missing: &Amounts) -> String {
    let parts: Vec<String> =
        missing.iter().map(|(name, amount)| format!("(res: {name}, q: {amount}), ")).collect();
    format!("no set of running pods found to reclaim resources: [{}]", parts.concat())
}

/// The uids of the pods to end, or in which resource even all of them are not enough.
pub fn victims(newcomer: &Pod, others: &[&Pod], missing: &Amounts) -> Result<Vec<String>, String> {
    let pool = others.iter().copied().filter(|pod| is_preemptable(newcomer, pod));
    let of = |class| pool.clone().filter(move |pod| Class::of(pod) == class).collect::<Vec<_>>();
    let (best_effort, burstable, guaranteed) =
        (of(Class::BestEffort), of(Class::Burstable), of(Class::Guaranteed));
    let left = without(missing, pool.clone());
    if !left.is_empty() {
        return Err(describe(&left));
    }
    fn all<'a, 'b>(
        a: &'b [&'a Pod],
        b: &'b [&'a Pod],
    ) -> impl Iterator<Item = &'a Pod> + Clone + use<'a, 'b> {
        a.iter().chain(b).copied()
    }
    let guaranteed = fewest(guaranteed, without(missing, all(&best_effort, &burstable)))?;
    let burstable = fewest(burstable, without(missing, all(&best_effort, &guaranteed)))?;
    let best_effort = fewest(best_effort, without(missing, all(&burstable, &guaranteed)))?;
    let chosen = best_effort.iter().chain(&burstable).chain(&guaranteed);
    Ok(chosen.map(|pod| pod.metadata.uid.clone()).collect())
}
