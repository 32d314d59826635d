//! Byte streams from one task of a worker to another.
//!
//! Owns the bytes under way and who waits for them. An idle stream holds none. Never leaves its worker, so nothing here is
//! locked; never looks at the bytes.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, BytesMut};
use tokio::io::ReadBuf;

/// One end of a stream.
#[derive(Debug)]
pub struct InProcess {
    incoming: Rc<RefCell<Pipe>>,
    outgoing: Rc<RefCell<Pipe>>,
}

/// One direction.
#[derive(Debug)]
struct Pipe {
    bytes: BytesMut,
    /// Whoever writes waits while it holds this many bytes.
    limit: usize,
    state: State,
    /// Nobody will read any more.
    deaf: bool,
    /// The task that waits for bytes, or for the end.
    reader: Option<Waker>,
    /// The task that waits for room.
    writer: Option<Waker>,
}

/// ```text
/// Open --shutdown, or the writer is gone--> Ended
///   \--the writer breaks off--> Broken
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// More may come.
    Open,
    /// Nothing more comes.
    Ended,
    /// What came is not all that there was.
    Broken,
}

/// Both ends of a stream that holds `limit` bytes in each direction.
pub fn pair(limit: usize) -> (InProcess, InProcess) {
    let [there, back] = [Pipe::new(limit), Pipe::new(limit)].map(|pipe| Rc::new(RefCell::new(pipe)));
    let near = InProcess { incoming: Rc::clone(&back), outgoing: Rc::clone(&there) };
    (near, InProcess { incoming: there, outgoing: back })
}

impl Pipe {
    fn new(limit: usize) -> Self {
        Self {
            bytes: BytesMut::new(),
            limit: limit.max(LEAST_BYTES),
            state: State::Open,
            deaf: false,
            reader: None,
            writer: None,
        }
    }

    /// Ready with bytes or the end; with an error if the writer has broken off.
    fn poll_filled(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        match self.state {
            // A reset overtakes what was sent before it.
            State::Broken => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            _ if !self.bytes.is_empty() => Poll::Ready(Ok(())),
            State::Ended => Poll::Ready(Ok(())),
            State::Open => {
                wait(&mut self.reader, cx);
                Poll::Pending
            }
        }
    }

    /// Gives back who is to be told.
    fn end(&mut self, state: State) -> Option<Waker> {
        if self.state != State::Open {
            return None;
        }
        self.state = state;
        self.reader.take()
    }
}

fn wait(waker: &mut Option<Waker>, cx: &Context<'_>) {
    if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *waker = Some(cx.waker().clone());
    }
}

/// Never called while a pipe is borrowed: whoever is told may be gone with it, and look at the pipe at once.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl InProcess {
    /// Ready with bytes, the end or an error.
    pub fn poll_read_ready(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.incoming.borrow_mut().poll_filled(cx)
    }

    /// How much there is to read; 0 at the end.
    pub fn poll_peek(&self, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        let mut pipe = self.incoming.borrow_mut();
        pipe.poll_filled(cx).map_ok(|()| pipe.bytes.len())
    }

    /// Ready when the other side has broken off.
    pub fn poll_broken(&self, cx: &Context<'_>) -> Poll<()> {
        let mut pipe = self.incoming.borrow_mut();
        if pipe.state == State::Broken {
            return Poll::Ready(());
        }
        wait(&mut pipe.reader, cx);
        Poll::Pending
    }

    /// Reads what there is, as far as there is room.
    pub fn poll_read(&self, cx: &Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut pipe = self.incoming.borrow_mut();
        match pipe.poll_filled(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Pending => {
                // Whoever waits may wait long.
                pipe.bytes = BytesMut::new();
                return Poll::Pending;
            }
            failed => return failed,
        }
        let count = pipe.bytes.len().min(buffer.remaining());
        buffer.put_slice(&pipe.bytes[..count]);
        pipe.bytes.advance(count);
        let has_room = pipe.bytes.len() <= pipe.limit / 2;
        let writer = pipe.writer.take_if(|_| has_room);
        drop(pipe);
        wake(writer);
        Poll::Ready(Ok(()))
    }

    /// Takes as many bytes as there is room for.
    pub fn poll_write(&self, cx: &Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut pipe = self.outgoing.borrow_mut();
        if pipe.deaf || pipe.state != State::Open {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        let room = pipe.limit.saturating_sub(pipe.bytes.len());
        if room == 0 && wanted > 0 {
            wait(&mut pipe.writer, cx);
            return Poll::Pending;
        }
        let mut left = wanted.min(room);
        let taken = left;
        pipe.bytes.reserve(taken);
        for slice in slices {
            let count = left.min(slice.len());
            pipe.bytes.extend_from_slice(&slice[..count]);
            left -= count;
        }
        let reader = pipe.reader.take_if(|_| taken > 0);
        drop(pipe);
        wake(reader);
        Poll::Ready(Ok(taken))
    }

    /// Says that nothing more will be written.
    pub fn shutdown(&self) {
        let reader = self.outgoing.borrow_mut().end(State::Ended);
        wake(reader);
    }

    /// Makes the other side's reading fail: what it got is not all that there was.
    pub fn break_off(&self) {
        let reader = self.outgoing.borrow_mut().end(State::Broken);
        wake(reader);
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        let writer = {
            let mut incoming = self.incoming.borrow_mut();
            incoming.deaf = true;
            incoming.bytes = BytesMut::new();
            incoming.writer.take()
        };
        wake(writer);
        self.shutdown();
    }
}

/// So that messages of a few bytes never take several turns.
const LEAST_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn context() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    fn read(end: &InProcess, most: usize) -> Poll<io::Result<Vec<u8>>> {
        let mut bytes = vec![0; most];
        let mut buffer = ReadBuf::new(&mut bytes);
        end.poll_read(&context(), &mut buffer).map_ok(|()| buffer.filled().to_vec())
    }

    fn write(end: &InProcess, bytes: &[u8]) -> Poll<io::Result<usize>> {
        end.poll_write(&context(), &[io::IoSlice::new(bytes)])
    }

    fn told<T>(poll: Poll<io::Result<T>>) -> Result<T, Option<io::ErrorKind>> {
        match poll {
            Poll::Ready(Ok(value)) => Ok(value),
            Poll::Ready(Err(error)) => Err(Some(error.kind())),
            Poll::Pending => Err(None),
        }
    }

    #[test]
    fn each_direction_ends_for_itself() {
        let (near, far) = pair(0);
        assert_eq!(told(write(&near, b"hello")), Ok(5));
        near.shutdown();
        assert_eq!(told(write(&near, b"more")), Err(Some(io::ErrorKind::BrokenPipe)));
        assert_eq!(told(read(&far, 3)), Ok(b"hel".to_vec()));
        assert_eq!(told(read(&far, 3)), Ok(b"lo".to_vec()));
        assert_eq!(told(read(&far, 3)), Ok(Vec::new()));
        assert_eq!(told(read(&near, 3)), Err(None));
        assert_eq!(told(write(&far, b"bye")), Ok(3));
        assert_eq!(told(read(&near, 9)), Ok(b"bye".to_vec()));
    }

    #[test]
    fn what_was_written_is_read_after_the_writer_is_gone_and_nothing_more_can_be_told_to_it() {
        let (near, far) = pair(0);
        assert_eq!(told(write(&near, b"last")), Ok(4));
        drop(near);
        assert_eq!(told(write(&far, b"anybody")), Err(Some(io::ErrorKind::BrokenPipe)));
        assert_eq!(told(read(&far, 9)), Ok(b"last".to_vec()));
        assert_eq!(told(read(&far, 9)), Ok(Vec::new()));
        assert!(far.poll_broken(&context()).is_pending());
    }

    #[test]
    fn a_reset_is_no_end() {
        let (near, far) = pair(0);
        assert_eq!(told(write(&near, b"half")), Ok(4));
        assert!(far.poll_broken(&context()).is_pending());
        near.break_off();
        assert!(far.poll_broken(&context()).is_ready());
        assert_eq!(told(read(&far, 9)), Err(Some(io::ErrorKind::ConnectionReset)));
    }

    #[test]
    fn a_full_stream_takes_no_more_until_half_of_it_was_read() {
        let (near, far) = pair(LEAST_BYTES);
        assert_eq!(told(write(&near, &[7; 2 * LEAST_BYTES])), Ok(LEAST_BYTES));
        assert_eq!(told(write(&near, b"x")), Err(None));
        let waits = || near.outgoing.borrow().writer.is_some();
        assert_eq!(told(read(&far, 10)).map(|bytes| bytes.len()), Ok(10));
        assert!(waits());
        assert_eq!(told(read(&far, LEAST_BYTES / 2)).map(|bytes| bytes.len()), Ok(LEAST_BYTES / 2));
        assert!(!waits());
    }

    #[test]
    fn an_idle_stream_holds_no_memory() {
        let (near, far) = pair(1 << 20);
        assert_eq!(told(write(&near, &[1; 100_000])), Ok(100_000));
        assert_eq!(told(read(&far, 200_000)).map(|bytes| bytes.len()), Ok(100_000));
        assert_eq!(told(read(&far, 1)), Err(None));
        assert_eq!(near.outgoing.borrow().bytes.capacity(), 0);
    }

    proptest! {
        #[test]
        fn all_bytes_arrive_in_order(steps in prop::collection::vec((0usize..3000, 0usize..3000), 0..40)) {
            let (near, far) = pair(2048);
            let (mut sent, mut got) = (0u64, 0u64);
            for (to_write, to_read) in steps {
                let bytes: Vec<u8> = (0..to_write as u64).map(|index| ((sent + index) % 251) as u8).collect();
                sent += told(write(&near, &bytes)).unwrap_or(0) as u64;
                for byte in told(read(&far, to_read)).unwrap_or_default() {
                    prop_assert_eq!(u64::from(byte), got % 251);
                    got += 1;
                }
                prop_assert!(sent - got <= 2048);
            }
        }
    }
}
