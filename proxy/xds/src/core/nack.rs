//! The message in a NACK, and its damping.
//!
//! Owns how rejections become `error_detail` and how long a repeated NACK is held back. Never judges a resource.

use std::time::Duration;

use outrigger_api::pb::google::rpc::Status;

use super::{Rejection, ResourceKind};

/// Largest `error_detail.message` in bytes: long enough to name many resources, short enough for any server's header
/// and log limits.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024;

/// gRPC code INVALID_ARGUMENT.
const INVALID_ARGUMENT: i32 = 3;

/// The `error_detail` that names every rejected resource, one per line.
#[must_use]
pub fn error_detail(kind: ResourceKind, rejections: &[Rejection]) -> Status {
    let mut message = String::new();
    for (done, Rejection { name, message: reason }) in rejections.iter().enumerate() {
        // The phrase is what operators and dashboards already search for.
        let line = format!("Error adding/updating {}(s) {name}: {reason}", kind.noun());
        let rest = rejections.len() - done;
        let more = format!("\n... and {rest} more");
        let newline = usize::from(!message.is_empty());
        // Room for the closing line is always kept, so the count of what was left out never gets lost.
        let room = MAX_MESSAGE_BYTES.saturating_sub(message.len() + newline + more.len());
        if newline == 1 && line.len() > room {
            message.push_str(&more);
            break;
        }
        if newline == 1 {
            message.push('\n');
        }
        message.push_str(truncate(&line, room));
    }
    Status { code: INVALID_ARGUMENT, message, details: Vec::new() }
}

/// The longest prefix of at most `bytes` bytes that ends between characters.
fn truncate(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Holds back NACKs that follow one another: some servers resend rejected content at once and for ever.
#[derive(Clone, Debug, Default)]
pub(crate) struct Damping {
    nacks_in_a_row: u32,
}

impl Damping {
    const BASE: Duration = Duration::from_millis(200);
    const CAP: Duration = Duration::from_secs(10);

    /// Notes one more NACK; returns how long to hold it back. The first goes out at once.
    pub(crate) fn nack(&mut self) -> Duration {
        let before = self.nacks_in_a_row;
        self.nacks_in_a_row = self.nacks_in_a_row.saturating_add(1);
        match before {
            0 => Duration::ZERO,
            n => Self::BASE.saturating_mul(1 << (n - 1).min(6)).min(Self::CAP),
        }
    }

    pub(crate) fn ack(&mut self) {
        self.nacks_in_a_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejection(name: &str, message: &str) -> Rejection {
        Rejection { name: name.into(), message: message.into() }
    }

    #[test]
    fn every_failing_resource_is_named_on_its_own_line() {
        let detail =
            error_detail(ResourceKind::Listener, &[rejection("in", "no filter chains"), rejection("out", "bad port")]);
        assert_eq!(detail.code, 3);
        assert_eq!(
            detail.message,
            "Error adding/updating listener(s) in: no filter chains\nError adding/updating listener(s) out: bad port"
        );
    }

    #[test]
    fn the_message_is_bounded_and_counts_what_is_left_out() {
        let many: Vec<_> = (0..1000).map(|i| rejection(&format!("listener-{i}"), "unsupported")).collect();
        let message = error_detail(ResourceKind::Listener, &many).message;
        assert!(message.len() <= MAX_MESSAGE_BYTES);
        assert!(message.ends_with(" more"), "{}", &message[message.len() - 40..]);

        let long = error_detail(ResourceKind::Cluster, &[rejection("ü", &"é".repeat(9000)), rejection("b", "x")]);
        assert!(long.message.len() <= MAX_MESSAGE_BYTES);
        assert!(long.message.starts_with("Error adding/updating cluster(s) ü: é"));
        assert!(long.message.ends_with("... and 1 more"));
    }

    #[test]
    fn repeated_nacks_wait_longer_until_an_ack() {
        let mut damping = Damping::default();
        let waits: Vec<u128> = (0..9).map(|_| damping.nack().as_millis()).collect();
        assert_eq!(waits, [0, 200, 400, 800, 1600, 3200, 6400, 10000, 10000]);
        damping.ack();
        assert_eq!(damping.nack(), Duration::ZERO);
    }
}
