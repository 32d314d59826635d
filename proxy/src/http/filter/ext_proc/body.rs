//! Bodies that a processing service is told piece by piece.
//!
//! Owns the pieces on their way there and back, and the trailers behind them. Never knows heads.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll};

use outrigger_api::pb::envoy::service::ext_proc::v3::CommonResponse;
use outrigger_api::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;

use super::changes::{Permissions, Target};
use super::session::{Answer, Direction, Outcome, Session};
use super::told;
use crate::http::filter::{BodyInput, BodyStage};
use crate::http::headers::Headers;
use crate::http::seam::StreamError;

/// How a body gets to the service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// It does not; its trailers do.
    TrailersOnly,
    /// Each piece waits for its answer.
    Streamed,
    /// What comes back has pieces of its own.
    Duplex,
    /// The service is told, and not waited for.
    Observed { body: bool, trailers: bool },
    /// Another body takes its place, and it goes nowhere.
    Replaced,
}

/// Where the trailers are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Trailers {
    /// The body has not ended.
    Unknown,
    /// There are none, or nobody asks about them.
    Settled,
    /// The service is to be asked.
    Due,
    /// The service was asked.
    Asked,
}

/// A part of a body, and whether it is the last one.
struct Piece {
    bytes: Vec<u8>,
    last: bool,
}

/// A body on its way through the service.
pub(super) struct Passage {
    session: Rc<Session>,
    direction: Direction,
    way: Way,
    /// Read ahead, to know whether a piece is the last.
    ahead: Option<Vec<u8>>,
    input_ended: bool,
    /// The end has been told.
    end_told: bool,
    /// Told and not answered yet.
    told: VecDeque<Vec<u8>>,
    told_bytes: usize,
    ready: VecDeque<Vec<u8>>,
    trailers: Option<Headers>,
    trailers_at: Trailers,
    /// The service has ended the body.
    ended: bool,
    /// The service has bytes that exist nowhere else.
    gave_away: bool,
}

impl Passage {
    /// A body that goes this way.
    pub(super) fn new(session: &Rc<Session>, direction: Direction, way: Way) -> Self {
        Self {
            session: Rc::clone(session),
            direction,
            way,
            ahead: None,
            input_ended: false,
            end_told: false,
            told: VecDeque::new(),
            told_bytes: 0,
            ready: VecDeque::new(),
            trailers: None,
            trailers_at: Trailers::Unknown,
            ended: false,
            gave_away: false,
        }
    }

    /// A body that goes nowhere; this takes its place.
    pub(super) fn replaced(session: &Rc<Session>, direction: Direction, body: Vec<u8>) -> Self {
        let mut passage = Self::new(session, direction, Way::Replaced);
        passage.ready.push_back(body);
        passage
    }

    /// The next piece of the input, and whether it is the last one; `None` at the end.
    fn poll_input(&mut self, cx: &mut Context<'_>, input: &dyn BodyInput) -> Poll<Result<Option<Piece>, StreamError>> {
        let piece = match self.ahead.take() {
            Some(piece) => Some(piece),
            None if self.input_ended => None,
            None => match input.poll_piece(cx) {
                Poll::Ready(piece) => piece?,
                Poll::Pending => return Poll::Pending,
            },
        };
        let Some(piece) = piece else {
            self.end_input(input);
            return Poll::Ready(Ok(None));
        };
        match input.poll_piece(cx) {
            Poll::Ready(Ok(Some(next))) => self.ahead = Some(next),
            Poll::Ready(Ok(None)) => self.end_input(input),
            // Met again by who reads on.
            Poll::Ready(Err(_)) | Poll::Pending => {}
        }
        let last = self.input_ended && self.ahead.is_none() && self.trailers.is_none();
        Poll::Ready(Ok(Some(Piece { bytes: piece, last })))
    }

    fn end_input(&mut self, input: &dyn BodyInput) {
        if !self.input_ended {
            self.input_ended = true;
            self.trailers = input.take_trailers();
            let wanted = match self.way {
                Way::TrailersOnly | Way::Streamed | Way::Duplex => self.session.mode(self.direction).trailers,
                Way::Observed { trailers, .. } => trailers,
                Way::Replaced => false,
            };
            self.trailers_at = if wanted && self.trailers.is_some() { Trailers::Due } else { Trailers::Settled };
        }
    }

    /// Tells the service what there is to tell; false if there is nothing now.
    pub(super) fn feed(&mut self, cx: &mut Context<'_>, input: &dyn BodyInput) -> Result<bool, StreamError> {
        if self.told_bytes >= TOLD_BYTES {
            return Ok(false);
        }
        let done = self.input_ended && self.ahead.is_none();
        if done {
            return Ok(self.feed_end());
        }
        let Piece { bytes: piece, last } = match self.poll_input(cx, input) {
            Poll::Pending => return Ok(false),
            Poll::Ready(piece) => match piece? {
                Some(piece) => piece,
                None => return Ok(true),
            },
        };
        match self.way {
            Way::TrailersOnly => self.ready.push_back(piece),
            Way::Observed { body, .. } => {
                if body {
                    self.session.send_body(self.direction, piece.clone(), last);
                    self.end_told = last;
                }
                self.ready.push_back(piece);
            }
            Way::Streamed => {
                self.session.send_body(self.direction, piece.clone(), last);
                self.end_told = last;
                self.told_bytes += piece.len();
                self.told.push_back(piece);
            }
            Way::Duplex => {
                self.session.send_body(self.direction, piece, last);
                self.end_told = last;
                self.gave_away = true;
            }
            Way::Replaced => {}
        }
        Ok(true)
    }

    /// Tells that the body has ended, or its trailers.
    fn feed_end(&mut self) -> bool {
        let tells_body = matches!(self.way, Way::Streamed | Way::Duplex | Way::Observed { body: true, .. });
        if tells_body && !self.end_told && self.trailers.is_none() {
            self.session.send_body(self.direction, Vec::new(), true);
            self.end_told = true;
            if self.way == Way::Streamed {
                self.told.push_back(Vec::new());
            }
            return true;
        }
        if self.trailers_at == Trailers::Due && self.told.is_empty() {
            let choice = &self.session.processor.settings.headers;
            let message = self.trailers.as_ref().map(|trailers| told::trailers(trailers, choice));
            self.session.send_trailers(self.direction, message.unwrap_or_default());
            let waits = !matches!(self.way, Way::Observed { .. });
            self.trailers_at = if waits { Trailers::Asked } else { Trailers::Settled };
            return true;
        }
        false
    }

    /// Takes what the service has said.
    fn take(&mut self, answer: Answer) -> Result<(), StreamError> {
        match answer {
            Answer::Body(response) => return self.take_body(response),
            Answer::Trailers(mutation) => {
                if let Some(trailers) = &mut self.trailers {
                    let changed = self.session.change(&mutation, Target::Trailers(trailers), Permissions::default());
                    changed.map_err(StreamError::Answered)?;
                }
                self.trailers_at = Trailers::Settled;
                self.ended = true;
            }
            // Heads are asked about before.
            Answer::Head(_) => return self.spurious(),
        }
        Ok(())
    }

    fn spurious(&self) -> Result<(), StreamError> {
        self.session.spurious().map_or(Ok(()), |reply| Err(StreamError::Answered(reply)))
    }

    fn take_body(&mut self, response: CommonResponse) -> Result<(), StreamError> {
        let mutation = response.body_mutation.and_then(|mutation| mutation.mutation);
        if self.way == Way::Duplex {
            let Some(Mutation::StreamedResponse(piece)) = mutation else { return self.spurious() };
            self.ready.push_back(piece.body);
            self.ended |= piece.end_of_stream;
            return Ok(());
        }
        let Some(piece) = self.told.pop_front() else { return self.spurious() };
        self.told_bytes -= piece.len();
        self.ready.push_back(changed(piece, mutation));
        Ok(())
    }

    fn is_done(&self) -> bool {
        let input_done = self.input_ended && self.ahead.is_none();
        match self.way {
            Way::Duplex => self.ended,
            Way::Replaced => input_done,
            Way::TrailersOnly => input_done && self.trailers_at == Trailers::Settled,
            Way::Observed { body, .. } => {
                input_done
                    && self.trailers_at == Trailers::Settled
                    && (!body || self.end_told || self.trailers.is_some())
            }
            Way::Streamed => {
                input_done
                    && self.told.is_empty()
                    && self.trailers_at == Trailers::Settled
                    && (self.end_told || self.trailers.is_some())
            }
        }
    }

    /// The service has nothing to say any more: what it was told goes on as it was, and so does the rest.
    fn poll_rest(&mut self, cx: &mut Context<'_>, input: &dyn BodyInput) -> Poll<Result<Option<Vec<u8>>, StreamError>> {
        while let Some(piece) = self.told.pop_front() {
            if !piece.is_empty() {
                return Poll::Ready(Ok(Some(piece)));
            }
        }
        if let Some(piece) = self.ahead.take() {
            return Poll::Ready(Ok(Some(piece)));
        }
        if self.input_ended || self.ended {
            return Poll::Ready(Ok(None));
        }
        match input.poll_piece(cx) {
            Poll::Ready(Ok(None)) => {
                self.end_input(input);
                Poll::Ready(Ok(None))
            }
            polled => polled,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, input: &dyn BodyInput) -> Poll<Result<Option<Vec<u8>>, StreamError>> {
        loop {
            let asks = matches!(self.way, Way::Streamed | Way::Duplex | Way::TrailersOnly);
            let mut over = false;
            if asks {
                over = loop {
                    match self.session.poll_answer(self.direction, cx) {
                        Poll::Ready(Outcome::Answer(answer)) => self.take(answer)?,
                        Poll::Ready(Outcome::Reply(reply)) => return Poll::Ready(Err(StreamError::Answered(reply))),
                        Poll::Ready(Outcome::Over) => break true,
                        Poll::Pending => break false,
                    }
                };
            }
            while let Some(piece) = self.ready.pop_front() {
                if !piece.is_empty() {
                    return Poll::Ready(Ok(Some(piece)));
                }
            }
            if over && !self.is_done() {
                if self.way == Way::Duplex && self.gave_away {
                    // What the service has kept is in nobody's hands: a part must not be taken for the whole.
                    return Poll::Ready(Err(StreamError::Answered(self.session.lost())));
                }
                return self.poll_rest(cx, input);
            }
            if self.is_done() {
                return Poll::Ready(Ok(None));
            }
            if !self.feed(cx, input)? {
                return Poll::Pending;
            }
        }
    }
}

/// A body that the service has an opinion on.
pub(super) fn changed(body: Vec<u8>, mutation: Option<Mutation>) -> Vec<u8> {
    match mutation {
        Some(Mutation::Body(body)) => body,
        Some(Mutation::ClearBody(true)) => Vec::new(),
        Some(Mutation::ClearBody(false) | Mutation::StreamedResponse(_)) | None => body,
    }
}

/// A passage as a part of the way of a body; whoever waits for the head may have begun it.
pub(super) struct Stage(pub Rc<RefCell<Passage>>);

impl BodyStage for Stage {
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        input: &dyn BodyInput,
    ) -> Poll<Result<Option<Vec<u8>>, StreamError>> {
        self.0.borrow_mut().poll_next(cx, input)
    }

    fn take_trailers(&mut self) -> Option<Headers> {
        self.0.borrow_mut().trailers.take()
    }
}

/// Bytes that wait for answers; no more is told before there are some.
const TOLD_BYTES: usize = 1 << 20;
