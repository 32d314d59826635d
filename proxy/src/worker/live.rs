//! The requests and proxied connections that a worker serves at this moment.
//!
//! Owns the list, what is told of each, and how one of them is ended by hand. Who serves them knows nothing of who looks:
//! a look is a command to the worker. Never ends anything by itself.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use super::Worker;
use crate::http::manager::HttpConnection;
use crate::stream::{ConnectionInfo, Kill, Phase, StreamInfo};

/// So much of a request line is kept.
const LINE_BYTES: usize = 72;
/// An empty list keeps room for so many.
const KEPT: usize = 64;

/// What a worker serves.
#[derive(Default)]
pub struct LiveList(RefCell<Slots>);

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    begun: u64,
}

/// A place in the list. It is used again, and with it what memory it has.
struct Slot {
    /// Unique in the worker.
    number: u64,
    stream: Option<(Rc<StreamInfo>, Owner)>,
    waker: Option<Waker>,
    line: [u8; LINE_BYTES],
    line_length: u8,
}

/// Who carries a stream.
pub enum Owner {
    /// An HTTP connection, whose task serves the stream if that is HTTP/1.
    Http(Rc<HttpConnection>),
    /// A proxied TCP connection.
    Tcp(Rc<ConnectionInfo>),
}

impl Owner {
    fn connection(&self) -> &ConnectionInfo {
        match self {
            Owner::Http(connection) => &connection.info,
            Owner::Tcp(connection) => connection,
        }
    }
}

/// A stream's place in the list, given back when dropped.
pub struct Live {
    worker: Rc<Worker>,
    slot: u32,
}

/// What is told of a stream.
#[derive(Clone, Debug)]
pub struct LiveStream {
    /// Unique in the process: the worker, and a number.
    pub id: (usize, u64),
    /// Since it began.
    pub age: Duration,
    /// It is a request; a proxied connection if not.
    pub is_request: bool,
    /// Method and path, cut off; empty for a proxied connection.
    pub line: String,
    /// What it is doing.
    pub phase: Phase,
    /// The listener that accepted its connection.
    pub listener: Arc<str>,
    /// The filter chain; may be empty.
    pub filter_chain: Arc<str>,
    /// The client.
    pub remote: String,
    /// Of its connection.
    pub connection_id: u64,
    /// Once it has one, if that has a name.
    pub route: Option<Arc<str>>,
    /// Once it has one.
    pub cluster: Option<Arc<str>>,
    /// Once it has one.
    pub endpoint: Option<String>,
    /// From and to the client.
    pub bytes: (u64, u64),
    /// So far.
    pub tries: u32,
    /// Of the response, once it has begun; 0 before.
    pub status: u16,
}

impl LiveList {
    /// Adds a stream; `line` is cut off.
    pub fn add<'l>(
        worker: &Rc<Worker>,
        info: &Rc<StreamInfo>,
        owner: Owner,
        line: impl IntoIterator<Item = &'l [u8]>,
    ) -> Live {
        let mut list = worker.live.0.borrow_mut();
        let list = &mut *list;
        list.begun += 1;
        let slot = list.free.pop().unwrap_or_else(|| {
            let empty = Slot { number: 0, stream: None, waker: None, line: [0; LINE_BYTES], line_length: 0 };
            list.slots.push(empty);
            list.slots.len() as u32 - 1
        });
        let place = &mut list.slots[slot as usize];
        place.number = list.begun;
        place.stream = Some((Rc::clone(info), owner));
        let mut length = 0;
        for part in line {
            let part = &part[..part.len().min(LINE_BYTES - length)];
            place.line[length..length + part.len()].copy_from_slice(part);
            length += part.len();
        }
        place.line_length = length as u8;
        Live { worker: Rc::clone(worker), slot }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        let list = self.0.borrow();
        list.slots.len() - list.free.len()
    }

    /// All of them now, the oldest first.
    pub fn look(&self, worker: usize, now: Instant) -> Vec<LiveStream> {
        let list = self.0.borrow();
        let mut streams: Vec<LiveStream> = list.slots.iter().filter_map(|slot| slot.shown(worker, now)).collect();
        streams.sort_by_key(|stream| stream.id);
        streams
    }

    /// Wakes all requests, so that they look at what they hold.
    pub fn wake_requests(&self) {
        for slot in &mut self.0.borrow_mut().slots {
            let Some((_, Owner::Http(connection))) = &slot.stream else { continue };
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
            connection.registered.wake();
        }
    }

    /// Asks a stream to end. Whether there is one of this number.
    pub fn kill(&self, number: u64) -> bool {
        let mut list = self.0.borrow_mut();
        let Some(slot) = list.slots.iter_mut().find(|slot| slot.number == number && slot.stream.is_some()) else {
            return false;
        };
        let Some((info, owner)) = &slot.stream else { return false };
        info.kill.set(Kill::Asked);
        if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
        if let Owner::Http(connection) = owner {
            connection.registered.wake();
        }
        true
    }
}

impl Slot {
    fn shown(&self, worker: usize, now: Instant) -> Option<LiveStream> {
        let (info, owner) = self.stream.as_ref()?;
        let connection = owner.connection();
        let endpoint = info.upstream_host.borrow().as_ref().map(|host| host.address.to_string());
        Some(LiveStream {
            id: (worker, self.number),
            age: now.saturating_duration_since(info.start),
            is_request: matches!(owner, Owner::Http(_)),
            line: String::from_utf8_lossy(&self.line[..usize::from(self.line_length)]).into_owned(),
            phase: info.phase.get(),
            listener: Arc::clone(&connection.listener),
            filter_chain: Arc::clone(&connection.filter_chain),
            remote: connection.remote.to_string(),
            connection_id: connection.id,
            route: info.route_name.borrow().clone(),
            cluster: info.cluster.borrow().clone(),
            endpoint,
            bytes: (info.bytes_received.get(), info.bytes_sent.get()),
            tries: info.attempts.get(),
            status: info.response_code.get(),
        })
    }
}

impl Live {
    /// The task of `cx` is woken when the stream is asked to end.
    pub fn remember(&self, cx: &Context<'_>) {
        let mut list = self.worker.live.0.borrow_mut();
        match &mut list.slots[self.slot as usize].waker {
            Some(waker) => waker.clone_from(cx.waker()),
            waker => *waker = Some(cx.waker().clone()),
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Dropped last: a connection's end may look at the list.
        let _stream = {
            let mut list = self.worker.live.0.borrow_mut();
            let slot = &mut list.slots[self.slot as usize];
            slot.waker = None;
            let stream = slot.stream.take();
            list.free.push(self.slot);
            if list.free.len() == list.slots.len() && list.slots.len() > KEPT {
                // A burst is over.
                (list.slots, list.free) = (Vec::new(), Vec::new());
            }
            stream
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Process;

    fn connection() -> Rc<ConnectionInfo> {
        let address = outrigger_config::address::Address::Ip("127.0.0.1:1".parse().unwrap());
        Rc::new(ConnectionInfo {
            id: 7,
            start: Instant::now(),
            listener: "l".into(),
            local: address.clone(),
            direct_remote: address.clone(),
            remote: address,
            server_name: None,
            application_protocols: Vec::new(),
            filter_chain: "".into(),
            tls: None,
            local_restored: false,
            proxy_tlvs: None,
            outgoing_tlvs: Default::default(),
            socket_local: None,
            tls_fingerprints: Default::default(),
            dynamic_metadata: Default::default(),
            filter_state: Default::default(),
            peer_words: Default::default(),
        })
    }

    #[test]
    fn streams_are_told_of_while_they_last_and_can_be_asked_to_end() {
        let worker = Rc::new(Worker::new(3, Arc::new(Process::default())));
        let begin = |line: &'static [u8]| {
            let info = Rc::new(StreamInfo::new(Instant::now(), None));
            (Rc::clone(&info), LiveList::add(&worker, &info, Owner::Tcp(connection()), [line]))
        };
        let (first, live) = begin(b"GET /");
        let (second, _other) = begin(&[b'x'; 200]);
        let seen = worker.live.look(3, Instant::now());
        assert_eq!(seen.iter().map(|stream| stream.id).collect::<Vec<_>>(), [(3, 1), (3, 2)]);
        assert_eq!((seen[0].line.as_str(), seen[1].line.len()), ("GET /", LINE_BYTES));
        assert!(worker.live.kill(2) && second.kill.get() == Kill::Asked && first.kill.get() == Kill::No);
        drop(live);
        assert!(!worker.live.kill(1) && worker.live.count() == 1);
        let (_, _third) = begin(b"");
        assert_eq!(worker.live.look(3, Instant::now()).last().unwrap().id, (3, 3));
    }

    #[test]
    fn what_a_burst_took_is_given_back() {
        let worker = Rc::new(Worker::new(0, Arc::new(Process::default())));
        let info = Rc::new(StreamInfo::new(Instant::now(), None));
        let many: Vec<Live> = (0..1000).map(|_| LiveList::add(&worker, &info, Owner::Tcp(connection()), [])).collect();
        drop(many);
        assert_eq!((worker.live.count(), worker.live.0.borrow().slots.capacity()), (0, 0));
        let again = LiveList::add(&worker, &info, Owner::Tcp(connection()), []);
        assert_eq!(worker.live.look(0, Instant::now())[0].id, (0, 1001));
        drop(again);
    }
}
