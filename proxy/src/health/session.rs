//! The checks of one endpoint, one after the other.
//!
//! Owns the pace. Never judges a result: that is for [`super::Checks`], which knows what came before.

use std::cell::RefCell;
use std::rc::Weak;
use std::time::Duration;

use tokio::task::AbortHandle;

use super::checks::SessionKey;
use super::probe::Prober;
use crate::graph::GraphManager;

/// Starts checking an endpoint after `wait`, until it is told to stop or nobody wants to know any more.
pub fn start(manager: Weak<RefCell<GraphManager>>, key: SessionKey, wait: Duration) -> AbortHandle {
    tokio::task::spawn_local(run(manager, key, wait)).abort_handle()
}

async fn run(manager: Weak<RefCell<GraphManager>>, key: SessionKey, mut wait: Duration) {
    let mut prober = Prober::default();
    loop {
        prober.rest(wait).await;
        let Some(target) = manager.upgrade().and_then(|manager| manager.borrow_mut().begin_check(&key)) else { return };
        let checked = prober.check(&target).await;
        drop(target);
        let Some(next) = manager.upgrade().and_then(|manager| manager.borrow_mut().end_check(&key, checked)) else {
            return;
        };
        wait = next;
    }
}
