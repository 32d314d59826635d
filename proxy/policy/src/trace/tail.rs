//! Whether a request that nobody chose at its beginning is worth keeping at its end.
//!
//! Owns what counts as failed and as slow. Never counts what is kept: a budget is the exporter's.

use std::time::Duration;

use outrigger_config::tracing::Tail;

/// How a request ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ended {
    /// The status of its response; 0 if it had none.
    pub status: u16,
    /// The status of gRPC, if it said one.
    pub grpc_status: Option<u32>,
    /// From its first byte to its end; `None` for tunnels, which last as long as people use them.
    pub took: Option<Duration>,
}

/// Why a request is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kept {
    /// It failed.
    Error,
    /// It was slow.
    Slow,
}

impl Kept {
    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Kept::Error => "error",
            Kept::Slow => "slow",
        }
    }
}

/// Whether and why spans of a request are kept.
pub fn worth_keeping(tail: &Tail, ended: &Ended) -> Option<Kept> {
    if tail.errors && failed(ended) {
        return Some(Kept::Error);
    }
    let slow = tail.slow.zip(ended.took).is_some_and(|(limit, took)| took >= limit);
    slow.then_some(Kept::Slow)
}

fn failed(ended: &Ended) -> bool {
    // Those of gRPC that are no fault of the caller, as spans have them.
    let by_grpc = matches!(ended.grpc_status, Some(2 | 4 | 8 | 12 | 13 | 14 | 15));
    ended.status == 0 || ended.status >= 500 || by_grpc
}

#[cfg(test)]
mod tests {
    use outrigger_config::network::TokenBucket;

    use super::*;

    fn tail(errors: bool, slow: Option<u64>) -> Tail {
        let budget = TokenBucket { max_tokens: 1, tokens_per_fill: 1, fill_interval: Duration::from_secs(60) };
        Tail { errors, slow: slow.map(Duration::from_millis), budget }
    }

    fn ended(status: u16, took: u64) -> Ended {
        Ended { status, grpc_status: None, took: Some(Duration::from_millis(took)) }
    }

    #[test]
    fn failures_are_kept_first_and_then_what_was_slow() {
        let both = tail(true, Some(100));
        assert_eq!(worth_keeping(&both, &ended(200, 99)), None);
        assert_eq!(worth_keeping(&both, &ended(200, 100)), Some(Kept::Slow));
        for failed in [ended(0, 1), ended(500, 200), Ended { grpc_status: Some(14), ..ended(200, 1) }] {
            assert_eq!(worth_keeping(&both, &failed), Some(Kept::Error));
            assert_eq!(worth_keeping(&tail(false, None), &failed), None);
        }
        for well in [ended(404, 1), Ended { grpc_status: Some(5), ..ended(200, 1) }] {
            assert_eq!(worth_keeping(&both, &well), None);
        }
    }

    #[test]
    fn a_tunnel_is_never_slow() {
        let tunnel = Ended { took: None, ..ended(101, 0) };
        assert_eq!(worth_keeping(&tail(true, Some(1)), &tunnel), None);
    }
}
