use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::net::Shutdown;
use std::rc::Rc;

use outrigger_sys::splice::PIPE_CAPACITY;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::{JoinHandle, LocalSet, yield_now};

use super::*;
use crate::worker::random::Random;
use crate::worker::socket::Socket;

const LIMIT: usize = 1 << 20;

/// A running relay, and what is seen from outside while it runs. It drops its streams when it ends, as sessions do.
struct Running {
    relay: Rc<RefCell<Option<Relay>>>,
    task: JoinHandle<(End, Traffic, Traffic)>,
}

impl Running {
    fn start(downstream: Io, upstream: Io) -> Self {
        let relay = Rc::new(RefCell::new(Some(Relay::new(downstream, upstream, LIMIT))));
        let task = tokio::task::spawn_local({
            let relay = Rc::clone(&relay);
            let pool = BufferPool::default();
            async move {
                let end = poll_fn(|cx| relay.borrow_mut().as_mut().unwrap().poll(cx, &pool)).await;
                let relay = relay.borrow_mut().take().unwrap();
                (end, relay.up(), relay.down())
            }
        });
        Self { relay, task }
    }

    async fn end(self) -> (End, Traffic, Traffic) {
        self.task.await.unwrap()
    }

    /// What has moved so far. Only while it runs.
    fn traffic(&self) -> Option<(Traffic, Traffic)> {
        self.relay.borrow().as_ref().map(|relay| (relay.up(), relay.down()))
    }

    /// Until nothing has moved for a good while.
    async fn settle(&self) {
        let mut quiet = 0;
        while quiet < 200 {
            let before = self.traffic();
            yield_now().await;
            quiet = if self.traffic() == before { quiet + 1 } else { 0 };
        }
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

fn tcp(stream: TcpStream) -> Io {
    Io::Plain(Socket::new(SocketKind::Tcp(stream)))
}

fn unix(stream: UnixStream) -> Io {
    Io::Plain(Socket::new(SocketKind::Unix(stream)))
}

/// A client and a server with a relay between them.
async fn rig() -> (TcpStream, Running, TcpStream) {
    let (client, downstream) = tcp_pair().await;
    let (upstream, server) = tcp_pair().await;
    (client, Running::start(tcp(downstream), tcp(upstream)), server)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

/// Writes `bytes` in pieces of many sizes, then ends.
async fn write_in_pieces(mut to: impl AsyncWriteExt + Unpin, bytes: &[u8], random: &Random) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let most = [10, 3000, 70_000, 900_000][random.next() as usize % 4];
        let (piece, after) = rest.split_at(rest.len().min(1 + random.next() as usize % most));
        to.write_all(piece).await.unwrap();
        if random.next().is_multiple_of(4) {
            yield_now().await;
        }
        rest = after;
    }
    to.shutdown().await.unwrap();
}

async fn read_all(mut from: impl AsyncReadExt + Unpin) -> Vec<u8> {
    let mut received = Vec::new();
    from.read_to_end(&mut received).await.unwrap();
    received
}

#[test]
fn messages_go_both_ways_and_an_idle_relay_holds_nothing() {
    run(async {
        let (mut client, running, mut server) = rig().await;
        let mut buffer = [0; 64];
        for _ in 0..3 {
            client.write_all(b"ping").await.unwrap();
            server.read_exact(&mut buffer[..4]).await.unwrap();
            server.write_all(b"pong!").await.unwrap();
            client.read_exact(&mut buffer[..5]).await.unwrap();
            assert_eq!(&buffer[..5], b"pong!");
        }
        running.settle().await;
        {
            let relay = running.relay.borrow();
            let relay = relay.as_ref().unwrap();
            assert!(relay.up.holds_nothing() && relay.down.holds_nothing());
        }
        drop(client);
        assert_eq!(server.read(&mut buffer).await.unwrap(), 0);
        drop(server);
        let (end, up, down) = running.end().await;
        assert_eq!(end, End::Closed { last: Side::Upstream });
        assert_eq!((up.read, up.written, down.read, down.written), (12, 12, 15, 15));
    });
}

#[test]
fn either_side_may_end_its_half_first() {
    run(async {
        for client_first in [true, false] {
            let (client, running, server) = rig().await;
            let (mut first, mut second) = if client_first { (client, server) } else { (server, client) };
            first.write_all(b"all I have").await.unwrap();
            first.shutdown().await.unwrap();
            assert_eq!(read_all(&mut second).await, b"all I have");
            running.settle().await;
            assert!(!running.task.is_finished());
            second.write_all(b"thank you").await.unwrap();
            drop(second);
            assert_eq!(read_all(&mut first).await, b"thank you");
            let last = if client_first { Side::Upstream } else { Side::Downstream };
            assert_eq!(running.end().await.0, End::Closed { last });
        }
    });
}

#[test]
fn bulk_arrives_whole_and_in_order_between_all_kinds_of_sockets() {
    run(async {
        let random = Random::new();
        for kind in 0..4 {
            let (client, downstream) = tcp_pair().await;
            let (local_client, local_downstream) = UnixStream::pair().unwrap();
            let (upstream, server) = tcp_pair().await;
            let (local_upstream, local_server) = UnixStream::pair().unwrap();
            let downstream = if kind & 1 == 0 { tcp(downstream) } else { unix(local_downstream) };
            let upstream = if kind & 2 == 0 { tcp(upstream) } else { unix(local_upstream) };
            let running = Running::start(downstream, upstream);
            let (request, response) = (pattern(9_000_000), pattern(12_345_678));
            let exchange = async |reader: &mut (dyn tokio::io::AsyncRead + Unpin),
                                  writer: &mut (dyn tokio::io::AsyncWrite + Unpin),
                                  out: &[u8],
                                  expected: &[u8]| {
                let ((), received) = tokio::join!(write_in_pieces(writer, out, &random), read_all(reader));
                assert!(received == expected);
            };
            let (mut client_read, mut client_write) = match kind & 1 {
                0 => boxed(client.into_split()),
                _ => boxed(local_client.into_split()),
            };
            let (mut server_read, mut server_write) = match kind & 2 {
                0 => boxed(server.into_split()),
                _ => boxed(local_server.into_split()),
            };
            tokio::join!(
                exchange(&mut client_read, &mut client_write, &request, &response),
                exchange(&mut server_read, &mut server_write, &response, &request),
            );
            let (end, up, down) = running.end().await;
            assert!(matches!(end, End::Closed { .. }));
            assert_eq!((up.read, up.written), (request.len() as u64, request.len() as u64));
            assert_eq!((down.read, down.written), (response.len() as u64, response.len() as u64));
        }
    });
}

type Halves = (Box<dyn tokio::io::AsyncRead + Unpin>, Box<dyn tokio::io::AsyncWrite + Unpin>);

fn boxed(
    (read, write): (impl tokio::io::AsyncRead + Unpin + 'static, impl tokio::io::AsyncWrite + Unpin + 'static),
) -> Halves {
    (Box::new(read), Box::new(write))
}

#[test]
fn a_slow_reader_holds_its_writer_back() {
    run(async {
        let (client, running, mut server) = rig().await;
        let chunk = pattern(251 * 1000);
        let (mut sent, mut refused) = (0, 0);
        while refused < 200 {
            match client.try_write(&chunk[sent % 251..]) {
                Ok(count) => (sent, refused) = (sent + count, 0),
                Err(_) => refused += 1,
            }
            yield_now().await;
        }
        let up = running.traffic().unwrap().0;
        assert!(up.read - up.written <= 2 * PIPE_CAPACITY as u64, "{up:?}");
        assert!(up.read < sent as u64, "the rest waits in the sockets");
        assert_eq!(up.pauses, up.resumes + 1);

        drop(client);
        let received = read_all(&mut server).await;
        assert!(received == pattern(sent));
        drop(server);
        let (_, up, _) = running.end().await;
        assert_eq!((up.read, up.written, up.pauses), (sent as u64, sent as u64, up.resumes));
    });
}

#[test]
fn a_reset_is_passed_on() {
    run(async {
        for by in [Side::Downstream, Side::Upstream] {
            let (client, running, server) = rig().await;
            let (breaker, mut survivor) = match by {
                Side::Downstream => (client, server),
                Side::Upstream => (server, client),
            };
            SockRef::from(&breaker).set_linger(Some(Duration::ZERO)).unwrap();
            drop(breaker);
            assert_eq!(running.end().await.0, End::Reset { by });
            let error = survivor.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn a_side_that_takes_nothing_may_still_speak() {
    run(async {
        let (mut client, downstream) = tcp_pair().await;
        let (upstream, server) = UnixStream::pair().unwrap();
        let running = Running::start(tcp(downstream), unix(upstream));
        let server = server.into_std().unwrap();
        server.shutdown(Shutdown::Read).unwrap();
        client.write_all(b"a long request").await.unwrap();
        running.settle().await;
        let mut server = UnixStream::from_std(server).unwrap();
        server.write_all(b"too long").await.unwrap();
        drop(server);
        let mut answer = [0; 8];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"too long");
        assert_eq!(running.end().await.0, End::Reset { by: Side::Upstream });
    });
}

#[test]
fn bytes_that_were_read_ahead_go_first() {
    run(async {
        let (mut client, downstream) = tcp_pair().await;
        let (upstream, server) = tcp_pair().await;
        let mut downstream = Socket::new(SocketKind::Tcp(downstream));
        downstream.put_back(b"seen ".to_vec());
        let running = Running::start(Io::Plain(downstream), tcp(upstream));
        client.write_all(b"before").await.unwrap();
        drop(client);
        assert_eq!(read_all(server).await, b"seen before");
        assert_eq!(running.end().await.1.read, 11);
    });
}

#[test]
fn many_relays_run_side_by_side() {
    run(async {
        let random = Rc::new(Random::new());
        let mut tasks = Vec::new();
        for _ in 0..100 {
            let random = Rc::clone(&random);
            tasks.push(tokio::task::spawn_local(async move {
                let (client, running, server) = rig().await;
                let length = 1 + random.next() as usize % 600_000;
                let request = pattern(length);
                let ((), received) = tokio::join!(write_in_pieces(client, &request, &random), read_all(server));
                assert!(received == request);
                assert_eq!(running.end().await.1.written, length as u64);
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}
