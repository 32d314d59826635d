//! The decompressor filter: decompresses the bodies of requests and responses.
//!
//! Owns which messages are decompressed and the headers that tell of it. Never compresses.

use std::sync::Arc;

use outrigger_config::http::filters::{ContentCoding, Decompressible, Decompressor as Settings};

use super::body::BodyFilter;
use super::compressor::has_no_transform;
use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::compression::{Decoder, Dictionaries};
use crate::http::headers::Headers;
use crate::http::message::joined;
use crate::network::holds;
use crate::scope;

scope! {
    /// Stats of one direction (`http.<prefix>.decompressor.<library>.<library stat prefix>.<direction>.*`).
    pub struct DecompressionStats {
        decompressed: Counter,
        not_decompressed: Counter,
        total_compressed_bytes: Counter,
        total_uncompressed_bytes: Counter,
    }
}

scope! {
    /// Stats of gzip (`http.<prefix>.decompressor.<library>.gzip.decompressor_library.*`).
    pub struct GzipStats {
        zlib_data_error: Counter,
    }
}

/// The filter.
pub struct Decompressor {
    settings: Arc<Settings>,
    request: Arc<DecompressionStats>,
    response: Arc<DecompressionStats>,
    gzip: Option<Arc<GzipStats>>,
    dictionaries: Dictionaries,
}

impl Decompressor {
    /// A filter with its stats.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        let name = format!("decompressor.{}.{}", settings.library_name, settings.coding.stat_name());
        let is_gzip = settings.coding == ContentCoding::Gzip;
        Self {
            request: maker.stats(&format!("{name}.request")),
            response: maker.stats(&format!("{name}.response")),
            gzip: is_gzip.then(|| maker.stats(&format!("{name}.decompressor_library"))),
            dictionaries: Dictionaries::new(&settings.dictionaries),
            settings: Arc::clone(settings),
        }
    }

    /// What decompresses a message with these headers, if it is to be.
    fn decoder(
        &self,
        rule: &Decompressible,
        headers: &Headers,
        stats: &Arc<DecompressionStats>,
        exchange: &Exchange<'_, '_, '_>,
    ) -> Option<Box<Decompressing>> {
        let outermost = outermost(headers);
        let decoder = if holds(&rule.enabled, exchange.runtime())
            && (rule.ignore_no_transform || !has_no_transform(headers))
            && outermost.is_some_and(|coding| coding.eq_ignore_ascii_case(self.settings.coding.name()))
        {
            Decoder::new(self.settings.coding, self.settings.max_ratio, &self.dictionaries).ok()
        } else {
            None
        };
        let Some(decoder) = decoder else {
            stats.not_decompressed.increment();
            return None;
        };
        stats.decompressed.increment();
        Some(Box::new(Decompressing {
            decoder: Some(decoder),
            stats: Arc::clone(stats),
            gzip: self.gzip.clone(),
            settings: Arc::clone(&self.settings),
            bytes: (0, 0),
        }))
    }
}

impl HttpFilter for Decompressor {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let settings = &self.settings;
        if settings.advertise && holds(&settings.response.enabled, exchange.runtime()) {
            let headers = &mut exchange.head_mut().headers;
            let accepted = match joined(headers, "accept-encoding") {
                Some(value) => [&value[..], b",", settings.coding.name().as_bytes()].concat(),
                None => settings.coding.name().as_bytes().to_vec(),
            };
            headers.set_by_name("accept-encoding", &accepted);
        }
        if !exchange.has_no_body()
            && let Some(decoder) = self.decoder(&settings.request, &exchange.head().headers, &self.request, exchange)
        {
            exchange.transform_request(decoder);
            strip(&mut exchange.head_mut().headers);
        }
        Verdict::Continue
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let rule = &self.settings.response;
        if exchange.response_has_no_body() {
            return Verdict::Continue;
        }
        if let Some(decoder) = self.decoder(rule, &exchange.response().headers, &self.response, exchange) {
            exchange.transform_response(decoder);
            strip(&mut exchange.response_mut().headers);
        }
        Verdict::Continue
    }
}

/// The encoding that is named first.
fn outermost(headers: &Headers) -> Option<&str> {
    let list = std::str::from_utf8(headers.get_by_name("content-encoding")?).ok()?;
    Some(list.split(',').next()?.trim())
}

/// Takes the encoding that is named first off the list.
fn strip(headers: &mut Headers) {
    let Some(list) = joined(headers, "content-encoding") else { return };
    match list.iter().position(|byte| *byte == b',') {
        Some(comma) => {
            let rest = list[comma + 1..].trim_ascii().to_vec();
            headers.set_by_name("content-encoding", &rest);
        }
        None => drop(headers.remove_by_name("content-encoding")),
    }
}

/// A body on its way through a decompressor.
struct Decompressing {
    decoder: Option<Decoder>,
    stats: Arc<DecompressionStats>,
    gzip: Option<Arc<GzipStats>>,
    settings: Arc<Settings>,
    /// Compressed and not.
    bytes: (u64, u64),
}

impl BodyFilter for Decompressing {
    fn data(&mut self, input: Vec<u8>) -> Vec<u8> {
        self.stats.total_compressed_bytes.add(input.len() as u64);
        self.bytes.0 += input.len() as u64;
        let Some(decoder) = &mut self.decoder else { return Vec::new() };
        let (content, result) = decoder.write(&input);
        if let Err(error) = result {
            // As in Envoy, the rest of the body is dropped.
            tracing::debug!("a body was broken off: it could not be decompressed: {error}");
            if let Some(stats) = &self.gzip {
                stats.zlib_data_error.increment();
            }
            self.decoder = None;
        }
        self.stats.total_uncompressed_bytes.add(content.len() as u64);
        self.bytes.1 += content.len() as u64;
        content
    }

    fn end(&mut self, trailers: &mut Option<Headers>) -> Vec<u8> {
        let trailers = trailers.get_or_insert_default();
        let library = self.settings.library_name.to_ascii_lowercase();
        for (what, bytes) in [("compressed", self.bytes.0), ("uncompressed", self.bytes.1)] {
            let name = format!("x-envoy-decompressor-{library}-{what}-bytes");
            trailers.append(name.as_bytes(), bytes.to_string().as_bytes());
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_encoding_is_taken_off() {
        for (list, first, rest) in
            [("gzip", Some("gzip"), None), ("gzip, br", Some("gzip"), Some("br")), ("", Some(""), None)]
        {
            let mut headers = Headers::default();
            headers.append(b"content-encoding", list.as_bytes());
            assert_eq!(outermost(&headers), first);
            strip(&mut headers);
            assert_eq!(headers.get_by_name("content-encoding"), rest.map(str::as_bytes));
        }
    }
}
