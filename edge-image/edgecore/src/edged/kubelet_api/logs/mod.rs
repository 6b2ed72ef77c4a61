//! `GET /containerLogs/{namespace}/{pod}/{container}`: log files that the runtime writes, filtered and followed.
//!
//! Not here: rotation (`edged::logs`). The runtime writes `<attempt>.log`; rotation renames it; a reader goes from file to file
//! by inode, so it neither loses nor repeats a line when a file is renamed under it.
//!
//! Invariants
//! - One block of a log is in memory per reader, whatever the length of a line and however slow the peer is.
//! - What was written while the cloud was away is just there.

mod follow;
mod line;
mod reader;
mod tail;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures_util::Stream;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{
    Node,
    body::{Answer, Body, text},
    containers::{tty_of, with_log},
    route::{Query, Target},
};
use crate::edged::{
    cri::{CriError, messages as cri},
    logs::path as log_path,
    record::{KIND, Record},
    render,
};
pub use line::fuzz_log;

/// `stream` of the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streams {
    #[default]
    All,
    Stdout,
    Stderr,
}

/// Kubernetes' PodLogOptions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub bytes_max: Option<u64>,
    pub streams: Streams,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadOptions {
    /// Not of the type: 400.
    Undecodable,
    /// Out of range, or two that exclude each other: 422.
    Invalid,
}

impl Options {
    pub fn parse(query: &Query, now: Timestamp) -> Result<Options, BadOptions> {
        let number = |key: &str, min: i64| match query.get(key).filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => match text.parse::<i64>() {
                Ok(number) if number >= min => Ok(Some(number)),
                Ok(_) => Err(BadOptions::Invalid),
                Err(_) => Err(BadOptions::Undecodable),
            },
        };
        // `tail` is the older name; `all` is as good as none.
        let tail = match query.get("tail") {
            Some("all") => None,
            Some(_) => number("tail", 0)?,
            None => number("tailLines", 0)?,
        };
        let seconds = number("sinceSeconds", 1)?;
        let time = match query.get("sinceTime").filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => Some(text.parse::<Timestamp>().map_err(|_| BadOptions::Undecodable)?),
        };
        let since = match (seconds, time) {
            (Some(_), Some(_)) => return Err(BadOptions::Invalid),
            // Longer ago than time began is everything.
            (Some(seconds), None) => now.checked_sub(SignedDuration::from_secs(seconds)).ok(),
            (None, time) => time,
        };
        let streams = match query.get("stream") {
            None | Some("" | "All") => Streams::All,
            Some("Stdout") => Streams::Stdout,
            Some("Stderr") => Streams::Stderr,
            Some(_) => return Err(BadOptions::Invalid),
        };
        Ok(Options {
            follow: query.is_set("follow"),
            previous: query.is_set("previous"),
            timestamps: query.is_set("timestamps"),
            tail: tail.map(i64::unsigned_abs),
            since,
            bytes_max: number("limitBytes", 1)?.map(i64::unsigned_abs),
            streams,
        })
    }
}

/// A log to be read, and the container to be watched while it is followed.
struct Source {
    path: PathBuf,
    /// `None`: the container is over.
    running: Option<String>,
}

pub async fn answer(node: Arc<Node>, target: &Target, query: &Query) -> Answer {
    let options = match Options::parse(query, Timestamp::now()) {
        Ok(options) => options,
        Err(BadOptions::Undecodable) => {
            return text(StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#);
        }
        Err(BadOptions::Invalid) => {
            return text(StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#);
        }
    };
    let source = match find(&node, target, options.previous).await {
        Ok(source) => source,
        Err(refused) => return refused,
    };
    let follow = follow::Follow::open(node, source.path, options, source.running).await;
    let follow = match follow {
        Ok(follow) => follow,
        Err(error) => return text(StatusCode::BAD_REQUEST, error),
    };
    let mut answer = text(StatusCode::OK, "");
    *answer.body_mut() = Body::Stream(Box::pin(pieces(follow)));
    answer
}

fn pieces(follow: follow::Follow) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures_util::stream::unfold(follow, follow::Follow::next)
}

/// A whole log as an answer's body gets it.
#[cfg(test)]
pub async fn whole(node: Arc<Node>, path: PathBuf) -> impl Stream<Item = io::Result<Bytes>> + Send {
    pieces(follow::Follow::open(node, path, Options::default(), None).await.unwrap())
}

async fn find(node: &Node, target: &Target, previous: bool) -> Result<Source, Answer> {
    let (container, pod) = (&target.container, &target.pod);
    let object = node.pod(target);
    let status = node.handles.statuses.get(&target.namespace, pod);
    let listed = node.list(target).await;
    let known = object.is_some() || status.is_some() || listed.as_ref().is_ok_and(|all| !all.is_empty());
    if !known {
        return Err(text(StatusCode::NOT_FOUND, format!("pod {pod:?} does not exist")));
    }
    if object.is_some_and(|object| tty_of(&object, container).is_none()) {
        return Err(text(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {pod:?}")));
    }
    let refused = |why: String| text(StatusCode::BAD_REQUEST, why);
    let none_before = || format!("previous terminated container {container:?} in pod {pod:?} not found");
    let id = match status {
        Some(status) => {
            let status: Value = serde_json::from_slice(&status.patch).unwrap_or_default();
            Some(with_log(&status, target, previous).map_err(refused)?)
        }
        // The worker has not spoken of it yet; the runtime knows what ran.
        None => {
            let created = i32::from(cri::ContainerState::Created);
            let mut ran = listed.iter().flatten().filter(|container| container.state != created);
            ran.nth(usize::from(previous)).map(|container| container.id.clone())
        }
    };
    let state = match &id {
        Some(id) => node.cri.container_status(id).await,
        None => {
            return Err(refused(if previous {
                none_before()
            } else {
                format!("container {container:?} in pod {pod:?} is waiting to start - no logs yet")
            }));
        }
    };
    match state {
        Ok(state) if !state.log_path.is_empty() => {
            let runs = state.state == i32::from(cri::ContainerState::Running);
            Ok(Source { path: state.log_path.into(), running: id.filter(|_| runs) })
        }
        // A container that is gone, or a runtime that is: what it wrote may still be there.
        Ok(_) => kept(node, target, previous).ok_or_else(|| refused(none_before())),
        Err(error) => kept(node, target, previous).ok_or_else(|| refused(missing(&error))),
    }
}

fn missing(error: &CriError) -> String {
    format!("failed to try resolving symlinks in path: {error}")
}

/// The newest log file of a container, or the one before it, found without the runtime.
fn kept(node: &Node, target: &Target, previous: bool) -> Option<Source> {
    let records = node.handles.meta.list_local(KIND).into_iter();
    let mut records = records.filter_map(|(_, body)| serde_json::from_slice::<Record>(&body).ok());
    let record = records.find(|record| record.namespace == target.namespace && record.name == target.pod)?;
    let dir = node.settings.log_dir.join(render::log_dir_name(&record));
    let attempt = |entry: std::fs::DirEntry| -> Option<u32> {
        entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok()
    };
    let entries = std::fs::read_dir(dir.join(&target.container)).ok()?;
    let mut attempts: Vec<u32> = entries.flatten().filter_map(attempt).collect();
    attempts.sort_unstable_by(|a, b| b.cmp(a));
    let attempt = attempts.get(usize::from(previous))?;
    Some(Source { path: log_path(&dir, &target.container, *attempt), running: None })
}
