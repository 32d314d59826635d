//! The one world between the server, the control port and the test, with its two bells.
//!
//! Whoever changes the world rings; nobody holds the lock across an await.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::verdict::{Ack, Nack, Verdict, WaitError};
use crate::world::World;

/// A [`World`] that tasks share. Locked for short, synchronous steps only.
#[derive(Debug)]
pub(crate) struct Shared {
    world: Mutex<World>,
    /// Rung when streams may have something to send.
    to_streams: watch::Sender<()>,
    /// Rung when a client has said something, or has come or gone.
    to_waiters: watch::Sender<()>,
}

impl Shared {
    pub(crate) fn new(world: World) -> Self {
        Self { world: Mutex::new(world), to_streams: watch::Sender::new(()), to_waiters: watch::Sender::new(()) }
    }

    /// Reads the world.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&self.lock())
    }

    /// Changes what streams have to send.
    pub(crate) fn change<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        let result = act(&mut self.lock());
        self.to_streams.send_replace(());
        result
    }

    /// Takes in what happened on a stream.
    pub(crate) fn observe<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        let result = act(&mut self.lock());
        self.to_waiters.send_replace(());
        result
    }

    /// The same, when `act` says so: a step that did nothing wakes nobody.
    pub(crate) fn observe_if<T>(&self, act: impl FnOnce(&mut World) -> (T, bool)) -> T {
        let (result, ring) = act(&mut self.lock());
        if ring {
            self.to_waiters.send_replace(());
        }
        result
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.to_streams.subscribe()
    }

    /// Waits until `look` finds something; `None` when the time is over.
    pub(crate) async fn wait<T>(&self, within: Duration, look: impl Fn(&World) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + within;
        let mut observed = self.to_waiters.subscribe();
        let mut changed = self.to_streams.subscribe();
        loop {
            if let Some(found) = self.read(&look) {
                return Some(found);
            }
            tokio::select! {
                // The senders live as long as `self`, so a bell is the only way these two end.
                _ = observed.changed() => {}
                _ = changed.changed() => {}
                () = tokio::time::sleep_until(deadline.into()) => return self.read(&look),
            }
        }
    }

    pub(crate) async fn wait_ack(
        &self,
        type_url: &str,
        name: Option<&str>,
        within: Duration,
    ) -> Result<Ack, WaitError> {
        let decided = self
            .wait(within, |world| match world.acked(type_url, name) {
                Verdict::Waiting => None,
                decided => Some(decided),
            })
            .await;
        match decided {
            Some(Verdict::Acked(ack)) => Ok(ack),
            Some(Verdict::Nacked(nack)) => Err(WaitError::Nacked(nack)),
            Some(Verdict::Waiting) | None => Err(self.timeout(type_url, within)),
        }
    }

    pub(crate) async fn wait_nack(&self, type_url: &str, within: Duration) -> Result<Nack, WaitError> {
        let since = self.read(|world| world.store.of(type_url).version);
        let found = self.wait(within, |world| world.nacked(type_url, since)).await;
        found.ok_or_else(|| self.timeout(type_url, within))
    }

    fn timeout(&self, type_url: &str, after: Duration) -> WaitError {
        WaitError::Timeout { after, standing: self.read(|world| world.explain(type_url)) }
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        // A test that panicked while it held the lock must not hide its own message behind this one.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
