//! What the control thread asks of workers.
//!
//! Owns the messages. Never carries requests: those stay on their worker.

use std::sync::Arc;

use outrigger_config::route::Priority;
use tokio::sync::oneshot;

use super::live::LiveStream;
use crate::failures::Failed;

/// A request to one worker.
#[derive(Debug)]
pub enum Command {
    /// Accept connections for the listener `name` of the graph.
    StartListener {
        /// Key in [`crate::graph::Graph::listeners`].
        name: Arc<str>,
        /// Identifies these sockets in [`Command::StopListener`].
        id: u64,
        /// This worker's own listening sockets, non-blocking.
        sockets: Vec<ListenSocket>,
    },
    /// Close the sockets `id`; connections live on.
    StopListener {
        /// As given at the start.
        id: u64,
    },
    /// Some [`crate::graph::Draining`] changed: look after your connections.
    CheckDrains,
    /// The graph has changed: let go of the one before, even if there is nothing else to do.
    LookAtGraph,
    /// Accepting was paused, and is not any more.
    ResumeAccepting,
    /// The state of some timer in [`crate::overload::Timers`] changed: look after your tasks.
    RescaleTimers,
    /// A request elsewhere waits for a connection that the limit of `cluster` does not allow: close one that is idle.
    MakeRoom {
        /// Key in [`crate::graph::Graph::clusters`].
        cluster: Arc<str>,
        /// Which limit.
        priority: Priority,
    },
    /// Give free memory back to the system.
    ShrinkHeap,
    /// Reset requests that hold much memory.
    ResetHeavyRequests,
    /// Tell what you serve at this moment.
    TellRequests(oneshot::Sender<Vec<LiveStream>>),
    /// Tell what failed last, and how many have failed in all.
    TellFailures(oneshot::Sender<(Vec<Failed>, u64)>),
    /// End a stream.
    KillRequest {
        /// As in [`LiveStream::id`].
        number: u64,
        /// Is told whether there is such a stream.
        found: oneshot::Sender<bool>,
    },
    /// End the thread at once.
    Exit,
}

/// A listening socket.
#[derive(Debug)]
pub enum ListenSocket {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// Unix stream.
    Unix(std::os::unix::net::UnixListener),
}

/// Sends commands to all workers.
#[derive(Clone, Debug)]
pub struct Workers {
    senders: Vec<tokio::sync::mpsc::UnboundedSender<Command>>,
}

impl Workers {
    /// To these workers, in order.
    pub fn new(senders: Vec<tokio::sync::mpsc::UnboundedSender<Command>>) -> Self {
        Self { senders }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.senders.len()
    }

    /// Sends to worker `index`; a worker that has ended does not mind.
    pub fn send(&self, index: usize, command: Command) {
        if let Some(sender) = self.senders.get(index) {
            let _ = sender.send(command);
        }
    }

    /// Sends to all, one command each.
    pub fn send_all(&self, mut command: impl FnMut() -> Command) {
        for sender in &self.senders {
            let _ = sender.send(command());
        }
    }
}
