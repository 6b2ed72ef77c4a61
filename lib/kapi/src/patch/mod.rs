//! The patch languages of the API.

pub mod json;
pub mod merge;
pub mod strategic;
