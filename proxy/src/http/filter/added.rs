//! Headers of an answer of our own.
//!
//! Owns their values, which may be made of the request that is answered. Never says which headers there are.

use outrigger_config::format::Format;

use crate::accesslog::format;
use crate::http::headers::Headers;
use crate::http::manager::mutate::Mutable;
use crate::http::manager::request::Request;

/// Headers under way, and the request that they answer.
pub(super) struct Added<'a, 'r> {
    pub headers: Headers,
    pub request: &'a Request<'r>,
}

impl Mutable for Added<'_, '_> {
    fn headers(&mut self) -> &mut Headers {
        &mut self.headers
    }

    fn evaluate(&self, format: &Format, value: &mut Vec<u8>) {
        format::write_header(format, &self.request.facts(), value);
    }
}
