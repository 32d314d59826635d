//! Where the tasks of HTTP connections run that hyper drives.
//!
//! Owns that they stay on the thread that made the connection. Never runs one itself.

use std::future::Future;

/// Runs what belongs to a connection on the thread that it was made on.
#[derive(Clone, Copy)]
pub struct OnThisThread;

impl<F> hyper::rt::Executor<F> for OnThisThread
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
