//! Who asked the process to end, and how often.
//!
//! Owns the count. The first request drains, the second ends the process at once. Never ends anything itself.

use tokio::sync::watch;

/// Requests to end. Clones count together.
#[derive(Clone, Debug)]
pub struct StopRequests(watch::Sender<u32>);

impl Default for StopRequests {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl StopRequests {
    /// Asks once more.
    pub fn request(&self) {
        self.0.send_modify(|count| *count = count.saturating_add(1));
    }

    /// Whether anybody has asked.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() > 0
    }

    /// Returns once there were so many requests.
    pub async fn reached(&self, count: u32) {
        // The sender is in `self`, so it outlives this wait.
        let _ = self.0.subscribe().wait_for(|requests| *requests >= count).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_counted_before_and_while_somebody_waits() {
        let stop = StopRequests::default();
        assert!(!stop.is_requested());
        stop.clone().request();
        stop.reached(1).await;
        assert!(stop.is_requested());
        tokio::join!(stop.reached(2), async { stop.request() });
    }
}
