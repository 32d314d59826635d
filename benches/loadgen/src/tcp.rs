//! TCP generators: bulk download, and short connections one after another.

use crate::Args;
use crate::http1::MAX_ERRORS;
use crate::net::{self, Poller};
use crate::report::Run;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Downloads from an endless source over a few connections. The start of each
/// stream is checked byte by byte; after that the bytes are discarded in the
/// kernel (MSG_TRUNC), which keeps this side cheaper than the proxy.
pub fn bulk(args: &Args) -> String {
    let target = args.address("target");
    let connections: usize = args.number("connections", 4);
    let warmup: u64 = args.number("warmup", 256 << 20);
    let bytes: u64 = args.number("bytes", 4 << 30);
    let deadline = Instant::now() + Duration::from_secs_f64(args.number("max-seconds", 20.0));
    let mut run = Run::new(&args.all("watch"));
    let mut poller = Poller::new();
    let mut socks: Vec<TcpStream> = Vec::new();
    for token in 0..connections {
        let mut sock = TcpStream::connect(target).expect("connect");
        let mut head = vec![0; 1 << 20];
        match sock.read_exact(&mut head) {
            Ok(()) => run.errors.body += (head != net::pattern(head.len())) as u64,
            Err(_) => run.errors.connection += 1,
        }
        net::prepare(&sock).expect("socket");
        poller.add(sock.as_raw_fd(), token as u64, true, false).expect("epoll_ctl");
        socks.push(sock);
    }
    let mut events = Vec::new();
    let mut scratch = vec![0u8; 1 << 20];
    let mut measuring = false;
    while Instant::now() < deadline && !(measuring && run.bytes >= bytes) && run.errors.total() < MAX_ERRORS {
        poller.wait(Some(Duration::from_millis(200)), &mut events).expect("epoll_wait");
        for event in &events {
            let fd = socks[event.token as usize].as_raw_fd();
            let got = unsafe { libc::recv(fd, scratch.as_mut_ptr().cast(), scratch.len(), libc::MSG_TRUNC) };
            match got {
                n if n > 0 => run.bytes += n as u64,
                0 => run.errors.connection += 1,
                _ if net::would_block(&std::io::Error::last_os_error()) => {}
                _ => run.errors.connection += 1,
            }
        }
        if !measuring && run.bytes >= warmup {
            measuring = true;
            run.begin();
        }
    }
    run.finish(0)
}

/// Connects, sends 64 bytes, expects 64 bytes and the end; repeats.
pub fn short(args: &Args) -> String {
    let target = args.address("target");
    let concurrency: usize = args.number("connections", 32);
    let warmup: u64 = args.number("warmup", 500);
    let total = warmup + args.number::<u64>("requests", 20_000);
    let deadline = Instant::now() + Duration::from_secs_f64(args.number("max-seconds", 20.0));
    let expected = net::pattern(64);
    let mut run = Run::new(&args.all("watch"));
    let mut poller = Poller::new();
    let mut slots: Vec<Option<(TcpStream, Vec<u8>, Instant)>> = (0..concurrency).map(|_| None).collect();
    let (mut done, mut measuring) = (0u64, false);
    let mut events = Vec::new();
    while done < total && Instant::now() < deadline && run.errors.total() < MAX_ERRORS {
        for (token, slot) in slots.iter_mut().enumerate().filter(|(_, s)| s.is_none()) {
            let started = Instant::now();
            let opened = net::connect(target).and_then(|mut sock| {
                sock.write_all(&expected)?;
                poller.add(sock.as_raw_fd(), token as u64, true, false)?;
                Ok(sock)
            });
            match opened {
                Ok(sock) => *slot = Some((sock, Vec::with_capacity(128), started)),
                Err(_) => run.errors.connection += 1,
            }
        }
        poller.wait(Some(Duration::from_millis(200)), &mut events).expect("epoll_wait");
        for event in &events {
            let slot = &mut slots[event.token as usize];
            let Some((sock, got, started)) = slot.as_mut() else { continue };
            let mut chunk = [0; 128];
            match sock.read(&mut chunk) {
                Ok(0) => {
                    run.errors.body += (*got != expected) as u64;
                    run.answered(started.elapsed());
                }
                Ok(n) => {
                    got.extend_from_slice(&chunk[..n]);
                    continue;
                }
                Err(e) if net::would_block(&e) => continue,
                Err(_) => run.errors.connection += 1,
            }
            *slot = None;
            done += 1;
            if done >= warmup && !measuring {
                measuring = true;
                run.begin();
            }
        }
    }
    run.finish(total.saturating_sub(done))
}
