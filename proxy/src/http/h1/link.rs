//! One HTTP/1 connection's byte stream with its input and output buffers.
//!
//! Owns when buffers are borrowed and given back, and that small pieces leave in one write. Never interprets the bytes.

use std::cell::{Cell, Ref, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::worker::Worker;
use crate::worker::buffer::{Buffer, LARGE_BYTES};
use crate::worker::socket::Io;

/// Output is written when this much is waiting, even if more is about to come.
const OUTPUT_BYTES: usize = 16 * 1024;

/// A byte stream with buffers.
pub struct Link {
    worker: Rc<Worker>,
    io: RefCell<Io>,
    input: RefCell<Option<Buffer>>,
    output: RefCell<Vec<u8>>,
    written: Cell<usize>,
    read_total: Cell<u64>,
    written_total: Cell<u64>,
    ended: Cell<bool>,
}

impl Link {
    /// Around an established connection.
    pub fn new(worker: Rc<Worker>, io: Io) -> Self {
        Self {
            worker,
            io: RefCell::new(io),
            input: RefCell::new(None),
            output: RefCell::new(Vec::new()),
            written: Cell::new(0),
            read_total: Cell::new(0),
            written_total: Cell::new(0),
            ended: Cell::new(false),
        }
    }

    /// Whose buffers these are.
    pub fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    /// Bytes read and not consumed.
    pub fn input(&self) -> Ref<'_, [u8]> {
        Ref::map(self.input.borrow(), |input| input.as_ref().map_or(&[][..], Buffer::filled))
    }

    /// Bytes that were read and not consumed, or wait to be written.
    pub fn held(&self) -> usize {
        self.input().len() + self.output.borrow().len()
    }

    /// Bytes read and written so far, as they crossed this stream.
    pub fn totals(&self) -> (u64, u64) {
        (self.read_total.get(), self.written_total.get())
    }

    /// The peer will send no more.
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// The stream below, for facts about it.
    pub fn io(&self) -> Ref<'_, Io> {
        self.io.borrow()
    }

    /// `count` bytes of input are done with; an empty buffer goes back to the pool.
    pub fn consume(&self, count: usize) {
        let mut input = self.input.borrow_mut();
        if let Some(buffer) = input.as_mut() {
            buffer.consume(count);
            if buffer.is_empty()
                && let Some(buffer) = input.take()
            {
                self.worker.buffers.give(buffer);
            }
        }
    }

    /// The input buffer is full and can take no more.
    pub fn is_full(&self) -> bool {
        self.input.borrow().as_ref().is_some_and(Buffer::is_full)
    }

    /// Makes room for input of `size` bytes in all.
    pub fn grow(&self, size: usize) {
        if let Some(buffer) = self.input.borrow_mut().as_mut() {
            buffer.grow(size);
        }
    }

    /// Reads once. `Ready(Ok(0))` is the end. `bulk` borrows a large buffer if there is none yet.
    pub fn poll_fill(&self, cx: &mut Context<'_>, bulk: bool) -> Poll<io::Result<usize>> {
        if self.ended.get() {
            return Poll::Ready(Ok(0));
        }
        let mut input = self.input.borrow_mut();
        let mut buffer = match input.take() {
            Some(buffer) => buffer,
            None if bulk => self.worker.buffers.large(),
            None => self.worker.buffers.small(),
        };
        let mut spare = ReadBuf::new(buffer.spare());
        if spare.capacity() == 0 {
            *input = Some(buffer);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::OutOfMemory, "input buffer is full")));
        }
        let polled = Pin::new(&mut *self.io.borrow_mut()).poll_read(cx, &mut spare);
        let count = spare.filled().len();
        buffer.fill(count);
        if buffer.is_empty() {
            self.worker.buffers.give(buffer);
        } else {
            *input = Some(buffer);
        }
        match polled {
            Poll::Ready(Ok(())) => {
                self.read_total.set(self.read_total.get() + count as u64);
                if count == 0 {
                    self.ended.set(true);
                }
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => {
                self.ended.set(true);
                Poll::Ready(Err(error))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Ready when the peer has gone away, or sent something it should not have: for connections that wait in a pool or
    /// for a response. Bytes that arrive are kept, up to one buffer.
    pub fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.ended.get() {
                return Poll::Ready(());
            }
            if self.is_full() {
                return Poll::Pending;
            }
            match ready!(self.poll_fill(cx, false)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
    }

    /// Appends to the output without writing.
    pub fn with_output<R>(&self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let mut output = self.output.borrow_mut();
        if output.capacity() == 0 {
            *output = self.worker.buffers.text();
        }
        write(&mut output)
    }

    /// Takes bytes of a body: small ones join the output, others are written from where they are.
    pub fn poll_send(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let waiting = self.output.borrow().len();
        if waiting > 0 && waiting + data.len() <= OUTPUT_BYTES {
            self.with_output(|output| output.extend_from_slice(data));
            return Poll::Ready(Ok(data.len()));
        }
        if waiting == 0 && data.len() < OUTPUT_BYTES / 8 {
            // Tiny pieces are worth a copy: what follows them may leave in the same write.
            self.with_output(|output| output.extend_from_slice(data));
            return Poll::Ready(Ok(data.len()));
        }
        ready!(self.poll_flush(cx))?;
        let count = ready!(Pin::new(&mut *self.io.borrow_mut()).poll_write(cx, data))?;
        self.written_total.set(self.written_total.get() + count as u64);
        Poll::Ready(Ok(count))
    }

    /// Writes all output.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut output = self.output.borrow_mut();
        let mut io = self.io.borrow_mut();
        while self.written.get() < output.len() {
            let count = ready!(Pin::new(&mut *io).poll_write(cx, &output[self.written.get()..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written.set(self.written.get() + count);
            self.written_total.set(self.written_total.get() + count as u64);
        }
        if output.capacity() > 0 {
            self.written.set(0);
            self.worker.buffers.give_text(std::mem::take(&mut output));
        }
        // TLS keeps records back until it is flushed.
        Pin::new(&mut *io).poll_flush(cx)
    }

    /// Writes all output.
    pub async fn flush(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Tells the peer that nothing more will come.
    pub async fn shutdown(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_shutdown(cx)).await
    }

    /// Tells the peer that nothing more will come, after all output was written.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut *self.io.borrow_mut()).poll_shutdown(cx)
    }

    /// Ends TLS in the proper way, as far as that is possible at once: for a connection that is closed while nothing is
    /// under way on it. A plain one needs no words.
    pub fn say_goodbye(&self) {
        let mut io = self.io.borrow_mut();
        if !matches!(*io, Io::Plain(_)) {
            let _ = Pin::new(&mut *io).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// The stream itself, with input that was not consumed, for a protocol that takes over.
    pub fn into_parts(self) -> (Io, Vec<u8>) {
        let rest = self.input.borrow().as_ref().map(|buffer| buffer.filled().to_vec()).unwrap_or_default();
        let worker = Rc::clone(&self.worker);
        let Link { io, input, output, .. } = self;
        if let Some(buffer) = input.into_inner() {
            worker.buffers.give(buffer);
        }
        worker.buffers.give_text(output.into_inner());
        (io.into_inner(), rest)
    }

    /// Exchanges a small input buffer that is full for a large one; false if there is none such.
    pub fn prefer_large(&self) -> bool {
        let mut input = self.input.borrow_mut();
        let Some(buffer) = input.as_mut().filter(|buffer| buffer.is_full() && buffer.capacity() < LARGE_BYTES) else {
            return false;
        };
        let mut large = self.worker.buffers.large();
        let filled = buffer.filled();
        large.spare()[..filled.len()].copy_from_slice(filled);
        large.fill(filled.len());
        self.worker.buffers.give(std::mem::replace(buffer, large));
        true
    }
}
