//! Bounds on what is decoded. Beyond each the request is refused with a 400 or 422.

/// Nested messages and JSON levels.
pub const DEPTH_MAX: usize = 64;
/// Label selector requirements in one request.
pub const SELECTOR_TERMS_MAX: usize = 64;
/// Operations in one JSON patch; upstream's bound.
pub const JSON_PATCH_OPS_MAX: usize = 10_000;
/// Unknown or duplicate fields that are reported for one object.
pub const WARNINGS_MAX: usize = 32;
/// What all annotations of an object may hold together; upstream's bound.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
/// Data of one ConfigMap or Secret; upstream's bound.
pub const DATA_BYTES_MAX: usize = 1024 * 1024;
