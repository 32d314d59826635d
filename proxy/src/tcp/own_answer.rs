//! Connections that are answered here, in place of an upstream.
//!
//! Owns the writing of the answer and the end of the connection. Never decides what is said.

use std::future::poll_fn;
use std::time::Duration;

use outrigger_config::network::OwnAnswer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::worker::connections::Registered;
use crate::worker::socket::Io;

/// A client that has its answer and goes on talking is not listened to for longer.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes that are read at a time.
const PIECE: usize = 16 * 1024;

/// Answers a connection until it ends, or until its filter chain's drain is over.
pub async fn answer(mut io: Io, registered: Registered, answer: &OwnAnswer) {
    let work = async {
        // A client that is gone hears nothing, and nobody else needs to know.
        let _ = match answer {
            OwnAnswer::Fixed(bytes) => say(&mut io, bytes).await,
            OwnAnswer::Echo => echo(&mut io).await,
        };
    };
    tokio::select! {
        () = work => {}
        () = poll_fn(|cx| registered.poll_expired(cx)) => {}
    }
}

async fn say(io: &mut Io, bytes: &[u8]) -> std::io::Result<()> {
    io.write_all(bytes).await?;
    io.shutdown().await?;
    // Closing with unread bytes would be an error to the client, who might lose the answer by it.
    let _ = tokio::time::timeout(LINGER, tokio::io::copy(io, &mut tokio::io::sink())).await;
    Ok(())
}

async fn echo(io: &mut Io) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match io.read(&mut piece).await? {
            0 => return io.shutdown().await,
            count => {
                io.write_all(&piece[..count]).await?;
                io.flush().await?;
            }
        }
    }
}
