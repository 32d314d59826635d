//! Entries between workers and a service.
//!
//! Owns the buffer with its bounds, when a batch is due, and how a service ends. Never sends or counts anything.

use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

/// Entries that wait for one service.
#[derive(Debug)]
pub(super) struct Batches<E> {
    /// An entry waits no longer than this.
    interval: Duration,
    /// A batch of so many bytes is due at once.
    enough: usize,
    /// The lock is held for a push, or to take all; never for I/O.
    waiting: Mutex<Waiting<E>>,
    wake: Notify,
    closed: AtomicBool,
    finished: watch::Sender<bool>,
}

#[derive(Debug)]
struct Waiting<E> {
    entries: Vec<E>,
    bytes: usize,
    /// Bytes of a batch that was taken out and may have to be sent again.
    held: usize,
    /// When the oldest came; set while there is one.
    since: Option<Instant>,
}

impl<E> Batches<E> {
    /// Without entries.
    pub fn new(interval: Duration, enough: u32) -> Self {
        let waiting = Waiting { entries: Vec::new(), bytes: 0, held: 0, since: None };
        Self {
            interval,
            enough: enough as usize,
            waiting: Mutex::new(waiting),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            finished: watch::Sender::new(false),
        }
    }

    /// Adds an entry of so many bytes; false if it was dropped, since too much is waiting.
    pub fn append(&self, entry: E, size: usize) -> bool {
        let enough = self.enough.max(1);
        let (before, after) = {
            let mut waiting = self.waiting();
            let before = waiting.bytes;
            if before + waiting.held + size > MAX_WAITING_BYTES.max(enough) {
                return false;
            }
            waiting.bytes += size;
            waiting.entries.push(entry);
            waiting.since.get_or_insert_with(Instant::now);
            (before, waiting.bytes)
        };
        if before == 0 || (before < enough && after >= enough) {
            self.wake.notify_one();
        }
        true
    }

    /// Takes all that waits.
    pub fn take(&self) -> Vec<E> {
        let mut waiting = self.waiting();
        (waiting.bytes, waiting.since) = (0, None);
        std::mem::take(&mut waiting.entries)
    }

    /// Takes all that waits, and counts it as waiting until [`Batches::settle`].
    pub fn hold(&self) -> Vec<E> {
        let mut waiting = self.waiting();
        waiting.held = waiting.bytes;
        (waiting.bytes, waiting.since) = (0, None);
        std::mem::take(&mut waiting.entries)
    }

    /// What was held is sent or given up.
    pub fn settle(&self) {
        self.waiting().held = 0;
    }

    /// Asks for the end, after all was sent.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether [`Batches::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Says that everything was sent or given up.
    pub fn finish(&self) {
        self.finished.send_replace(true);
    }

    /// Whether [`Batches::finish`] was called.
    pub fn is_finished(&self) -> bool {
        *self.finished.borrow()
    }

    /// Waits until [`Batches::is_finished`].
    pub async fn finished(&self) {
        // The sender is part of `self`, so it cannot go away.
        let _ = self.finished.subscribe().wait_for(|finished| *finished).await;
    }

    /// Waits for `pause`, or until closed: what is left then gets one more chance.
    pub async fn rest(&self, pause: Duration) {
        let end = Instant::now() + pause;
        while !self.is_closed() {
            tokio::select! {
                () = sleep_until(end) => return,
                () = self.wake.notified() => {}
            }
        }
    }

    /// False when closed with nothing left.
    pub async fn something_waits(&self) -> bool {
        loop {
            if !self.waiting().entries.is_empty() {
                return true;
            }
            if self.is_closed() {
                return false;
            }
            self.wake.notified().await;
        }
    }

    /// Waits until a batch is due; false when closed with nothing left.
    pub async fn due(&self) -> bool {
        match self.due_unless(std::future::pending::<Infallible>()).await {
            Ok(due) => due,
            Err(never) => match never {},
        }
    }

    /// As [`Batches::due`]. Fails when `broken` is over before.
    pub async fn due_unless<T>(&self, mut broken: impl Future<Output = T> + Unpin) -> Result<bool, T> {
        loop {
            let (bytes, since) = {
                let waiting = self.waiting();
                (waiting.bytes, waiting.since)
            };
            if self.is_closed() || bytes >= self.enough && bytes > 0 {
                return Ok(bytes > 0);
            }
            let timer = async {
                match since {
                    Some(since) => sleep_until(since + self.interval).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                result = &mut broken => return Err(result),
                () = self.wake.notified() => {}
                () = timer => return Ok(true),
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<E>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one service may have waiting, unless its own batches are larger.
const MAX_WAITING_BYTES: usize = 1024 * 1024;
/// Between a failure and the next try; doubled each time, up to `MAX_PAUSE`.
pub(super) const MIN_PAUSE: Duration = Duration::from_millis(500);
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_counts_as_waiting() {
        let batches = Batches::new(Duration::from_secs(1), 10);
        assert!(batches.append('a', MAX_WAITING_BYTES / 2) && batches.append('b', MAX_WAITING_BYTES / 2));
        assert!(!batches.append('c', 1));
        assert_eq!(batches.hold(), ['a', 'b']);
        assert!(!batches.append('d', 1));
        batches.settle();
        assert!(batches.append('e', 1));
        assert_eq!(batches.take(), ['e']);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_due_by_size_time_or_the_end() {
        let batches = Batches::new(Duration::from_secs(7), 10);
        let began = Instant::now();
        batches.append('a', 1);
        assert!(batches.due().await);
        assert_eq!(began.elapsed(), Duration::from_secs(7));
        batches.append('b', 9);
        assert!(batches.due().await);
        assert_eq!((began.elapsed(), batches.take().len()), (Duration::from_secs(7), 2));
        batches.close();
        assert!(!batches.due().await);
    }
}
