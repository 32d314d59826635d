//! Backend, load generators and syscall-floor relay for ../side_by_side.py. Each load
//! prints one line of JSON: counts, latencies, errors, and the CPU time of
//! the processes named with --watch LABEL=PID[,PID...].

mod backend;
mod hpack;
mod http1;
mod http2;
mod net;
mod relay;
mod report;
mod tcp;
mod tls;
mod wire2;

use std::net::SocketAddr;
use std::str::FromStr;

const USAGE: &str = "usage: loadgen COMMAND [--FLAG [VALUE]]...
  backend  --h1|--mtls|--h2|--grpc|--source|--oneshot ADDR ... [--backend-cert F --backend-key F --ca F] [--tag NAME] [--h2-body BYTES]
  h1       --target ADDR [--connections N] [--requests N] [--warmup N] [--body BYTES] [--host NAME]
           [--rate PER_SECOND [--h1 ADDR]] [--new-connections] [--tls [--cert F --key F] [--resume]]
  idle     --target ADDR [--connections N] [--tls]   holds them until standard input closes
  h2       --target ADDR [--connections N] [--streams N] [--requests N] [--warmup N] [--body BYTES] [--grpc]
  bulk     --target ADDR [--connections N] [--bytes N] [--warmup BYTES]
  short    --target ADDR [--connections N] [--requests N] [--warmup N]
  relay    --listen ADDR --upstream ADDR [--buffer BYTES] [--splice]
every load also takes --max-seconds S and --watch LABEL=PID[,PID...]";

/// `--flag value`, `--flag` alone, repeated flags.
pub struct Args(Vec<(String, Option<String>)>);

impl Args {
    fn parse(words: impl Iterator<Item = String>) -> Self {
        let mut flags: Vec<(String, Option<String>)> = Vec::new();
        for word in words {
            match (word.strip_prefix("--"), flags.last_mut()) {
                (Some(flag), _) => flags.push((flag.into(), None)),
                (None, Some((_, value @ None))) => *value = Some(word),
                _ => fail(&format!("unexpected argument {word}")),
            }
        }
        Args(flags)
    }

    pub fn has(&self, flag: &str) -> bool {
        self.0.iter().any(|(f, _)| f == flag)
    }

    pub fn text(&self, flag: &str) -> Option<&str> {
        self.0.iter().find(|(f, _)| f == flag).and_then(|(_, v)| v.as_deref())
    }

    pub fn all(&self, flag: &str) -> Vec<String> {
        self.0.iter().filter(|(f, _)| f == flag).filter_map(|(_, v)| v.clone()).collect()
    }

    pub fn number<T: FromStr>(&self, flag: &str, default: T) -> T {
        match self.text(flag) {
            None => default,
            Some(v) => v.parse().unwrap_or_else(|_| fail(&format!("--{flag}: not a number: {v}"))),
        }
    }

    pub fn address(&self, flag: &str) -> SocketAddr {
        let value = self.text(flag).unwrap_or_else(|| fail(&format!("--{flag} is missing")));
        value.parse().unwrap_or_else(|_| fail(&format!("--{flag}: not an address: {value}")))
    }
}

fn fail(what: &str) -> ! {
    eprintln!("loadgen: {what}\n{USAGE}");
    std::process::exit(2)
}

fn main() {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let args = Args::parse(words);
    let report = match command.as_str() {
        "backend" => backend::serve(&args),
        "h1" => http1::load(&args),
        "idle" => http1::idle(&args),
        "h2" => http2::load(&args),
        "bulk" => tcp::bulk(&args),
        "short" => tcp::short(&args),
        "relay" => relay::run(&args),
        _ => fail("unknown command"),
    };
    println!("{report}");
}
