//! The response of a try while filters look at its head.
//!
//! Owns the reading of a body that a filter wants to have whole. Never changes it.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Instant;

use super::attempt::{Answered, interrupted_holding, pump_up, touch};
use super::body::ReplayBody;
use super::failure::{Failure, downstream_failure, reset_of};
use crate::http::headers::Headers;
use crate::http::manager::request::Request;
use crate::http::seam::{BodySource, PumpError, StreamError};
use crate::worker::deadlines::Limit;

/// An answered try, and the body of its request.
pub struct Answering<'a, 'b> {
    /// The try.
    pub answered: &'a mut Answered,
    /// May still be on its way.
    pub body: &'a ReplayBody<'b>,
}

/// A body with its trailers.
pub type WholeBody = (Vec<u8>, Option<Headers>);

impl Answering<'_, '_> {
    /// Reads the response to its end, while the request goes on; `None` if it has more than `limit` bytes.
    pub async fn collect(&mut self, request: &Request<'_>, limit: usize) -> Result<Option<WholeBody>, Failure> {
        request.deadlines.set(Limit::PerTry, None);
        let Answered { stream, upload, upload_failed, .. } = &mut *self.answered;
        let mut whole = Vec::new();
        poll_fn(|cx| {
            if !*upload_failed && !upload.is_done() {
                match pump_up(request, stream, upload, self.body, cx) {
                    Poll::Ready(Ok(())) => {
                        request.deadlines.set(Limit::Request, None);
                        request.info.request_end.set(Some(Instant::now()));
                    }
                    Poll::Ready(Err(PumpError::Source(error))) => return Poll::Ready(Err(downstream_failure(error))),
                    Poll::Ready(Err(PumpError::Sink(_))) => *upload_failed = true,
                    Poll::Pending => {}
                }
            }
            let read = match &request.response_body {
                None => read(request, stream, &mut whole, limit, cx),
                Some(chain) => read(request, &chain.source(&*stream), &mut whole, limit, cx),
            };
            match read {
                Poll::Ready(Ok(Read::All(trailers))) => Poll::Ready(Ok(Some((std::mem::take(&mut whole), trailers)))),
                Poll::Ready(Ok(Read::TooMuch)) => Poll::Ready(Ok(None)),
                Poll::Ready(Err(error)) => Poll::Ready(Err(reset_of(error, false))),
                Poll::Pending => interrupted_holding(request, || whole.len() + stream.held(), cx).map(Err),
            }
        })
        .await
    }
}

enum Read {
    All(Option<Headers>),
    TooMuch,
}

fn read(
    request: &Request<'_>,
    source: &impl BodySource,
    whole: &mut Vec<u8>,
    limit: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<Read, StreamError>> {
    while std::task::ready!(source.poll_data(cx))? {
        let count = source.with_data(|chunk| {
            whole.extend_from_slice(chunk.bytes());
            chunk.bytes().len()
        });
        source.consume(count);
        touch(request, Instant::now());
        if whole.len() > limit {
            return Poll::Ready(Ok(Read::TooMuch));
        }
    }
    Poll::Ready(Ok(Read::All(source.take_trailers())))
}
