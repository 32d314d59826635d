//! Bodies on their way through the transcoder.
//!
//! Owns the pieces that were translated and not taken yet, and the count of what is held. Never knows heads.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use outrigger_config::http::filters::transcoder::Transcoder;
use outrigger_policy::transcoding::{RequestTranslator, ResponseTranslator};

use super::{LATE, Status, TranscoderStats, request_refusal, response_refusal, response_too_large};
use crate::http::filter::{BodyInput, BodyStage};
use crate::http::headers::Headers;
use crate::http::manager::reply::LocalReply;
use crate::http::seam::StreamError;
use crate::stats::Gauge;

/// Bytes that are held, as a gauge shows them.
struct Held {
    stats: Arc<TranscoderStats>,
    gauge: fn(&TranscoderStats) -> &Gauge,
    bytes: usize,
}

impl Held {
    fn set(&mut self, bytes: usize) {
        if bytes != self.bytes {
            (self.gauge)(&self.stats).add(bytes as i64 - self.bytes as i64);
            self.bytes = bytes;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

fn request_bytes(stats: &TranscoderStats) -> &Gauge {
    &stats.transcoder_request_buffer_bytes
}

fn response_bytes(stats: &TranscoderStats) -> &Gauge {
    &stats.transcoder_response_buffer_bytes
}

/// A request that becomes frames.
pub(super) struct RequestStage {
    translator: RequestTranslator,
    held: Held,
    trailers: Option<Headers>,
    ended: bool,
}

impl RequestStage {
    pub(super) fn new(translator: RequestTranslator, stats: &Arc<TranscoderStats>) -> Self {
        let held = Held { stats: Arc::clone(stats), gauge: request_bytes, bytes: 0 };
        Self { translator, held, trailers: None, ended: false }
    }
}

impl BodyStage for RequestStage {
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        input: &dyn BodyInput,
    ) -> Poll<Result<Option<Vec<u8>>, StreamError>> {
        loop {
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            let frames = match ready!(input.poll_piece(cx))? {
                Some(piece) => self.translator.push(&piece),
                None => {
                    self.ended = true;
                    self.trailers = input.take_trailers();
                    self.translator.finish()
                }
            };
            self.held.set(if self.ended { 0 } else { self.translator.held() });
            let frames = frames.map_err(|error| StreamError::Answered(request_refusal(&error, LATE)))?;
            if !frames.is_empty() {
                return Poll::Ready(Ok(Some(frames)));
            }
        }
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        self.trailers.take()
    }
}

/// A response that becomes JSON, or the bytes of a body.
pub(super) struct ResponseStage {
    transcoder: Arc<Transcoder>,
    translator: ResponseTranslator,
    held: Held,
    limit: usize,
    ready: Vec<u8>,
    trailers: Option<Headers>,
    /// Something came before the trailers.
    has_body: bool,
    ended: bool,
    /// The source broke off; whoever reads on meets that again.
    broken: bool,
}

impl ResponseStage {
    /// A stage that holds no more than `limit` bytes of what was not translated.
    pub(super) fn new(
        translator: ResponseTranslator,
        stats: &Arc<TranscoderStats>,
        limit: usize,
        transcoder: &Arc<Transcoder>,
    ) -> Self {
        let held = Held { stats: Arc::clone(stats), gauge: response_bytes, bytes: 0 };
        let transcoder = Arc::clone(transcoder);
        let (ready, trailers) = (Vec::new(), None);
        Self { transcoder, translator, held, limit, ready, trailers, has_body: false, ended: false, broken: false }
    }

    /// Reads a piece; false at the end.
    pub(super) fn read(&mut self, cx: &mut Context<'_>, input: &dyn BodyInput) -> Poll<Result<bool, Box<LocalReply>>> {
        if self.ended || self.broken {
            return Poll::Ready(Ok(false));
        }
        let translated = match ready!(input.poll_piece(cx)) {
            Ok(Some(piece)) => {
                self.has_body = true;
                if self.translator.held() + self.ready.len() + piece.len() > self.limit {
                    return Poll::Ready(Err(response_too_large()));
                }
                self.translator.push(&piece)
            }
            Ok(None) => {
                self.ended = true;
                self.trailers = input.take_trailers();
                match self.failed_stream() {
                    Some(json) => Ok(json),
                    None => self.translator.finish(),
                }
            }
            Err(_) => {
                self.broken = true;
                return Poll::Ready(Ok(false));
            }
        };
        self.ready.append(&mut translated.map_err(|error| response_refusal(&error))?);
        self.held.set(self.translator.held());
        Poll::Ready(Ok(!self.ended))
    }

    /// What a stream that has failed before its first message says, if that is wanted.
    fn failed_stream(&self) -> Option<Vec<u8>> {
        let trailers = self.trailers.as_ref().filter(|_| !self.has_body && self.translator.streams())?;
        Status::of(trailers).json(&self.transcoder)
    }

    /// Bytes that were translated.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Something came before the trailers.
    pub(super) fn has_body(&self) -> bool {
        self.has_body
    }

    /// The type of a body that is not JSON.
    pub(super) fn content_type(&self) -> Option<&[u8]> {
        self.translator.content_type()
    }

    /// The trailers, at the end.
    pub(super) fn trailers(&self) -> Option<&Headers> {
        self.trailers.as_ref()
    }

    /// Puts another body in the place of one that was read to its end.
    pub(super) fn replace(&mut self, body: Vec<u8>) {
        self.ready = body;
    }
}

impl BodyStage for ResponseStage {
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        input: &dyn BodyInput,
    ) -> Poll<Result<Option<Vec<u8>>, StreamError>> {
        loop {
            if !self.ready.is_empty() {
                return Poll::Ready(Ok(Some(std::mem::take(&mut self.ready))));
            }
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            if self.broken {
                return input.poll_piece(cx);
            }
            let read = ready!(self.read(cx, input));
            read.map_err(StreamError::Answered)?;
        }
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        self.trailers.take()
    }
}
