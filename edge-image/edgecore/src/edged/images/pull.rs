//! Pulls from registries: kubelet's words, its back-off, the pod's passwords.
//!
//! Not here: whether a pull is needed (`mod`). Invariants: at most so many pulls at once; an image that failed for a pod is not
//! asked for again before its back-off is over; dropping the future ends the pull, in containerd too.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};
use wire::Resource;

use super::{credentials::Keyring, name::Reference};
use crate::{
    contract::{Handles, MetaError},
    edged::{
        cri::{Cri, CriError},
        events::{Event, Recorder},
        limits,
        pod::{Container, Pod},
        record::Record,
        worker::{Retry, WorkError},
    },
};

/// An image that a container needs, and who is told what became of it.
pub struct Want<'a> {
    pub handles: &'a Handles,
    pub events: &'a Recorder,
    pub record: &'a Record,
    pub pod: &'a Pod,
    pub container: &'a Container,
}

impl Want<'_> {
    pub fn tell(&self, event: Event) {
        self.events.pod(self.record, event.at(self.pod.field_path(&self.container.name)));
    }

    /// The error of a step that failed; kubelet tells of each with `Error: <reason>`.
    pub fn failed(&self, reason: &'static str, message: String, retry: Retry) -> WorkError {
        self.tell(Event::warning("Failed", format!("Error: {reason}")));
        WorkError { reason, message, retry }
    }
}

/// One image that failed for one pod.
struct Failed {
    at: Instant,
    delay: Duration,
    message: String,
}

pub struct Puller {
    cri: Cri,
    gate: Semaphore,
    /// By uid and image.
    failed: Mutex<BTreeMap<(String, String), Failed>>,
}

impl Puller {
    pub fn new(cri: Cri, pulls_max: usize) -> Puller {
        Puller { cri, gate: Semaphore::new(pulls_max.max(1)), failed: Mutex::default() }
    }

    /// Pulls for a pod. On success the runtime has the image; it is not synced yet.
    pub async fn pull(&self, want: &Want<'_>, name: &Reference) -> Result<(), WorkError> {
        let image = &want.container.image;
        let key = (want.pod.metadata.uid.clone(), image.clone());
        if let Some((left, message)) = self.waiting(&key) {
            let message = format!("Back-off pulling image {image:?}: {message}");
            want.tell(Event::normal("BackOff", message.clone()));
            return Err(want.failed("ImagePullBackOff", message, Retry::After(left)));
        }
        let asked = Instant::now();
        let work = async {
            let _turn = self.gate.acquire().await.expect("the semaphore is never closed");
            want.tell(Event::normal("Pulling", format!("Pulling image {image:?}")));
            let began = Instant::now();
            (self.pull_with(want, name).await, began.elapsed())
        };
        let (result, took) = work.await;
        let error = match result {
            Ok(()) => {
                self.failed().remove(&key);
                let size = self.size(image).await;
                let (took, waited) = (go_duration(took), go_duration(asked.elapsed()));
                want.tell(Event::normal(
                    "Pulled",
                    format!("Successfully pulled image {image:?} in {took} ({waited} including waiting). Image size: {size} bytes."),
                ));
                return Ok(());
            }
            Err(error) => error,
        };
        // The runtime being away says nothing about the image.
        if error.is_unavailable() {
            return Err(want.failed("ErrImagePull", rpc(&error), Retry::Soon));
        }
        let message = rpc(&error);
        want.tell(Event::warning("Failed", format!("Failed to pull image {image:?}: {message}")));
        self.note(key, format!("ErrImagePull: {message}"));
        Err(want.failed("ErrImagePull", message, Retry::After(limits::PULL_ERROR_SHOWN)))
    }

    async fn pull_with(&self, want: &Want<'_>, name: &Reference) -> Result<(), CriError> {
        let passwords = keyring(want).await.lookup(name);
        if passwords.is_empty() {
            return self.cri.pull_image(&want.container.image, None).await.map(|_| ());
        }
        let mut failed: Option<CriError> = None;
        for auth in passwords {
            match self.cri.pull_image(&want.container.image, Some(auth)).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_unavailable() => return Err(error),
                Err(error) => match &mut failed {
                    Some(first) if first.message != error.message => {
                        first.message = format!("{}, {}", first.message, error.message);
                    }
                    Some(_) => {}
                    None => failed = Some(error),
                },
            }
        }
        Err(failed.expect("there was a password to try"))
    }

    async fn size(&self, image: &str) -> u64 {
        self.cri.image_status(image).await.ok().flatten().map_or(0, |image| image.size)
    }

    fn failed(&self) -> MutexGuard<'_, BTreeMap<(String, String), Failed>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the pod has to wait for this image yet, and why.
    fn waiting(&self, key: &(String, String)) -> Option<(Duration, String)> {
        let failed = self.failed();
        let failed = failed.get(key)?;
        let left = (failed.at + failed.delay).saturating_duration_since(Instant::now());
        (left > Duration::ZERO).then(|| (left, failed.message.clone()))
    }

    fn note(&self, key: (String, String), message: String) {
        let now = Instant::now();
        let mut all = self.failed();
        all.retain(|_, failed| now < failed.at + failed.delay + limits::BACKOFF_FORGET);
        let delay =
            all.get(&key).map_or(limits::BACKOFF_FIRST, |failed| failed.delay * 2).min(limits::BACKOFF_MAX);
        all.insert(key, Failed { at: now, delay, message });
    }
}

/// The pod's pull secrets. One that is missing or unusable is told, and the pull is tried without it.
async fn keyring(want: &Want<'_>) -> Keyring {
    let (mut ring, mut missing) = (Keyring::default(), Vec::new());
    for reference in &want.pod.spec.image_pull_secrets {
        let resource = Resource::new(&want.pod.metadata.namespace, "secret", &reference.name);
        match want.handles.meta.fetch(&resource).await {
            Ok(object) => {
                if let Err(problem) = ring.add(&object.body) {
                    tracing::warn!("pod {}: pull secret {}: {problem}", want.pod.full_name(), reference.name);
                    missing.push(reference.name.clone());
                }
            }
            Err(error) => {
                if !matches!(error, MetaError::NotFound(_)) {
                    tracing::warn!("pod {}: {}", want.pod.full_name(), rt::error_chain(&error));
                }
                missing.push(reference.name.clone());
            }
        }
    }
    if !missing.is_empty() {
        let text = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        want.events.pod(want.record, Event::warning("FailedToRetrieveImagePullSecret", text));
    }
    ring
}

/// As Go's gRPC prints it, which is what people search for.
fn rpc(error: &CriError) -> String {
    format!("rpc error: code = {:?} desc = {}", error.code, error.message)
}

/// As Go prints durations cut to milliseconds: `1.234s`, `85ms`, `1m2.5s`.
fn go_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let seconds = |ms: u128| {
        let text = format!("{}.{:03}", ms / 1000, ms % 1000);
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    };
    match ms {
        0..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{}s", seconds(ms)),
        _ => format!("{}m{}s", ms / 60_000, seconds(ms % 60_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pull_that_fails_again_waits_twice_as_long() {
        let puller = Puller::new(Cri::new(crate::edged::cri::channel("/nowhere")), 1);
        let key = ("uid".to_string(), "image".to_string());
        let mut waits = Vec::new();
        for _ in 0..7 {
            puller.note(key.clone(), "ErrImagePull: no".into());
            let (left, message) = puller.waiting(&key).unwrap();
            assert_eq!(message, "ErrImagePull: no");
            waits.push(left.as_secs());
            tokio::time::advance(left).await;
            assert!(puller.waiting(&key).is_none());
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
        tokio::time::advance(limits::BACKOFF_FORGET).await;
        puller.note(key.clone(), String::new());
        assert_eq!(puller.waiting(&key).unwrap().0.as_secs(), 10, "forgiven after a while");
        let other = ("uid".to_string(), "other".to_string());
        assert!(puller.waiting(&other).is_none(), "another image of the pod is not held up");
    }

    #[test]
    fn durations_as_go_prints_them() {
        for (ms, text) in [(85, "85ms"), (1234, "1.234s"), (2000, "2s"), (62_500, "1m2.5s")] {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
    }
}
