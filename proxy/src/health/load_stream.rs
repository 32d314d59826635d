//! One call of `xds.service.orca.v3.OpenRcaService/StreamCoreMetrics`: an endpoint reports its load as long as it lasts.
//!
//! Owns the messages of that call, and what its end means. Never decides when to make the next one.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use outrigger_api::pb::google::protobuf::Duration as WireDuration;
use outrigger_config::address::Address;
use outrigger_config::cluster::{OutOfBand, UpstreamTransport};
use outrigger_policy::transport::{Said, transport_of};
use prost::Message;
use tokio::time::timeout;

use super::probe::connection::Way;
use super::probe::http2::Http2Connection;
use super::probe::{ProbeError, http_request};
use crate::graph::ClusterNode;
use crate::upstream::grpc_message::frame;
use crate::upstream::host::Host;

/// `xds.service.orca.v3.OrcaLoadReportRequest`, as far as we ask for anything: all reports, this often.
#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(message, optional, tag = "1")]
    report_interval: Option<WireDuration>,
}

/// How a call ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The endpoint has no such service, and will not have one either.
    Unimplemented,
    /// For another reason, which a person may want to read.
    Broken(String),
}

impl From<ProbeError> for Ended {
    fn from(error: ProbeError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// What is done with an encoded report. `false` for one that cannot be read.
pub(super) type Take<'a> = dyn FnMut(&[u8]) -> bool + 'a;

/// Makes a call and hands over what the endpoint reports, until the call ends or the endpoint falls silent.
pub(super) async fn follow(node: &ClusterNode, host: &Host, options: &OutOfBand, take: &mut Take<'_>) -> Ended {
    // Two reports may be missed.
    let silence = options.period.saturating_mul(3);
    let opened = timeout(silence, open(node, host, options)).await;
    let (connection, mut body) = match opened {
        Ok(Ok(opened)) => opened,
        Ok(Err(ended)) => return ended,
        Err(_) => return Ended::Broken(SILENT.to_owned()),
    };
    let mut received = Vec::new();
    loop {
        match timeout(silence, next(&mut body, &mut received, take)).await {
            Err(_) => return Ended::Broken(SILENT.to_owned()),
            Ok(Err(ended)) => return ended,
            // An endpoint that asks us to go (GOAWAY) has had its say.
            Ok(Ok(())) if connection.is_closed() => {
                return Ended::Broken("the endpoint closes the connection".to_owned());
            }
            Ok(Ok(())) => {}
        }
    }
}

async fn open(node: &ClusterNode, host: &Host, options: &OutOfBand) -> Result<(Http2Connection, Incoming), Ended> {
    let transport = match &options.transport_criteria {
        Some(criteria) => {
            transport_of(&node.config, Said { transport: Some(criteria), balancing: None }, Said::default())
        }
        None => host.transport,
    };
    let address = match (&host.address, options.port) {
        (Address::Ip(socket), Some(port)) => Address::Ip((socket.ip(), port).into()),
        (address, _) => address.clone(),
    };
    let request = request(node, host, options, transport, &address).map_err(ProbeError::from)?;
    let way = Way { node, host, address, transport, alpn: vec![b"h2".to_vec()] };
    let opened = way.open().await.map_err(ProbeError::from)?;
    let mut connection = Http2Connection::over(opened.stream, None).await?;
    let response = connection.call(request).await?;
    refusal(&response).map_or(Ok(()), Err)?;
    Ok((connection, response.into_body()))
}

fn request(
    node: &ClusterNode,
    host: &Host,
    options: &OutOfBand,
    transport: usize,
    address: &Address,
) -> http::Result<Request<Full<Bytes>>> {
    let secure = node.config.transports().nth(transport).and_then(UpstreamTransport::tls).is_some();
    let named = options.authority.as_deref().or(Some(&*host.hostname).filter(|name| !name.is_empty()));
    let authority = match (named, address) {
        (Some(name), _) => name.to_owned(),
        (None, Address::Ip(socket)) => socket.to_string(),
        (None, Address::Pipe { .. } | Address::Internal(_)) => node.config.name.to_string(),
    };
    let scheme = if secure { "https" } else { "http" };
    let question = Question { report_interval: Some(wire_duration(options.period)) };
    Request::builder()
        .version(http::Version::HTTP_2)
        .method(http::Method::POST)
        .uri(format!("{scheme}://{authority}{METHOD}"))
        .header(http::header::USER_AGENT, http_request::USER_AGENT)
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(Full::new(frame(&question).into()))
}

fn wire_duration(duration: Duration) -> WireDuration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    WireDuration { seconds, nanos: duration.subsec_nanos().cast_signed() }
}

/// What a response head says against reports.
fn refusal<B>(response: &Response<B>) -> Option<Ended> {
    if let Some(ended) = status_of(response.headers()) {
        return Some(ended);
    }
    let is_grpc = |kind: &http::HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
    match response.status().as_u16() {
        200 if response.headers().get(http::header::CONTENT_TYPE).is_some_and(is_grpc) => None,
        // What gRPC makes of this status.
        404 => Some(Ended::Unimplemented),
        status => Some(Ended::Broken(format!("the call was answered with HTTP status {status}, and not by gRPC"))),
    }
}

fn status_of(headers: &HeaderMap) -> Option<Ended> {
    let status = headers.get("grpc-status")?.as_bytes();
    Some(match status {
        UNIMPLEMENTED => Ended::Unimplemented,
        status => Ended::Broken(format!("the call ended with gRPC status {}", String::from_utf8_lossy(status))),
    })
}

/// Takes the reports of the next piece of the body.
async fn next(body: &mut Incoming, received: &mut Vec<u8>, take: &mut Take<'_>) -> Result<(), Ended> {
    let frame = match body.frame().await {
        None => return Err(Ended::Broken("the endpoint ended the call".to_owned())),
        Some(frame) => frame.map_err(ProbeError::from)?,
    };
    match frame.into_data() {
        Ok(data) => {
            received.extend_from_slice(&data);
            take_reports(received, take)
        }
        Err(frame) => {
            let trailers = frame.into_trailers().unwrap_or_default();
            Err(status_of(&trailers).unwrap_or_else(|| Ended::Broken("the call ended without a status".to_owned())))
        }
    }
}

/// Takes those that are there as a whole.
fn take_reports(received: &mut Vec<u8>, take: &mut Take<'_>) -> Result<(), Ended> {
    let mut taken = 0;
    while let Some((prefix, rest)) = received.get(taken..).and_then(|bytes| bytes.split_first_chunk::<5>()) {
        let [compressed, length @ ..] = *prefix;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if compressed != 0 || length > MAX_REPORT {
            return Err(Ended::Broken("a message is compressed, or longer than 64 KiB".to_owned()));
        }
        let Some(message) = rest.get(..length) else { break };
        // Nothing at all is no report.
        if !message.is_empty() && !take(message) {
            return Err(Ended::Broken("a message is no load report".to_owned()));
        }
        taken += prefix.len() + length;
    }
    received.drain(..taken);
    Ok(())
}

const METHOD: &str = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics";
const SILENT: &str = "no report came in time";
const UNIMPLEMENTED: &[u8] = b"12";
const MAX_REPORT: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(received: &mut Vec<u8>) -> (Vec<Vec<u8>>, bool) {
        let mut reports = Vec::new();
        let result = take_reports(received, &mut |report| {
            reports.push(report.to_vec());
            report != b"?"
        });
        (reports, result.is_ok())
    }

    #[test]
    fn reports_come_in_pieces() {
        let mut received = vec![0, 0, 0, 0, 2, b'a'];
        assert_eq!(taken(&mut received), (vec![], true));
        received.extend([b'b', 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, b'c', 0]);
        assert_eq!(taken(&mut received), (vec![b"ab".to_vec(), b"c".to_vec()], true));
        assert_eq!(received, [0]);
    }

    #[test]
    fn what_is_no_report_ends_the_call() {
        for wrong in [&[1, 0, 0, 0, 0][..], &[0, 0, 1, 0, 1], &[0, 255, 255, 255, 255], &[0, 0, 0, 0, 1, b'?']] {
            assert!(!taken(&mut wrong.to_vec()).1, "{wrong:?}");
        }
        // The greatest that is allowed is waited for.
        assert!(taken(&mut vec![0, 0, 1, 0, 0]).1);
    }

    #[test]
    fn only_what_cannot_change_is_final() {
        let response = |status: u16, headers: &[(&str, &str)]| {
            let mut builder = Response::builder().status(status);
            for (name, value) in headers {
                builder = builder.header(*name, *value);
            }
            refusal(&builder.body(()).unwrap())
        };
        const GRPC: (&str, &str) = ("content-type", "application/grpc+proto");
        assert!(response(200, &[GRPC]).is_none());
        assert!(matches!(response(200, &[GRPC, ("grpc-status", "12")]), Some(Ended::Unimplemented)));
        assert!(matches!(response(404, &[]), Some(Ended::Unimplemented)));
        assert!(matches!(response(200, &[GRPC, ("grpc-status", "14")]), Some(Ended::Broken(_))));
        assert!(matches!(response(200, &[]), Some(Ended::Broken(_))));
        assert!(matches!(response(503, &[GRPC]), Some(Ended::Broken(_))));
    }
}
