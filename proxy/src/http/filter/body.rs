//! Bodies that pass through filters.
//!
//! Owns the bytes between a source and a sink that filters look at or change. Without filters there is no such thing, and
//! bodies go from source to sink directly. Never waits for anything but its source.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, ready};

use crate::http::headers::Headers;
use crate::http::seam::{BodySource, Chunk, StreamError};

/// Changes a body.
pub trait BodyFilter {
    /// Takes what came, and gives what goes on. May hold bytes back.
    fn data(&mut self, input: Vec<u8>) -> Vec<u8>;

    /// The body has ended: gives what was held back, and may change the trailers.
    fn end(&mut self, _trailers: &mut Option<Headers>) -> Vec<u8> {
        Vec::new()
    }
}

/// Looks at a body, which goes on as it came: nothing is copied for it.
pub trait BodyObserver {
    /// Bytes that go on.
    fn data(&mut self, bytes: &[u8]);

    /// The body has ended; the trailers may be changed.
    fn end(&mut self, _trailers: &mut Option<Headers>) {}
}

/// Decides how fast a body goes on.
pub trait BodyPace {
    /// How many of `wanted` bytes may go on now, at least one.
    fn poll_allowance(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize>;

    /// So many bytes went on.
    fn passed(&mut self, count: usize);
}

/// Takes a body away piece by piece, and gives back another one in its own time.
pub trait BodyStage {
    /// The next piece that goes on, never an empty one; `None` at the end.
    fn poll_piece(&mut self, cx: &mut Context<'_>, input: &dyn BodyInput)
    -> Poll<Result<Option<Vec<u8>>, StreamError>>;

    /// The trailers, after the end.
    fn take_trailers(&mut self) -> Option<Headers>;
}

/// A body that comes in pieces.
pub trait BodyInput {
    /// The next piece; `None` at the end.
    fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Vec<u8>>, StreamError>>;

    /// The trailers, after the end.
    fn take_trailers(&self) -> Option<Headers>;
}

/// A stage, and what a body passes through on its way there.
struct Staged {
    before: BodyChain,
    stage: Box<dyn BodyStage>,
}

enum Step {
    Filter(Box<dyn BodyFilter>),
    Observer(Box<dyn BodyObserver>),
}

/// What one body passes through.
#[derive(Default)]
pub struct BodyChain {
    /// Where the body comes from, instead of the source itself.
    staged: RefCell<Option<Box<Staged>>>,
    steps: RefCell<Vec<Step>>,
    paces: RefCell<Vec<Box<dyn BodyPace>>>,
    /// Bytes that may go on before the paces are asked again.
    allowed: Cell<usize>,
    /// There is a filter among the steps, or a body in the place of the one that came.
    changes: Cell<bool>,
    ready: RefCell<Vec<u8>>,
    taken: Cell<usize>,
    ended: Cell<bool>,
    trailers: RefCell<Option<Headers>>,
}

impl BodyChain {
    /// One more filter, after what is there. What was collected passes through it at once.
    pub fn push(&self, filter: Box<dyn BodyFilter>) {
        self.changes.set(true);
        self.add(Step::Filter(filter));
    }

    /// One more observer, after what is there.
    pub fn observe(&self, observer: Box<dyn BodyObserver>) {
        self.add(Step::Observer(observer));
    }

    /// Lets bytes go on no faster than `pace` allows.
    pub fn pace(&self, pace: Box<dyn BodyPace>) {
        self.allowed.set(0);
        self.paces.borrow_mut().push(pace);
    }

    /// Lets the body come from `stage`, which gets it as it is after what is there.
    pub fn stage(&self, stage: Box<dyn BodyStage>) {
        let before = Self {
            staged: RefCell::new(self.staged.take()),
            steps: RefCell::new(self.steps.take()),
            paces: RefCell::new(self.paces.take()),
            allowed: Cell::new(self.allowed.take()),
            changes: Cell::new(self.changes.take()),
            ready: RefCell::new(self.ready.take()),
            taken: Cell::new(self.taken.take()),
            ended: Cell::new(self.ended.take()),
            trailers: RefCell::new(self.trailers.take()),
        };
        *self.staged.borrow_mut() = Some(Box::new(Staged { before, stage }));
        self.changes.set(true);
    }

    /// Puts other bytes in the place of those that were given back, and says whether they are the whole body.
    pub fn exchange(&self, bytes: Vec<u8>) -> bool {
        *self.ready.borrow_mut() = bytes;
        self.taken.set(0);
        self.changes.set(true);
        self.allowed.set(self.at_hand());
        self.ended.get()
    }

    /// The trailers of a body that was read to its end.
    pub fn trailers(&self) -> &RefCell<Option<Headers>> {
        &self.trailers
    }

    /// Whether what goes on may be something else than what came.
    pub fn changes_bytes(&self) -> bool {
        self.changes.get()
    }

    fn add(&self, mut step: Step) {
        let collected = self.ready.take().split_off(self.taken.take());
        let mut changed = step.through(collected);
        if self.ended.get() {
            changed.append(&mut step.end(&mut self.trailers.borrow_mut()));
        }
        *self.ready.borrow_mut() = changed;
        self.steps.borrow_mut().push(step);
    }

    /// Puts a whole body in the place of one that was read to its end. The paces that are there have let it pass already.
    pub fn replace(&self, body: Vec<u8>, trailers: Option<Headers>) {
        *self.ready.borrow_mut() = body;
        self.taken.set(0);
        self.ended.set(true);
        self.changes.set(true);
        self.allowed.set(self.at_hand());
        *self.trailers.borrow_mut() = trailers;
    }

    /// Gives back the beginning of a body, which was read before the rest; it has passed all steps and paces.
    pub fn put_back(&self, beginning: Vec<u8>) {
        *self.ready.borrow_mut() = beginning;
        self.taken.set(0);
        self.changes.set(true);
        self.allowed.set(self.at_hand());
    }

    /// How many steps there are.
    pub fn steps(&self) -> usize {
        self.steps.borrow().len()
    }

    /// Passes what was put back through the steps that have come since there were only so many.
    pub fn catch_up(&self, passed: usize) {
        let mut steps = self.steps.borrow_mut();
        let mut bytes = self.ready.take();
        for step in steps.iter_mut().skip(passed) {
            bytes = step.through(bytes);
            if self.ended.get() {
                bytes.append(&mut step.end(&mut self.trailers.borrow_mut()));
            }
        }
        *self.ready.borrow_mut() = bytes;
        self.allowed.set(self.at_hand());
    }

    /// Passes a whole body through all steps.
    pub fn apply(&self, body: Vec<u8>) -> Vec<u8> {
        let mut trailers = None;
        let mut changed = self.through(body);
        changed.append(&mut self.finish(&mut trailers));
        changed
    }

    /// There are steps alone, and nothing was read yet.
    pub fn is_plain(&self) -> bool {
        self.staged.borrow().is_none() && !self.ended.get() && self.ready.borrow().is_empty()
    }

    /// `inner` as it is after all steps.
    pub fn source<'a, S: BodySource>(&'a self, inner: &'a S) -> Filtered<'a, S> {
        Filtered { chain: self, inner }
    }

    /// Ready when some of `wanted` bytes may go on; how many.
    pub fn poll_allowance(&self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        let mut paces = self.paces.borrow_mut();
        if paces.is_empty() {
            return Poll::Ready(wanted);
        }
        if self.allowed.get() == 0 {
            let mut allowed = wanted;
            for pace in paces.iter_mut() {
                allowed = ready!(pace.poll_allowance(cx, allowed)).min(allowed);
            }
            self.allowed.set(allowed);
        }
        Poll::Ready(self.allowed.get().min(wanted))
    }

    /// So many bytes went on.
    pub fn passed(&self, count: usize) {
        self.allowed.set(self.allowed.get().saturating_sub(count));
        for pace in self.paces.borrow_mut().iter_mut() {
            pace.passed(count);
        }
    }

    fn through(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        for step in self.steps.borrow_mut().iter_mut() {
            bytes = step.through(bytes);
        }
        bytes
    }

    fn finish(&self, trailers: &mut Option<Headers>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for step in self.steps.borrow_mut().iter_mut() {
            bytes = step.through(bytes);
            bytes.append(&mut step.end(trailers));
        }
        bytes
    }

    fn end(&self, trailers: Option<Headers>) -> Vec<u8> {
        let mut trailers = trailers;
        let rest = self.finish(&mut trailers);
        *self.trailers.borrow_mut() = trailers;
        self.ended.set(true);
        rest
    }

    /// Bytes that are ready to go on.
    pub fn at_hand(&self) -> usize {
        self.ready.borrow().len() - self.taken.get()
    }
}

impl Step {
    fn through(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        if bytes.is_empty() {
            return bytes;
        }
        match self {
            Step::Filter(filter) => filter.data(bytes),
            Step::Observer(observer) => {
                observer.data(&bytes);
                bytes
            }
        }
    }

    fn end(&mut self, trailers: &mut Option<Headers>) -> Vec<u8> {
        match self {
            Step::Filter(filter) => filter.end(trailers),
            Step::Observer(observer) => {
                observer.end(trailers);
                Vec::new()
            }
        }
    }
}

/// A body as it is after its chain.
pub struct Filtered<'a, S> {
    chain: &'a BodyChain,
    inner: &'a S,
}

impl<S: BodySource> Filtered<'_, S> {
    /// What came goes on as it is, from where it is.
    fn passes(&self) -> bool {
        !self.chain.changes.get()
    }

    fn poll_passing(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        if self.chain.ended.get() {
            return Poll::Ready(Ok(false));
        }
        let more = ready!(self.inner.poll_data(cx))?;
        if !more {
            self.chain.end(self.inner.take_trailers());
        }
        Poll::Ready(Ok(more))
    }

    fn poll_changed(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        let chain = self.chain;
        while chain.at_hand() == 0 {
            if chain.ended.get() {
                return Poll::Ready(Ok(false));
            }
            let changed = match ready!(self.poll_origin(cx))? {
                Some(bytes) => chain.through(bytes),
                None => chain.end(self.take_origin_trailers()),
            };
            *chain.ready.borrow_mut() = changed;
            chain.taken.set(0);
        }
        Poll::Ready(Ok(true))
    }

    /// What comes before the steps: from the stage, if there is one.
    fn poll_origin(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Vec<u8>>, StreamError>> {
        match &mut *self.chain.staged.borrow_mut() {
            Some(staged) => {
                let Staged { before, stage } = &mut **staged;
                stage.poll_piece(cx, &Filtered { chain: before, inner: self.inner })
            }
            None => {
                if !ready!(self.inner.poll_data(cx))? {
                    return Poll::Ready(Ok(None));
                }
                let bytes = self.inner.with_data(|chunk| chunk.bytes().to_vec());
                self.inner.consume(bytes.len());
                Poll::Ready(Ok(Some(bytes)))
            }
        }
    }

    fn take_origin_trailers(&self) -> Option<Headers> {
        match &mut *self.chain.staged.borrow_mut() {
            Some(staged) => staged.stage.take_trailers(),
            None => self.inner.take_trailers(),
        }
    }

    fn allowed(&self) -> usize {
        if self.chain.paces.borrow().is_empty() { usize::MAX } else { self.chain.allowed.get() }
    }
}

impl<S: BodySource> BodyInput for Filtered<'_, S> {
    fn poll_piece(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Vec<u8>>, StreamError>> {
        if !ready!(self.poll_data(cx))? {
            return Poll::Ready(Ok(None));
        }
        let bytes = self.with_data(|chunk| chunk.bytes().to_vec());
        self.consume(bytes.len());
        Poll::Ready(Ok(Some(bytes)))
    }

    fn take_trailers(&self) -> Option<Headers> {
        BodySource::take_trailers(self)
    }
}

/// A body that is all there.
pub struct Given<'a> {
    bytes: &'a [u8],
    taken: Cell<usize>,
}

impl<'a> Given<'a> {
    /// The body `bytes`, without trailers.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, taken: Cell::new(0) }
    }
}

impl BodySource for Given<'_> {
    fn poll_data(&self, _: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        Poll::Ready(Ok(self.taken.get() < self.bytes.len()))
    }

    fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        look(Chunk::Slice(self.bytes.get(self.taken.get()..).unwrap_or_default()))
    }

    fn consume(&self, count: usize) {
        self.taken.set(self.taken.get() + count);
    }

    fn take_trailers(&self) -> Option<Headers> {
        None
    }
}

impl<S: BodySource> BodySource for Filtered<'_, S> {
    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
        let more = if self.passes() { ready!(self.poll_passing(cx))? } else { ready!(self.poll_changed(cx))? };
        if more {
            let at_hand =
                if self.passes() { self.inner.with_data(|chunk| chunk.bytes().len()) } else { self.chain.at_hand() };
            ready!(self.chain.poll_allowance(cx, at_hand));
        }
        Poll::Ready(Ok(more))
    }

    fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
        let allowed = self.allowed();
        if !self.passes() {
            let ready = self.chain.ready.borrow();
            let at_hand = &ready[self.chain.taken.get()..];
            return look(Chunk::Slice(&at_hand[..at_hand.len().min(allowed)]));
        }
        self.inner.with_data(|chunk| match chunk.bytes() {
            bytes if bytes.len() > allowed => look(Chunk::Slice(&bytes[..allowed])),
            _ => look(chunk),
        })
    }

    fn consume(&self, count: usize) {
        if self.passes() {
            self.inner.with_data(|chunk| {
                for step in self.chain.steps.borrow_mut().iter_mut() {
                    if let Step::Observer(observer) = step {
                        observer.data(&chunk.bytes()[..count]);
                    }
                }
            });
            self.inner.consume(count);
        } else {
            self.chain.taken.set(self.chain.taken.get() + count);
        }
        self.chain.passed(count);
    }

    fn take_trailers(&self) -> Option<Headers> {
        self.chain.trailers.borrow_mut().take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Doubles each byte, and says goodbye.
    struct Doubling;

    impl BodyFilter for Doubling {
        fn data(&mut self, input: Vec<u8>) -> Vec<u8> {
            input.into_iter().flat_map(|byte| [byte, byte]).collect()
        }

        fn end(&mut self, trailers: &mut Option<Headers>) -> Vec<u8> {
            trailers.get_or_insert_default().append(b"x-doubled", b"1");
            b".".to_vec()
        }
    }

    struct Parts(RefCell<Vec<&'static [u8]>>);

    impl BodySource for Parts {
        fn poll_data(&self, _: &mut Context<'_>) -> Poll<Result<bool, StreamError>> {
            Poll::Ready(Ok(!self.0.borrow().is_empty()))
        }

        fn with_data<R>(&self, look: impl FnOnce(Chunk<'_>) -> R) -> R {
            look(Chunk::Slice(self.0.borrow()[0]))
        }

        fn consume(&self, count: usize) {
            let first = self.0.borrow()[0];
            match &first[count..] {
                [] => drop(self.0.borrow_mut().remove(0)),
                rest => self.0.borrow_mut()[0] = rest,
            }
        }

        fn take_trailers(&self) -> Option<Headers> {
            None
        }
    }

    fn read(source: &impl BodySource) -> (Vec<u8>, Option<Headers>) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut all = Vec::new();
        while let Poll::Ready(Ok(true)) = source.poll_data(&mut cx) {
            // In small steps, as a slow sink takes it.
            let step = source.with_data(|chunk| chunk.bytes()[..1.max(chunk.bytes().len() / 2)].to_vec());
            source.consume(step.len());
            all.extend_from_slice(&step);
        }
        (all, source.take_trailers())
    }

    #[test]
    fn a_body_passes_through_all_filters_in_order() {
        let chain = BodyChain::default();
        chain.push(Box::new(Doubling));
        chain.push(Box::new(Doubling));
        let (body, trailers) = read(&chain.source(&Parts(RefCell::new(vec![b"a", b"bc"]))));
        assert_eq!(body, b"aaaabbbbcccc...");
        assert_eq!(trailers.map(|trailers| trailers.len()), Some(2));
    }

    #[test]
    fn a_collected_body_passes_through_filters_that_come_later() {
        let chain = BodyChain::default();
        chain.replace(b"ab".to_vec(), None);
        chain.push(Box::new(Doubling));
        let (body, trailers) = read(&chain.source(&Parts(RefCell::default())));
        assert_eq!(body, b"aabb.");
        assert!(trailers.is_some());
        assert_eq!(chain.apply(b"x".to_vec()), b"xx.");
    }

    #[test]
    fn the_beginning_of_a_body_is_given_back_before_the_rest() {
        let chain = BodyChain::default();
        chain.push(Box::new(Doubling));
        // What was read had passed the filter already.
        chain.put_back(b"aa".to_vec());
        chain.push(Box::new(Doubling));
        let (body, trailers) = read(&chain.source(&Parts(RefCell::new(vec![b"b"]))));
        assert_eq!(body, b"aaaabbbb...");
        assert!(trailers.is_some());
    }

    /// Gives back each second piece, in upper case, and takes a while for each.
    #[derive(Default)]
    struct Halving {
        waited: bool,
        count: usize,
        trailers: Option<Headers>,
    }

    impl BodyStage for Halving {
        fn poll_piece(
            &mut self,
            cx: &mut Context<'_>,
            input: &dyn BodyInput,
        ) -> Poll<Result<Option<Vec<u8>>, StreamError>> {
            self.waited = !self.waited;
            if self.waited {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            while let Some(piece) = ready!(input.poll_piece(cx))? {
                self.count += 1;
                if self.count.is_multiple_of(2) {
                    return Poll::Ready(Ok(Some(piece.to_ascii_uppercase())));
                }
            }
            self.trailers = input.take_trailers();
            Poll::Ready(Ok(None))
        }

        fn take_trailers(&mut self) -> Option<Headers> {
            self.trailers.take()
        }
    }

    #[test]
    fn a_stage_stands_between_what_was_there_and_what_comes_later() {
        let chain = BodyChain::default();
        chain.push(Box::new(Doubling));
        chain.stage(Box::new(Halving::default()));
        assert!(chain.changes_bytes() && !chain.is_plain());
        chain.push(Box::new(Doubling));
        let parts = Parts(RefCell::new(vec![b"a", b"b", b"c", b"d"]));
        let source = chain.source(&parts);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (mut all, mut waits) = (Vec::new(), 0);
        loop {
            match source.poll_data(&mut cx) {
                Poll::Ready(Ok(true)) => {
                    let piece = source.with_data(|chunk| chunk.bytes().to_vec());
                    source.consume(piece.len());
                    all.extend(piece);
                }
                Poll::Ready(Ok(false)) => break,
                Poll::Ready(Err(error)) => panic!("{error}"),
                Poll::Pending => waits += 1,
            }
        }
        // The first filter says goodbye with a fifth piece, which is left out.
        assert_eq!((all.as_slice(), waits), (&b"BBBBDDDD."[..], 3));
        assert_eq!(BodySource::take_trailers(&source).map(|trailers| trailers.len()), Some(2));
    }

    /// Sums up what it sees, and signs for it.
    #[derive(Default)]
    struct Summing(std::rc::Rc<Cell<usize>>);

    impl BodyObserver for Summing {
        fn data(&mut self, bytes: &[u8]) {
            self.0.set(self.0.get() + bytes.len());
        }

        fn end(&mut self, trailers: &mut Option<Headers>) {
            trailers.get_or_insert_default().append(b"x-seen", self.0.get().to_string().as_bytes());
        }
    }

    #[test]
    fn an_observer_sees_each_byte_once_and_changes_none() {
        let chain = BodyChain::default();
        let sum = std::rc::Rc::<Cell<usize>>::default();
        chain.observe(Box::new(Summing(sum.clone())));
        assert!(!chain.changes_bytes());
        let (body, trailers) = read(&chain.source(&Parts(RefCell::new(vec![b"abc", b"de"]))));
        assert_eq!((body.as_slice(), sum.get()), (&b"abcde"[..], 5));
        assert_eq!(trailers.unwrap().get_by_name("x-seen"), Some(&b"5"[..]));
        // Behind a filter it sees what the filter makes.
        let chain = BodyChain::default();
        chain.push(Box::new(Doubling));
        chain.observe(Box::new(Summing::default()));
        let (body, trailers) = read(&chain.source(&Parts(RefCell::new(vec![b"ab"]))));
        assert_eq!(body, b"aabb.");
        assert_eq!(trailers.unwrap().get_by_name("x-seen"), Some(&b"5"[..]));
    }

    /// Lets two bytes through at a time, every other time that it is asked.
    #[derive(Default)]
    struct Halting(bool);

    impl BodyPace for Halting {
        fn poll_allowance(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize> {
            self.0 = !self.0;
            cx.waker().wake_by_ref();
            if self.0 { Poll::Pending } else { Poll::Ready(wanted.min(2)) }
        }

        fn passed(&mut self, _: usize) {}
    }

    #[test]
    fn a_pace_holds_bytes_back() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for changing in [false, true] {
            let chain = BodyChain::default();
            if changing {
                chain.push(Box::new(Doubling));
            }
            chain.pace(Box::new(Halting::default()));
            let parts = Parts(RefCell::new(vec![b"abc"]));
            let source = chain.source(&parts);
            let mut chunks = Vec::new();
            loop {
                match source.poll_data(&mut cx) {
                    Poll::Ready(Ok(true)) => {
                        let chunk = source.with_data(|chunk| chunk.bytes().to_vec());
                        source.consume(chunk.len());
                        chunks.push(String::from_utf8(chunk).unwrap());
                    }
                    Poll::Ready(_) => break,
                    Poll::Pending => {}
                }
            }
            let expected: &[&str] = if changing { &["aa", "bb", "cc", "."] } else { &["ab", "c"] };
            assert_eq!(chunks, expected);
        }
    }

    #[test]
    fn a_step_that_comes_with_a_collected_body_is_caught_up_with() {
        let chain = BodyChain::default();
        chain.push(Box::new(Doubling));
        let passed = chain.steps();
        chain.push(Box::new(Doubling));
        chain.replace(b"aa".to_vec(), None);
        chain.catch_up(passed);
        assert_eq!(chain.at_hand(), 5);
        let (body, trailers) = read(&chain.source(&Parts(RefCell::default())));
        assert_eq!(body, b"aaaa.");
        assert!(trailers.is_some());
    }

    #[test]
    fn what_was_collected_past_a_pace_is_not_held_back_again() {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let chain = BodyChain::default();
        chain.pace(Box::new(Halting::default()));
        chain.replace(b"abcdef".to_vec(), None);
        let parts = Parts(RefCell::default());
        let source = chain.source(&parts);
        assert!(matches!(source.poll_data(&mut cx), Poll::Ready(Ok(true))));
        assert_eq!(source.with_data(|chunk| chunk.bytes().len()), 6);
        // One that comes later has not let it pass yet.
        chain.pace(Box::new(Halting::default()));
        assert!(source.poll_data(&mut cx).is_pending());
    }
}
