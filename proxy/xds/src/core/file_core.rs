//! A file in place of a control plane (`path_config_source`), for one type.
//!
//! Owns what was accepted from the file. Never reads it: the caller parses the file and hands in the response.

use std::time::{Duration, Instant};

use outrigger_api::pb::envoy::service::discovery::v3::DiscoveryResponse;

use super::typed::{Judge, Reading, TypedState};
use super::{Event, Interest, Rejection, ResourceKind, decode};

/// The state of one file source.
#[derive(Debug)]
pub struct FileCore {
    state: TypedState,
    unread: bool,
}

impl FileCore {
    /// A source of resources of one type that wants nothing yet.
    #[must_use]
    pub fn new(kind: ResourceKind) -> Self {
        Self { state: TypedState::new(kind), unread: false }
    }

    /// Adds a reference; the file is to be read again, since names nobody wanted were not kept.
    pub fn subscribe(&mut self, interest: &Interest, fetch_timeout: Option<Duration>, now: Instant) {
        self.state.subscribe(interest, fetch_timeout, now);
        self.unread |= self.state.subscription.is_dirty();
        self.state.take_changes();
    }

    /// Takes a reference away.
    pub fn unsubscribe(&mut self, interest: &Interest) {
        self.state.unsubscribe(interest);
        self.state.take_changes();
    }

    /// Whether nothing is wanted from this file any more.
    #[must_use]
    pub fn wants_nothing(&self) -> bool {
        self.state.subscription.wants_nothing()
    }

    /// The file changed.
    pub fn changed(&mut self) {
        self.unread = true;
    }

    /// True once when the file is to be read.
    pub fn poll_read(&mut self) -> bool {
        std::mem::take(&mut self.unread)
    }

    /// Takes in what the file holds. Returns what was refused; all else of the file, and what was accepted from it
    /// before, stays in use.
    pub fn loaded(&mut self, response: DiscoveryResponse, now: Instant, judge: &mut Judge<'_>) -> Vec<Rejection> {
        let kind = self.state.kind();
        if !response.type_url.is_empty() && response.type_url != kind.type_url() {
            let message = format!("type_url is \"{}\", expected \"{}\"", response.type_url, kind.type_url());
            self.refused(&message);
            return vec![Rejection { name: "type_url".into(), message }];
        }
        self.state.apply(decode::sotw(kind, response), Reading::Sotw, now, judge)
    }

    /// Resources of another type count as rejected; the last good content stays.
    fn refused(&mut self, message: &str) {
        self.state.stats.update_attempt += 1;
        self.state.stats.update_rejected += 1;
        self.state.stats.last_error = Some(message.to_owned());
    }

    /// The file cannot be read, or makes no sense: counts as failure, the last good content stays.
    pub fn failed(&mut self, message: &str) {
        self.state.stats.update_attempt += 1;
        self.state.stats.update_failure += 1;
        self.state.stats.last_error = Some(message.to_owned());
    }

    /// Something that happened without a new file.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.state.poll_event()
    }

    /// When [`Self::handle_timeout`] should be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.state.poll_timeout()
    }

    /// Lets deadlines pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.state.handle_timeout(now);
    }

    /// Takes back resources of an [`Origin::Cache`](super::Origin::Cache) update that were refused.
    pub fn reject_held(&mut self, rejections: &[Rejection], now: Instant) {
        self.state.reject_held(rejections, now);
    }

    /// The type and what is held of it.
    #[must_use]
    pub fn state(&self) -> &TypedState {
        &self.state
    }
}
