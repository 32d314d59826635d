//! Counters of one resource type (`cluster_manager.cds.*`, `listener_manager.lds.*` and the like).
//!
//! Owns the numbers. Never formats or exports them.

use std::time::Instant;

/// What happened to one type on one source. Stat names are Envoy's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeStats {
    /// `update_attempt`: fetches started, answered or failed.
    pub update_attempt: u64,
    /// `update_success`: responses accepted.
    pub update_success: u64,
    /// `update_rejected`: responses refused, wholly or in part.
    pub update_rejected: u64,
    /// `update_failure`: streams that failed before they brought a response, and files that could not be read.
    pub update_failure: u64,
    /// `init_fetch_timeout`: names or wildcards for which `initial_fetch_timeout` passed.
    pub init_fetch_timeout: u64,
    /// `version_text`: version of the last accepted response; empty before the first.
    pub version: String,
    /// When the last response was accepted (`update_time`).
    pub updated: Option<Instant>,
    /// The `error_detail` of the last rejected response.
    pub last_error: Option<String>,
}

impl TypeStats {
    /// The `version` gauge: 0 before the first accepted version, else a hash of it.
    #[must_use]
    pub fn version_hash(&self) -> u64 {
        version_hash(&self.version)
    }
}

/// A stable 64-bit hash (FNV-1a) of a version, 0 for the empty one. Shows *that* versions differ between proxies.
#[must_use]
pub fn version_hash(version: &str) -> u64 {
    if version.is_empty() {
        return 0;
    }
    version.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_gauge_tells_versions_apart() {
        assert_eq!(version_hash(""), 0);
        assert_eq!(version_hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(version_hash("1"), version_hash("2"));
    }
}
