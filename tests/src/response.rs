//! A response as a client saw it, of either HTTP version.

use std::io::{Read as _, Write as _};

use serde_json::Value;

/// A whole response.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Headers in the order of the wire, names as sent.
    pub headers: Vec<(String, String)>,
    /// Body without its framing.
    pub body: Vec<u8>,
    /// Trailers.
    pub trailers: Vec<(String, String)>,
    /// Statuses of the interim responses before it.
    pub interim: Vec<u16>,
}

impl Response {
    /// The value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The value of a trailer.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        find(&self.trailers, name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body without its content encodings.
    ///
    /// # Panics
    /// If it is not encoded as it says.
    pub fn content(&self) -> Vec<u8> {
        let mut content = self.body.clone();
        let codings = self.header("content-encoding").unwrap_or_default();
        for coding in codings.split(',').rev().map(str::trim).filter(|_| !self.body.is_empty()) {
            content = decoded(coding, content);
        }
        content
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none: then no upstream of ours answered.
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{error} in the body of {} {:?}: {}", self.status, self.headers, self.text()),
        }
    }

    /// The header of this name that the upstream saw, from the report in the body.
    pub fn upstream_header(&self, name: &str) -> Option<String> {
        let report = self.json();
        let headers = report["headers"].as_array()?;
        headers.iter().find(|pair| pair[0].as_str() == Some(name)).and_then(|pair| Some(pair[1].as_str()?.to_owned()))
    }

    /// The name of the upstream that answered.
    pub fn served_by(&self) -> String {
        self.json()["upstream"].as_str().unwrap_or_default().to_owned()
    }
}

/// `content` without a content coding; as it is if the coding is not known.
///
/// # Panics
/// If it is not encoded so.
pub fn decoded(coding: &str, content: Vec<u8>) -> Vec<u8> {
    let mut plain = Vec::new();
    match coding {
        "gzip" => drop(flate2::read::GzDecoder::new(&content[..]).read_to_end(&mut plain).expect("gzip")),
        "br" => drop(brotli::Decompressor::new(&content[..], 4096).read_to_end(&mut plain).expect("brotli")),
        "zstd" => plain = zstd::stream::decode_all(&content[..]).expect("zstd"),
        _ => return content,
    }
    plain
}

/// `content` in gzip.
pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).expect("memory");
    encoder.finish().expect("memory")
}

/// The first value under a name, whatever its case.
pub fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}
