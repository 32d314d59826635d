//! Fetching a key set from its server.
//!
//! Owns what is asked and what counts as a key set. Never keeps keys.

use std::time::Duration;

use http::{Method, StatusCode};
use outrigger_config::http::filters::RemoteJwks;
use outrigger_config::jwks::{Jwks, MAX_BYTES};

use crate::fetch::{Fetch, Fetcher};

/// A key set and its text, or why there is none.
pub(super) type FetchResult = Result<(Jwks, Vec<u8>), String>;

/// Fetches a key set, with retries, within the limit of its settings.
pub(super) async fn fetch(fetcher: &mut Fetcher, settings: &RemoteJwks) -> FetchResult {
    let fetch = Fetch {
        cluster: &settings.cluster,
        method: Method::GET,
        authority: &settings.authority,
        path: &settings.path,
        content_type: None,
        body: Vec::new(),
        timeout: Some(settings.timeout).filter(|limit| *limit > Duration::ZERO),
        retries: settings.retries,
        max_bytes: MAX_BYTES,
    };
    match fetcher.fetch(&fetch).await? {
        (StatusCode::OK, body) => match Jwks::parse(&body) {
            Ok(keys) => Ok((keys, body)),
            Err(error) => Err(error.to_string()),
        },
        (status, _) => Err(format!("answered with {status}")),
    }
}
