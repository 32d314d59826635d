//! Tunnels through HTTP proxies on the way to endpoints (CONNECT; RFC 9110, 9.3.6).
//!
//! Owns how a proxy is asked for one, and what counts as its answer. Never decides which connections go through a proxy
//! (see `outrigger_config::cluster::HttpProxy`), and never reads what comes after the answer: that is the endpoint's.

use std::io;
use std::net::Ipv6Addr;

use outrigger_config::address::Address;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// No proxy could be asked.
    #[error("{0} is no address that an HTTP proxy could connect to")]
    Endpoint(Address),
    /// The proxy does not want to.
    #[error("the HTTP proxy {proxy} answered CONNECT {authority} with {answer}")]
    Refused {
        /// Who.
        proxy: Address,
        /// What it was asked for.
        authority: String,
        /// Status and reason, or what else it said.
        answer: String,
    },
    /// The connection to the proxy broke.
    #[error("the HTTP proxy {proxy} did not answer CONNECT {authority}: {source}")]
    Silent {
        /// Who.
        proxy: Address,
        /// What it was asked for.
        authority: String,
        /// How it broke.
        source: io::Error,
    },
}

/// Asks the proxy at the other end of `io` for a tunnel to an endpoint, by its name if it has one.
///
/// # Errors
/// When the answer is anything but 200.
pub async fn open<S>(io: &mut S, proxy: &Address, endpoint: &Address, hostname: &str) -> Result<(), TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let authority = authority(endpoint, hostname).ok_or_else(|| TunnelError::Endpoint(endpoint.clone()))?;
    let question = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    let answered = async {
        io.write_all(question.as_bytes()).await?;
        io.flush().await?;
        head(io).await
    };
    match answered.await {
        Ok(head) => match granted(&head) {
            Ok(()) => Ok(()),
            Err(answer) => Err(TunnelError::Refused { proxy: proxy.clone(), authority, answer }),
        },
        Err(source) => Err(TunnelError::Silent { proxy: proxy.clone(), authority, source }),
    }
}

/// What an endpoint is called in the question.
fn authority(endpoint: &Address, hostname: &str) -> Option<String> {
    let Address::Ip(socket) = endpoint else { return None };
    if hostname.is_empty() {
        return Some(socket.to_string());
    }
    // Whatever a control plane calls an endpoint, it must stay one word.
    if !hostname.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let port = socket.port();
    Some(match hostname.parse::<Ipv6Addr>() {
        Ok(literal) => format!("[{literal}]:{port}"),
        Err(_) => format!("{hostname}:{port}"),
    })
}

/// Reads the head of an answer, and not one byte more: endpoints may speak first.
async fn head<S: AsyncRead + Unpin>(io: &mut S) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(128);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == MOST_BYTES {
            let reason = format!("no end of the answer's head within {MOST_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        head.push(io.read_u8().await?);
    }
    Ok(head)
}

/// Whether an answer grants the tunnel.
///
/// # Errors
/// With what was answered instead, for people.
pub fn granted(head: &[u8]) -> Result<(), String> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    match line.split_once(' ') {
        Some((version, status)) if version.starts_with("HTTP/1.") => {
            let is_granted = status == "200" || status.starts_with("200 ");
            if is_granted { Ok(()) } else { Err(status.to_owned()) }
        }
        _ => Err(format!("{line:?}")),
    }
}

/// More than proxies say.
const MOST_BYTES: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Address {
        Address::Ip(text.parse().unwrap())
    }

    async fn ask(answer: &[u8]) -> (Result<(), String>, String, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(16 << 10);
        far.write_all(answer).await.unwrap();
        let (proxy, endpoint) = (ip("10.0.0.1:3128"), ip("10.0.0.2:443"));
        let asked = open(&mut near, &proxy, &endpoint, "a.example");
        let result = tokio::time::timeout(std::time::Duration::from_millis(100), asked).await;
        let result = result.map_or(Err("waits".to_owned()), |result| result.map_err(|error| error.to_string()));
        let mut said = vec![0; 1024];
        let count = far.read(&mut said).await.unwrap();
        drop(far);
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        (result, String::from_utf8_lossy(&said[..count]).into_owned(), rest)
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_the_endpoints() {
        let (result, said, rest) = ask(b"HTTP/1.1 200 Connection established\r\nvia: x\r\n\r\n220 hello").await;
        assert_eq!(result, Ok(()));
        assert_eq!(said, "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n");
        assert_eq!(rest, b"220 hello");
        assert_eq!(ask(b"HTTP/1.0 200\r\n\r\n").await.0, Ok(()));
    }

    #[tokio::test]
    async fn errors_say_what_the_proxy_said() {
        let at = "the HTTP proxy 10.0.0.1:3128 answered CONNECT a.example:443 with";
        for (answer, reason) in [
            ("HTTP/1.1 403 Forbidden\r\n\r\n", format!("{at} 403 Forbidden")),
            ("HTTP/1.1 2000\r\n\r\n", format!("{at} 2000")),
            ("HTTP/1.1 201 Created\r\n\r\n", format!("{at} 201 Created")),
            ("SSH-2.0-x 200 y\r\n\r\n", format!("{at} \"SSH-2.0-x 200 y\"")),
            ("HTTP/1.1 200 OK\r\n", "waits".to_owned()),
        ] {
            assert_eq!(ask(answer.as_bytes()).await.0, Err(reason));
        }
        let endless = [b'a'; MOST_BYTES + 1];
        let reason = ask(&endless).await.0.unwrap_err();
        assert!(reason.ends_with("no end of the answer's head within 8192 bytes"), "{reason}");
    }

    #[test]
    fn endpoints_are_called_by_their_names() {
        let called = |address: &str, name: &str| authority(&ip(address), name);
        assert_eq!(called("10.0.0.2:443", ""), Some("10.0.0.2:443".to_owned()));
        assert_eq!(called("[2001:db8::1]:443", ""), Some("[2001:db8::1]:443".to_owned()));
        assert_eq!(called("10.0.0.2:443", "2001:db8::2"), Some("[2001:db8::2]:443".to_owned()));
        assert_eq!(called("10.0.0.2:443", "a\r\nb: c"), None);
        assert_eq!(authority(&Address::Pipe { path: "/run/x".into(), mode: 0 }, "a"), None);
    }
}
