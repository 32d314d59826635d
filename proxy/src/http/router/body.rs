//! A request body that can be sent again.
//!
//! Owns the copy that retries are made from, as long as it is small. Never decides on retries.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::http::filter::BodyChain;
use crate::http::headers::Headers;
use crate::http::manager::downstream::Downstream;
use crate::http::seam::{BodySource, Chunk, StreamError};
use crate::stream::StreamInfo;

/// Bodies larger than this are sent once, unless the route says otherwise.
const KEPT_BYTES: usize = 64 * 1024;

/// A body that remembers what was taken from it, as one try after the other sends it.
pub struct ReplayBody<'a> {
    kept: KeptBody<'a>,
    /// What it passes through in this try alone.
    tried: RefCell<Option<Rc<BodyChain>>>,
}

/// The body itself, which is the same in all tries.
struct KeptBody<'a> {
    source: &'a Downstream<'a>,
    filters: Option<Rc<BodyChain>>,
    kept: RefCell<Vec<u8>>,
    position: Cell<usize>,
    keeping: Cell<bool>,
    /// Bytes that are kept at most.
    limit: usize,
    trailers: RefCell<Option<Option<Headers>>>,
    /// Is told how much has come, and how much is kept.
    info: Rc<StreamInfo>,
}

impl<'a> ReplayBody<'a> {
    /// A body that is kept to be sent again if `keep`, as long as it has no more than `limit` bytes.
    pub fn new(
        source: &'a Downstream<'a>,
        filters: Option<Rc<BodyChain>>,
        keep: bool,
        limit: Option<u64>,
        info: &Rc<StreamInfo>,
    ) -> Self {
        let limit = limit.map_or(KEPT_BYTES, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let kept = KeptBody {
            source,
            filters,
            kept: RefCell::default(),
            position: Cell::new(0),
            keeping: Cell::new(keep),
            limit,
            trailers: RefCell::new(None),
            info: Rc::clone(info),
        };
        Self { kept, tried: RefCell::new(None) }
    }

    /// Begins again; false if part of the body is gone.
    pub fn rewind(&self) -> bool {
        self.tried.take();
        self.kept.position.set(0);
        self.kept.keeping.get()
    }

    /// The whole body, once it was sent; `None` if part of it is gone. Its trailers are not kept.
    pub fn kept(&self) -> Option<Vec<u8>> {
        self.kept.keeping.get().then(|| self.kept.kept.take())
    }

    /// Lets the body pass through `chain` until it begins again.
    pub fn pass_through(&self, chain: Rc<BodyChain>) {
        *self.tried.borrow_mut() = Some(chain);
    }

    /// All of it has come, and is kept, and this try sends it as it is.
    pub fn is_whole(&self) -> bool {
        self.kept.keeping.get() && self.kept.trailers.borrow().is_some() && self.tried.borrow().is_none()
    }

    /// A copy of what the try under way has not taken yet of a body that is kept whole.
    pub fn rest(&self) -> Rest {
        let bytes = self.kept.kept.borrow()[self.kept.position.get()..].to_vec();
        Rest { bytes, position: Cell::new(0), trailers: self.kept.trailers.borrow().clone().flatten() }
    }

    /// Goes on where `rest` has come to.
    pub fn go_on(&self, rest: &Rest) {
        let left = rest.bytes.len() - rest.position.get();
        self.kept.position.set(self.kept.kept.borrow().len().saturating_sub(left));
    }

    fn tried(&self) -> Option<Rc<BodyChain>> {
        self.tried.borrow().clone()
    }
}

impl KeptBody<'_> {
    fn replaying(&self) -> bool {
        self.position.get() < self.kept.borrow().len()
    }
}

/// What is left to be sent of a body, for a try that goes on beside others.
pub struct Rest {
    bytes: Vec<u8>,
    position: Cell<usize>,
    trailers: Option<Headers>,
}

impl Rest {
    /// Bytes that are held here.
    pub fn held(&self) -> usize {
        self.bytes.capacity()
    }
}

impl BodySource for Rest {
    fn poll_data(&self, _cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        Poll::Ready(Ok(self.position.get() < self.bytes.len()))
    }

    fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        look(Chunk::Slice(&self.bytes[self.position.get()..]))
    }

    fn consume(&self, count: usize) {
        self.position.set(self.position.get() + count);
    }

    fn take_trailers(&self) -> Option<Headers> {
        self.trailers.clone()
    }
}

impl BodySource for ReplayBody<'_> {
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        match self.tried() {
            None => self.kept.poll_data(cx),
            Some(chain) => chain.source(&self.kept).poll_data(cx),
        }
    }

    fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        match self.tried() {
            None => self.kept.with_data(look),
            Some(chain) => chain.source(&self.kept).with_data(look),
        }
    }

    fn consume(&self, count: usize) {
        match self.tried() {
            None => self.kept.consume(count),
            Some(chain) => chain.source(&self.kept).consume(count),
        }
    }

    fn take_trailers(&self) -> Option<Headers> {
        match self.tried() {
            None => self.kept.take_trailers(),
            Some(chain) => BodySource::take_trailers(&chain.source(&self.kept)),
        }
    }
}

impl BodySource for KeptBody<'_> {
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        if self.replaying() {
            return Poll::Ready(Ok(true));
        }
        match &self.filters {
            None => self.source.poll_data(cx),
            Some(filters) => filters.source(self.source).poll_data(cx),
        }
    }

    fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        if self.replaying() {
            return look(Chunk::Slice(&self.kept.borrow()[self.position.get()..]));
        }
        match &self.filters {
            None => self.source.with_data(look),
            Some(filters) => filters.source(self.source).with_data(look),
        }
    }

    fn consume(&self, count: usize) {
        if self.replaying() {
            self.position.set(self.position.get() + count);
            return;
        }
        // What is sent again was received once.
        self.info.bytes_received.set(self.info.bytes_received.get() + count as u64);
        if self.keeping.get() {
            let mut kept = self.kept.borrow_mut();
            if kept.len() + count > self.limit {
                *kept = Vec::new();
                self.keeping.set(false);
                self.position.set(0);
            } else {
                let keep = |chunk: Chunk<'_>| kept.extend_from_slice(&chunk.bytes()[..count]);
                match &self.filters {
                    None => self.source.with_data(keep),
                    Some(filters) => filters.source(self.source).with_data(keep),
                }
                self.position.set(kept.len());
            }
            self.info.kept_bytes.set(kept.capacity());
        }
        match &self.filters {
            None => self.source.consume(count),
            Some(filters) => filters.source(self.source).consume(count),
        }
    }

    fn take_trailers(&self) -> Option<Headers> {
        let mut trailers = self.trailers.borrow_mut();
        let take = || match &self.filters {
            None => self.source.take_trailers(),
            Some(filters) => filters.source(self.source).take_trailers(),
        };
        trailers.get_or_insert_with(take).clone()
    }
}
