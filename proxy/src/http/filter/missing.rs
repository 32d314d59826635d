//! The place of a filter that has not been discovered: what it would have refused must not pass.
//!
//! Owns the answer that requests get there. Never waits for the filter.

use super::{Exchange, HttpFilter, Verdict};
use crate::http::manager::reply::LocalReply;
use crate::stream::ResponseFlag;

/// Answers every request.
pub struct Missing;

impl HttpFilter for Missing {
    fn request(&self, _exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        Verdict::reply(LocalReply::new(500, "").flag(ResponseFlag::NoFilterConfigFound))
    }
}
