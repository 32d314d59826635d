//! Health that endpoints tell by themselves (`grpc.health.v1.Health/Watch`).
//!
//! Owns the open call. Never decides when to make the next one.

use std::io;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use outrigger_config::cluster::{GrpcProbe, HealthCheck};
use outrigger_policy::health::{CheckResult, FailureKind};

use super::grpc::{SERVING, first_answer, headers, parts};
use super::http2::Http2Connection;
use super::{Checked, Ended, Kept, ProbeError, Target};

/// An open call.
pub(super) struct Watch {
    /// The call ends with it.
    _connection: Http2Connection,
    body: Incoming,
    received: Vec<u8>,
    /// The endpoint says in its responses that it is degraded.
    degraded: bool,
    /// What was told last, and has not been looked at.
    told: Option<Result<i32, ProbeError>>,
}

impl Watch {
    /// Waits until there is something to look at. Nothing is lost when this is dropped.
    pub(super) async fn wait(&mut self) {
        while self.told.is_none() {
            let told = self.next().await;
            self.told = told.transpose();
        }
    }

    /// A status if one is complete after the next piece of the body.
    async fn next(&mut self) -> Result<Option<i32>, ProbeError> {
        let ended = |why: &str| ProbeError::Io(io::Error::other(why.to_owned()));
        match first_answer(&self.received).map_err(|_| ended("what it tells is no health status"))? {
            Some((status, length)) => {
                self.received.drain(..length);
                Ok(Some(status))
            }
            None => {
                let frame = self.body.frame().await.ok_or_else(|| ended("the endpoint ended the call"))??;
                if let Ok(data) = frame.into_data() {
                    self.received.extend_from_slice(&data);
                }
                Ok(None)
            }
        }
    }
}

/// The next status of an open call, or the first of a new one. Says in `unwatchable` that there is no such method.
pub(super) async fn check(
    target: &Target,
    settings: &HealthCheck,
    probe: &GrpcProbe,
    kept: Kept,
    unwatchable: &mut bool,
) -> Ended {
    let mut watch = match kept {
        Kept::Watch(watch) => watch,
        _ => match open(target, settings, probe).await? {
            Some(watch) => Box::new(watch),
            None => {
                *unwatchable = true;
                return super::grpc::check(target, settings, probe, Kept::Nothing).await;
            }
        },
    };
    watch.wait().await;
    let told = watch.told.take().unwrap_or(Err(ProbeError::Io(io::ErrorKind::UnexpectedEof.into())));
    let result = match told? {
        SERVING => CheckResult::Success { degraded: watch.degraded },
        _ => CheckResult::Failure { kind: FailureKind::Active, retriable: false },
    };
    Ok((Checked { told: true, ..Checked::of(result) }, Kept::Watch(watch)))
}

/// `None` if the endpoint does not implement the method.
async fn open(target: &Target, settings: &HealthCheck, probe: &GrpcProbe) -> Result<Option<Watch>, ProbeError> {
    let headers = headers(probe);
    let request = parts(target, probe, "/grpc.health.v1.Health/Watch", &headers).http2()?;
    // Nothing else would tell that the endpoint is gone without a word.
    let mut connection = Http2Connection::open_with(target, settings, Some(settings.intervals.healthy)).await?;
    let (head, mut body) = connection.call(request).await?.into_parts();
    let mut status = head.headers.get("grpc-status").cloned();
    let mut received = Vec::new();
    // A server may refuse in the head or right after it.
    while status.is_none() && received.is_empty() {
        match body.frame().await.transpose()?.map(hyper::body::Frame::into_data) {
            Some(Ok(data)) => received.extend_from_slice(&data),
            Some(Err(frame)) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                status = trailers.get("grpc-status").cloned();
                if status.is_none() {
                    break;
                }
            }
            None => break,
        }
    }
    match status.as_ref().map(|status| status.as_bytes()) {
        Some(UNIMPLEMENTED) => Ok(None),
        None if head.status == 200 && !received.is_empty() => {
            let degraded = head.headers.contains_key("x-envoy-degraded");
            Ok(Some(Watch { _connection: connection, body, received, degraded, told: None }))
        }
        Some(other) => {
            let other = String::from_utf8_lossy(other);
            Err(io::Error::other(format!("the call was refused with gRPC status {other}")).into())
        }
        None => Err(io::Error::other(format!("the call was answered with HTTP status {}", head.status)).into()),
    }
}

const UNIMPLEMENTED: &[u8] = b"12";
