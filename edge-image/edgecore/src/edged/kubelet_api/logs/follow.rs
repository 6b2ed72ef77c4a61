//! A log as the body of an answer. Files are looked at every now and then: a watch would need a second way for what it misses.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::{
    Options,
    reader::{Reader, Step},
};
use crate::edged::{
    cri::messages as cri,
    kubelet_api::{
        Node,
        limits::{LOG_POLL_MAX, LOG_POLL_MIN, LOG_STATE_CHECK},
    },
};

pub struct Follow {
    node: Arc<Node>,
    reader: Option<Reader>,
    /// The container while it runs and its log is followed.
    running: Option<String>,
    checked: Instant,
    pause: Duration,
    /// Nothing comes after what is read.
    over: bool,
}

impl Follow {
    /// The error is a kubelet's text.
    pub async fn open(
        node: Arc<Node>,
        path: PathBuf,
        options: Options,
        running: Option<String>,
    ) -> Result<Follow, String> {
        let running = running.filter(|_| options.follow);
        let opened = rt::blocking(move || {
            Reader::open(&path, &options)
                .map_err(|error| format!("failed to open log file {path:?}: {error}"))
        });
        let reader = Some(opened.await?);
        let over = running.is_none();
        Ok(Follow { node, reader, running, checked: Instant::now(), pause: LOG_POLL_MIN, over })
    }

    /// The next piece; a step of a stream that ends with the log.
    pub async fn next(mut self) -> Option<(io::Result<Bytes>, Follow)> {
        loop {
            let mut reader = self.reader.take()?;
            let (reader, out, step) = rt::blocking(move || {
                let mut out = Vec::new();
                let step = reader.read(&mut out);
                if !matches!(step, Ok(Step::More)) {
                    reader.rest();
                }
                (reader, out, step)
            })
            .await;
            // Without a reader, the call after this one ends the stream.
            let step = match step {
                Ok(Step::Full) | Err(_) => step,
                Ok(Step::AtEnd) if self.over => step,
                Ok(Step::More | Step::AtEnd) => {
                    self.reader = Some(reader);
                    step
                }
            };
            match step {
                Err(error) => return Some((Err(error), self)),
                Ok(_) if !out.is_empty() => {
                    self.pause = LOG_POLL_MIN;
                    return Some((Ok(out.into()), self));
                }
                Ok(Step::More | Step::Full) => {}
                Ok(Step::AtEnd) => self.wait().await,
            }
        }
    }

    /// Until something was written, or the container is over (then the log is read to its end once more).
    async fn wait(&mut self) {
        loop {
            let Some(id) = &self.running else {
                self.over = true;
                return;
            };
            if self.checked.elapsed() >= LOG_STATE_CHECK {
                self.checked = Instant::now();
                match self.node.cri.container_status(id).await {
                    Ok(status) if status.state == i32::from(cri::ContainerState::Running) => {}
                    Err(error) if !error.is_not_found() => {
                        // A runtime that is restarted says nothing about the container.
                        tracing::debug!("following the log of container {id}: {error}");
                    }
                    _ => {
                        self.running = None;
                        return;
                    }
                }
            }
            sleep(self.pause).await;
            self.pause = (self.pause * 2).min(LOG_POLL_MAX);
            if !self.reader.as_ref().is_some_and(Reader::is_quiet) {
                return;
            }
        }
    }
}
