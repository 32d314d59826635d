//! The statsd protocol and its dialects.
//!
//! Owns the form of lines, how they are put into datagrams, and the socket or connection. What cannot be sent is given up:
//! the next flush says what is true then.

use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use outrigger_config::bootstrap::{StatsdDialect, StatsdReceiver, StatsdSink};
use outrigger_xds::Connector;
use outrigger_xds::connector::Connection;
use tokio::io::AsyncWriteExt;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::snapshot::{Flush, Since, Stat};
use super::{Outlet, SEND_LIMIT};
use crate::stats::FamilyKind;
use crate::stats::tags::TagExtractor;
use crate::upstream::dial::{HttpVersion, to_cluster};

/// Sends lines.
pub(super) struct Sender {
    sink: StatsdSink,
    line: Line,
}

enum Line {
    Udp { to: SocketAddr, socket: Option<UdpSocket> },
    Tcp { connector: Connector, connection: Option<Connection> },
}

impl Sender {
    pub fn new(sink: StatsdSink, outlet: &Outlet) -> Self {
        let line = match &sink.receiver {
            StatsdReceiver::Udp(to) => Line::Udp { to: *to, socket: None },
            StatsdReceiver::Cluster(name) => {
                let connector = to_cluster(Arc::clone(&outlet.process), Arc::clone(name), HttpVersion::Http1);
                Line::Tcp { connector, connection: None }
            }
        };
        Self { sink, line }
    }

    pub async fn send(&mut self, flush: &Flush, outlet: &Outlet) {
        let tags = &outlet.settings.tags;
        let sent = match &mut self.line {
            Line::Udp { to, socket } => send_datagrams(socket, *to, datagrams(flush, &self.sink, tags)).await,
            Line::Tcp { connector, connection } => {
                let mut text = String::new();
                lines(flush, &self.sink, tags, &mut |line| {
                    text.push_str(line);
                    text.push('\n');
                });
                let sent = timeout(SEND_LIMIT, write(connector, connection, text.as_bytes())).await;
                let sent = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                if sent.is_err() {
                    *connection = None;
                }
                sent
            }
        };
        if let Err(error) = sent {
            tracing::warn!("stats could not be sent to statsd at {}: {error}", self.receiver());
        }
    }

    fn receiver(&self) -> String {
        match &self.sink.receiver {
            StatsdReceiver::Udp(to) => to.to_string(),
            StatsdReceiver::Cluster(name) => format!("cluster {name:?}"),
        }
    }
}

async fn write(connector: &Connector, connection: &mut Option<Connection>, text: &[u8]) -> io::Result<()> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(connector.connect().await?),
    };
    connection.write_all(text).await?;
    connection.flush().await
}

async fn send_datagrams(socket: &mut Option<UdpSocket>, to: SocketAddr, datagrams: Vec<String>) -> io::Result<()> {
    let socket = match socket {
        Some(socket) => socket,
        None => {
            let any: SocketAddr = match to {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            socket.insert(UdpSocket::bind(any).await?)
        }
    };
    for datagram in datagrams {
        socket.send_to(datagram.as_bytes(), to).await?;
    }
    Ok(())
}

/// Lines, put together as far as one datagram may hold them.
fn datagrams(flush: &Flush, sink: &StatsdSink, tags: &TagExtractor) -> Vec<String> {
    let mut datagrams: Vec<String> = Vec::new();
    lines(flush, sink, tags, &mut |line| match (sink.max_bytes_per_datagram, datagrams.last_mut()) {
        (Some(limit), Some(last)) if last.len() + 1 + line.len() <= limit => {
            last.push('\n');
            last.push_str(line);
        }
        _ => datagrams.push(line.to_owned()),
    });
    datagrams
}

fn lines(flush: &Flush, sink: &StatsdSink, tags: &TagExtractor, each: &mut dyn FnMut(&str)) {
    let mut line = String::new();
    for stat in &flush.stats {
        let (name, end) = written_name(stat, sink, tags);
        let mut write = |value: std::fmt::Arguments<'_>| {
            line.clear();
            // Writing to a string cannot fail.
            let _ = write!(line, "{name}:{value}{end}");
            each(&line);
        };
        match (&stat.since, &stat.family.kind) {
            (Since::Counted(count), _) => write(format_args!("{count}|c")),
            (Since::Gauge, FamilyKind::Gauge(value)) => write(format_args!("{}|g", value.unwrap_or(0))),
            (Since::Gauge, _) => {}
            // One line for all of one value: a sample that was taken of so many counts as often.
            (Since::Recorded(values), _) => {
                for (value, count) in values {
                    match count {
                        1 => write(format_args!("{value}|ms")),
                        _ => write(format_args!("{value}|ms|@{}", 1.0 / *count as f64)),
                    }
                }
            }
        }
    }
}

/// What stands before the value, and after its type.
fn written_name(stat: &Stat, sink: &StatsdSink, extractor: &TagExtractor) -> (String, String) {
    let name = &stat.family.name;
    let prefix = &sink.prefix;
    if sink.dialect == StatsdDialect::Plain {
        return (format!("{prefix}.{name}"), String::new());
    }
    let tagged = extractor.extract(name);
    let (mut begin, mut end) = (format!("{prefix}.{}", tagged.base), String::new());
    for (index, (tag, value)) in tagged.tags.iter().enumerate() {
        let _ = match sink.dialect {
            StatsdDialect::Graphite => write!(begin, ";{tag}={value}"),
            _ => write!(end, "{}{tag}:{value}", if index == 0 { "|#" } else { "," }),
        };
    }
    (begin, end)
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::sample;
    use super::*;

    fn sink(dialect: StatsdDialect, max_bytes_per_datagram: Option<usize>) -> StatsdSink {
        let receiver = StatsdReceiver::Cluster("statsd".into());
        StatsdSink { receiver, prefix: "envoy".into(), dialect, max_bytes_per_datagram }
    }

    fn datagrams_of(sink: StatsdSink) -> Vec<String> {
        let tags = TagExtractor::new(&crate::stats::tags::tests::config(&[], true)).unwrap();
        datagrams(&sample(), &sink, &tags)
    }

    #[test]
    fn each_dialect_writes_tags_in_its_way() {
        assert_eq!(
            datagrams_of(sink(StatsdDialect::Plain, None)),
            [
                "envoy.cluster.local.upstream_cx_active:2|g",
                "envoy.cluster.local.upstream_rq_time:5|ms",
                "envoy.cluster.local.upstream_rq_time:7|ms",
                "envoy.cluster.local.upstream_rq_total:2|c",
            ]
        );
        assert_eq!(
            datagrams_of(sink(StatsdDialect::Datadog, Some(1000))),
            ["envoy.cluster.upstream_cx_active:2|g|#envoy.cluster_name:local\n\
              envoy.cluster.upstream_rq_time:5|ms|#envoy.cluster_name:local\n\
              envoy.cluster.upstream_rq_time:7|ms|#envoy.cluster_name:local\n\
              envoy.cluster.upstream_rq_total:2|c|#envoy.cluster_name:local"]
        );
        assert_eq!(
            datagrams_of(sink(StatsdDialect::Graphite, None))[0],
            "envoy.cluster.upstream_cx_active;envoy.cluster_name=local:2|g"
        );
    }

    #[test]
    fn a_datagram_never_holds_more_than_it_may_unless_one_line_does() {
        let whole = datagrams_of(sink(StatsdDialect::Plain, None));
        for limit in 1..200 {
            let datagrams = datagrams_of(sink(StatsdDialect::Plain, Some(limit)));
            assert_eq!(datagrams.join("\n"), whole.join("\n"));
            assert!(datagrams.iter().all(|datagram| datagram.len() <= limit || !datagram.contains('\n')));
        }
    }

    #[test]
    fn values_recorded_often_are_one_line_with_a_sample_rate() {
        let mut flush = sample();
        flush.stats.retain(|stat| matches!(stat.since, Since::Recorded(_)));
        flush.stats[0].since = Since::Recorded(vec![(5, 4)]);
        let mut all = Vec::new();
        let tags = TagExtractor::default();
        lines(&flush, &sink(StatsdDialect::Plain, None), &tags, &mut |line| all.push(line.to_owned()));
        assert_eq!(all, ["envoy.cluster.local.upstream_rq_time:5|ms|@0.25"]);
    }
}
