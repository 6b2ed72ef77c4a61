//! The Kubernetes REST API over any store: get, list, watch, create, update, patch, delete, discovery, OpenAPI, Table, errors.
//!
//! Not here: what kinds are (`kapi`), where objects lie (a [`Backend`]), sockets and TLS (`apiserver`), controllers.
//!
//! Invariants
//! - Every request passes [`Authorize`] before anything is read; what is not allowed is denied.
//! - Objects are kept as bytes. Value trees live as long as one request.
//! - A watch never skips an event in silence: it goes on from the asked version, or ends with 410.
//!
//! Start at [`Server::handle`].

pub mod auth;
pub mod backend;
pub mod limits;
pub mod nodes;
pub mod server;
pub mod service;
pub mod tokens;

mod admission;
mod apiservices;
mod body;
mod connect;
mod delete;
mod metrics;
mod misc;
mod object;
mod pages;
mod patch;
mod query;
mod read;
mod route;
mod watch;
mod write;

pub use auth::{Attributes, Authorize, Decision, Identity, MastersOnly};
pub use backend::{Backend, WatchStream};
pub use body::{Body, BodyError};
pub use nodes::{
    ContainerUsage, DialError, NodeAsk, NodeCalls, NodeDialer, NodeUsage, PodPort, PodUsage, Purpose, Used,
};
pub use pages::fuzz_token;
pub use server::{Options, Server};
pub use service::InProcess;
pub use tokens::Tokens;
