//! A DNS server that answers what a test says, over UDP.
//!
//! Owns the few parts of RFC 1035 that questions for addresses need. Never forwards a question.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

/// What a question is answered with.
#[derive(Clone, Debug)]
pub enum Say {
    /// These addresses, as far as they are of the family that was asked for, for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// There is no such name.
    NoName,
    /// The server has failed.
    Failure,
    /// Nothing at all.
    Silence,
}

/// The server; it ends with the test.
pub struct DnsServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: AbortHandle,
}

#[derive(Default)]
struct State {
    names: HashMap<String, Say>,
    questions: Vec<(String, u16)>,
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl DnsServer {
    /// Starts on a free port of 127.0.0.1; it knows no names.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = socket.local_addr().expect("a bound socket has an address");
        let state: Arc<Mutex<State>> = Arc::default();
        let task = tokio::spawn(serve(socket, Arc::clone(&state))).abort_handle();
        Self { address, state, task }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Says what a name is from now on.
    pub fn set(&self, name: &str, say: Say) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).names.insert(name.to_owned(), say);
    }

    /// These addresses, for ten minutes.
    pub fn addresses(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        self.set(name, Say::Addresses(addresses, 600));
    }

    /// How often a name was asked for, by whatever family.
    pub fn questions(&self, name: &str) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.questions.iter().filter(|(asked, _)| asked == name).count()
    }
}

async fn serve(socket: UdpSocket, state: Arc<Mutex<State>>) {
    let mut buffer = [0; 1500];
    loop {
        let Ok((count, peer)) = socket.recv_from(&mut buffer).await else { return };
        let Some(answer) = answer(&buffer[..count], &state) else { continue };
        let _ = socket.send_to(&answer, peer).await;
    }
}

fn answer(query: &[u8], state: &Mutex<State>) -> Option<Vec<u8>> {
    let (name, end) = name(query, 12)?;
    let kind = u16::from_be_bytes([*query.get(end)?, *query.get(end + 1)?]);
    let question = query.get(12..end + 4)?;
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.questions.push((name.clone(), kind));
    let say = state.names.get(&name).cloned().unwrap_or(Say::NoName);
    let (code, records, ttl) = match say {
        Say::Silence => return None,
        Say::NoName => (3, Vec::new(), 0),
        Say::Failure => (2, Vec::new(), 0),
        Say::Addresses(addresses, ttl) => {
            let wanted = |address: &IpAddr| if address.is_ipv4() { kind == A } else { kind == AAAA };
            (0, addresses.into_iter().filter(wanted).collect::<Vec<_>>(), ttl)
        }
    };
    let mut out = query.get(..2)?.to_vec();
    out.extend_from_slice(&[0x81, 0x80 | code, 0, 1]);
    out.extend_from_slice(&(records.len() as u16).to_be_bytes());
    out.extend_from_slice(&[0, 0, 0, 0]);
    out.extend_from_slice(question);
    for address in records {
        // The name of the question, by a pointer to it.
        out.extend_from_slice(&[0xc0, 12]);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1]);
        out.extend_from_slice(&ttl.to_be_bytes());
        let octets = match address {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        out.extend_from_slice(&(octets.len() as u16).to_be_bytes());
        out.extend_from_slice(&octets);
    }
    Some(out)
}

/// A name without compression, and where it ends.
fn name(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join(".").to_ascii_lowercase(), at));
        }
        labels.push(String::from_utf8_lossy(bytes.get(at..at + length)?).into_owned());
        at += length;
    }
}

const A: u16 = 1;
const AAAA: u16 = 28;
