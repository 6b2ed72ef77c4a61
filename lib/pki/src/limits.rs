//! What bounds this crate's inputs and how long certificates live.

/// Bytes of a certificate or a request that is looked at; longer ones are refused as malformed.
pub const DER_LEN_MAX: usize = 64 << 10;

/// Bytes of a PEM file; longer ones are refused.
pub const PEM_LEN_MAX: usize = 256 << 10;

/// Bytes of a join token; longer ones are refused as malformed.
pub const TOKEN_LEN_MAX: usize = 4 << 10;

/// Bytes of a node name in a certificate or token; longer ones are refused.
pub const NODE_NAME_LEN_MAX: usize = 253;

/// Certificates begin this long before they are made, because devices without a clock battery are behind.
pub const BACKDATE_S: u64 = 25 * 3600;

/// CA and server certificates, as KubeEdge's: 100 years of 364 days.
pub const CA_DAYS: u64 = 100 * 364;

/// A node's certificate.
pub const NODE_CERT_DAYS: u64 = 365;

/// A server certificate with less time left is made anew.
pub const SERVER_LEFT_DAYS_MIN: u64 = 30;

/// CAs that are trusted at one time: the one that signs, the one before it, one to come. More: the list is refused.
pub const CAS_MAX: usize = 4;
