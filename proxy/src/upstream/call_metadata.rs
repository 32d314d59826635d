//! The headers of a call to a gRPC service.
//!
//! Owns reading the token that a file holds, anew for each call, since whoever issues tokens replaces them before they
//! expire. Never calls anybody.

use std::io;
use std::path::PathBuf;

use outrigger_config::source::{GrpcService, GrpcTarget};
use outrigger_xds::{InvalidMetadata, metadata};
use tonic::metadata::MetadataMap;

/// Why a call cannot be made now.
#[derive(Debug, thiserror::Error)]
pub enum CallMetadataError {
    /// The file with the token.
    #[error("token file {}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What cannot be a header; a token file may hold anything.
    #[error(transparent)]
    Invalid(#[from] InvalidMetadata),
}

/// The headers of the next call to `service`. Source: `GrpcService.initial_metadata`, `GoogleGrpc.call_credentials`.
///
/// # Errors
/// If a token cannot be read or sent.
pub fn call_metadata(service: &GrpcService) -> Result<MetadataMap, CallMetadataError> {
    let GrpcService { target, timeout: _, initial_metadata } = service;
    let fixed = initial_metadata.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let token = match target {
        GrpcTarget::Uri { token_file: Some(path), token_header, token_prefix, .. } => {
            let content =
                std::fs::read(path).map_err(|source| CallMetadataError::Token { path: path.clone(), source })?;
            let mut value = token_prefix.clone().into_bytes();
            value.extend(content.trim_ascii());
            Some((token_header.as_str(), value))
        }
        GrpcTarget::Uri { .. } | GrpcTarget::Cluster { .. } => None,
    };
    let token = token.iter().map(|(name, value)| (*name, value.as_slice()));
    Ok(metadata(fixed.chain(token))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_for_each_call() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let service = GrpcService {
            target: GrpcTarget::Uri {
                target: "unix:/run/xds".into(),
                tls: None,
                token_file: Some(file.clone()),
                token_header: "authorization".into(),
                token_prefix: "Bearer ".into(),
                max_receive_message_bytes: None,
                stat_prefix: "xds".into(),
            },
            timeout: None,
            initial_metadata: vec![("x-a".into(), "b".into())],
        };
        assert!(matches!(call_metadata(&service), Err(CallMetadataError::Token { .. })));
        for token in ["first", "second"] {
            std::fs::write(&file, format!("{token}\n")).unwrap();
            let map = call_metadata(&service).unwrap();
            assert_eq!(map.get("authorization").unwrap(), &format!("Bearer {token}"));
            assert_eq!(map.get("x-a").unwrap(), "b");
        }
        std::fs::write(&file, "two\nlines").unwrap();
        let error = call_metadata(&service).unwrap_err().to_string();
        assert!(!error.contains("lines"), "{error}");
    }
}
