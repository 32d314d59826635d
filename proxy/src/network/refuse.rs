//! The end of a connection that a network filter refused.
//!
//! Owns when and how it is closed, and what is told of it. Never decides.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::Refusal;
use crate::graph::{Application, ChainNode};
use crate::stream::ConnectionInfo;
use crate::tcp;
use crate::worker::Worker;
use crate::worker::connections::Registered;
use crate::worker::socket::Io;

/// A refused client that says nothing is not kept longer.
const SILENCE_LIMIT: Duration = Duration::from_secs(1);

/// Closes a connection.
pub async fn refuse(
    worker: Rc<Worker>,
    chain: Arc<ChainNode>,
    mut io: Io,
    connection: Rc<ConnectionInfo>,
    registered: Registered,
    refusal: Refusal,
) {
    tracing::debug!(
        "connection {} from {} refused: {}",
        connection.id,
        connection.remote,
        refusal.details.as_deref().unwrap_or("limit")
    );
    let wait = async {
        if refusal.after_first_bytes {
            // Whether they came or not is all the same now.
            let _ = tokio::time::timeout(SILENCE_LIMIT, discard(&mut io)).await;
        }
        if let Some(delay) = refusal.delay {
            tokio::time::sleep(delay).await;
        }
    };
    tokio::select! {
        () = wait => {}
        () = poll_fn(|cx| registered.poll_expired(cx)) => {}
    }
    if refusal.after_first_bytes {
        // The client may be gone.
        let _ = io.shutdown().await;
    }
    drop(io);
    if let Application::Tcp(node) = &chain.application {
        tcp::record_refused(worker, Arc::clone(node), connection, registered, &refusal);
    }
}

/// Reads what there is: closing with unread bytes would be an error to the client.
async fn discard(io: &mut Io) {
    let mut bytes = [0; 4096];
    let mut left = DISCARD_BYTES;
    let mut any = false;
    poll_fn(|cx| {
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *io).poll_read(cx, &mut buffer) {
                Poll::Pending if any => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if buffer.filled().len() < left && !buffer.filled().is_empty() => {
                    left -= buffer.filled().len();
                    any = true;
                }
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
    })
    .await;
}

/// A client that sends more at once gets an error.
const DISCARD_BYTES: usize = 64 * 1024;
