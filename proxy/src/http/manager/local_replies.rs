//! The form of answers of our own (`LocalReplyConfig`).
//!
//! Owns which mapper changes an answer, and its body by format. Never decides why one is made.

use std::borrow::Cow;

use outrigger_config::http::{BodyFormat, HeaderMutations, LocalReplies};

use super::reply::LocalReply;
use super::request::Request;
use crate::accesslog::{filter, write_text};

/// What changes of an answer beside itself.
#[derive(Default)]
pub struct Rewritten<'c> {
    /// Added to its head.
    pub headers: Option<&'c HeaderMutations>,
    /// The status code that it had before; what is added tells of that one.
    pub status_before: u16,
    /// Of its body, which has been written anew.
    pub content_type: Option<&'c str>,
}

/// Changes an answer, whose status and flags are recorded, as the connection manager wants it.
pub fn rewrite<'c>(config: &'c LocalReplies, request: &mut Request<'_>, reply: &mut LocalReply) -> Rewritten<'c> {
    let mut rewritten = Rewritten { status_before: reply.status, ..Rewritten::default() };
    // Filters and formats look at the answer as it would leave.
    request.response.clear();
    set_status(request, reply.status);
    let facts = request.facts();
    let runtime = &*request.graph.runtime;
    let random = request.connection.worker.random.next();
    let mapper = config.mappers.iter().find(|mapper| filter::passes(&mapper.filter, &facts, random, runtime));
    let mut format: Option<&BodyFormat> = config.format.as_ref();
    if let Some(mapper) = mapper {
        if let Some(body) = &mapper.body {
            reply.body = Cow::Owned(body.clone());
        }
        if let Some(status) = mapper.status {
            reply.status = status;
            set_status(request, status);
        }
        rewritten.headers = Some(&mapper.headers).filter(|headers| !headers.is_empty());
        format = mapper.format.as_ref().or(format);
    }
    if let Some(BodyFormat { format, content_type }) = format {
        request.local_reply_body = reply.body.clone();
        let mut body = Vec::new();
        write_text(format, &request.facts(), &mut body);
        reply.body = Cow::Owned(body);
        rewritten.content_type = Some(content_type);
    }
    rewritten
}

fn set_status(request: &mut Request<'_>, status: u16) {
    request.response.status = status;
    request.info.response_code.set(status);
}
