//! What Kubernetes objects are: the kinds served, their fields, selectors, patches, protobuf, Table rows, errors, discovery.
//!
//! Not here: HTTP, storage, clocks (times are passed in). `kserve` puts these together.
//!
//! Invariants
//! - Every decoder is total: any bytes give a value or an [`ApiError`], never a panic.
//! - `schema` and `kinds` are the only places that know a kind's fields and names.
//!
//! Start at [`kinds`], then [`schema`]; `kserve::server` shows how the parts are used.

pub mod kinds;
pub mod schema;

pub mod apiservices;
pub mod crd;
pub mod decode;
pub mod defaults;
pub mod discovery;
pub mod ephemeral;
pub mod error;
pub mod limits;
pub mod meta;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod selector;
pub mod storage;
pub mod table;
pub mod time;
pub mod validate;

pub use error::{ApiError, Cause, Details};
pub use kinds::{Durability, Kind};
