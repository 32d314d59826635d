//! The compressor filter: compresses the bodies of responses, and of requests where it is told to.
//!
//! Owns which messages are compressed and the headers that tell of it. The choice among several compressors is made in
//! `outrigger_policy::accept_encoding`.

use std::sync::Arc;

use outrigger_config::http::RouteFilterConfig;
use outrigger_config::http::filters::{
    Compressible, Compression, Compressor as Settings, CompressorOverride, ContentCoding, EtagRule,
};
use outrigger_policy::accept_encoding::{Choice, Offer, choose};

use super::body::BodyFilter;
use super::{Exchange, HttpFilter, Maker, Verdict};
use crate::http::compression::{Encoder, Prepared};
use crate::http::headers::{HeaderId, Headers};
use crate::http::message::joined;
use crate::network::holds;
use crate::scope;
use crate::stats::Counter;

scope! {
    /// Stats of one direction (`http.<prefix>.compressor.<library>.<library stat prefix>.*`).
    pub struct CompressionStats {
        compressed: Counter,
        content_length_too_small: Counter,
        not_compressed: Counter,
        total_compressed_bytes: Counter,
        total_uncompressed_bytes: Counter,
    }
}

scope! {
    /// Stats of the choice (`http.<prefix>.compressor.<library>.<library stat prefix>.*`).
    pub struct ChoiceStats {
        header_compressor_overshadowed: Counter,
        header_compressor_used: Counter,
        header_identity: Counter,
        header_not_valid: Counter,
        header_wildcard: Counter,
        no_accept_header: Counter,
        not_compressed_etag: Counter,
    }
}

/// The filter.
pub struct Compressor {
    settings: Arc<Settings>,
    request: Arc<CompressionStats>,
    response: Arc<CompressionStats>,
    choice: Arc<ChoiceStats>,
    prepared: Prepared,
}

/// What the filter keeps for a request; the compressors of a chain know of each other by it.
#[derive(Default)]
struct Asked {
    settings: Option<Arc<Settings>>,
    /// What the library makes, if that is not what the settings say.
    coding: Option<ContentCoding>,
    accept_encoding: Option<String>,
}

impl Compressor {
    /// A filter with its stats.
    pub fn new(settings: &Arc<Settings>, maker: &Maker<'_>) -> Self {
        let name = format!("compressor.{}.{}", settings.library_name, settings.compression.coding().stat_name());
        Self {
            request: maker.stats(&format!("{name}.request")),
            response: maker.stats(&if settings.names_response { format!("{name}.response") } else { name.clone() }),
            choice: maker.stats(&name),
            prepared: Prepared::default(),
            settings: Arc::clone(settings),
        }
    }

    fn of_route(exchange: &Exchange<'_, '_, '_>) -> Option<CompressorOverride> {
        exchange.route_configs().find_map(|config| match config {
            RouteFilterConfig::Compressor(said) => Some(said.clone()),
            _ => None,
        })
    }

    fn compresses_responses(&self, said: Option<&CompressorOverride>, exchange: &Exchange<'_, '_, '_>) -> bool {
        match said {
            Some(CompressorOverride::Disabled) => false,
            Some(CompressorOverride::Overrides { enabled: true, .. }) => true,
            _ => holds(&self.settings.response.enabled, exchange.runtime()),
        }
    }

    /// Whether the request body is compressed.
    fn compresses_request(&self, said: Option<&CompressorOverride>, exchange: &Exchange<'_, '_, '_>) -> bool {
        let head = exchange.head();
        let Some(rule) = &self.settings.request else { return false };
        !exchange.has_no_body()
            && said != Some(&CompressorOverride::Disabled)
            && holds(&rule.enabled, exchange.runtime())
            && head.protocol().is_empty()
            && is_long_enough(rule, &head.headers, &self.request)
            && has_content_type(rule, &head.headers)
            && head.headers.get_by_name("content-encoding").is_none()
    }

    /// Whether this response could be compressed if the client wants it.
    fn is_compressible(&self, exchange: &Exchange<'_, '_, '_>) -> bool {
        let response = exchange.response();
        let headers = &response.headers;
        if response.status == 101 || !has_content_type(&self.settings.response, headers) || has_no_transform(headers) {
            return false;
        }
        if self.settings.etag == EtagRule::Disable && headers.get_by_name("etag").is_some() {
            self.choice.not_compressed_etag.increment();
            return false;
        }
        headers.get_by_name("content-encoding").is_none()
            && !self.settings.uncompressible_statuses.contains(&response.status)
    }

    /// Whether it is this compressor that the client wants.
    fn is_chosen(&self, own: ContentCoding, exchange: &mut Exchange<'_, '_, '_>) -> bool {
        let stats = &self.choice;
        let accepted = exchange.known_state::<Asked>().and_then(|asked| asked.accept_encoding.clone());
        let Some(accepted) = accepted else {
            stats.no_accept_header.increment();
            return false;
        };
        let headers = &exchange.response().headers;
        let mut offers: Vec<Offer> = Vec::new();
        let asked = exchange.states_of::<Asked>();
        for (settings, coding) in asked.filter_map(|asked| Some((asked.settings.as_ref()?, asked.coding))) {
            let coding = coding.unwrap_or_else(|| settings.compression.coding()).name();
            if has_content_type(&settings.response, headers) && offers.iter().all(|offer| offer.coding != coding) {
                offers.push(Offer { coding, choose_first: settings.choose_first });
            }
        }
        let choice = choose(&accepted, &offers);
        let chosen = choice.coding() == Some(own.name());
        match choice {
            Choice::Named(_) if chosen => stats.header_compressor_used.increment(),
            Choice::Named(_) => stats.header_compressor_overshadowed.increment(),
            Choice::Any(_) => stats.header_wildcard.increment(),
            Choice::Identity => stats.header_identity.increment(),
            Choice::NotValid => stats.header_not_valid.increment(),
        }
        chosen
    }

    fn encoder(&self, library: &Compression, stats: &Arc<CompressionStats>) -> Option<Box<Compressing>> {
        match Encoder::new(library, &self.prepared) {
            Ok(encoder) => Some(Box::new(Compressing { encoder: Some(encoder), stats: Arc::clone(stats) })),
            Err(error) => {
                tracing::warn!("a body is not compressed: {error}");
                None
            }
        }
    }

    /// What compresses on this route.
    fn library<'a>(&'a self, said: Option<&'a CompressorOverride>) -> &'a Compression {
        match said {
            Some(CompressorOverride::Overrides { library: Some(library), .. }) => library,
            _ => &self.settings.compression,
        }
    }

    /// Why this response is not compressed, whatever the client accepts; in the order that serves whoever reads of it.
    fn objection(&self, exchange: &Exchange<'_, '_, '_>) -> Option<Objection> {
        let response = exchange.response();
        let headers = &response.headers;
        let is_final = headers.get_by_name("content-encoding").is_some() || has_no_transform(headers);
        if response.status == 101 || is_final {
            return Some(Objection::Untold);
        }
        if !is_long_enough(&self.settings.response, headers, &self.response) {
            return Some(Objection::ContentLengthTooSmall);
        }
        if !has_content_type(&self.settings.response, headers) {
            return Some(Objection::ContentTypeNotAllowed);
        }
        if self.settings.etag == EtagRule::Disable && headers.get_by_name("etag").is_some() {
            self.choice.not_compressed_etag.increment();
            return Some(Objection::EtagNotAllowed);
        }
        self.settings.uncompressible_statuses.contains(&response.status).then_some(Objection::StatusCodeNotAllowed)
    }
}

impl HttpFilter for Compressor {
    fn request(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let said = Self::of_route(exchange);
        let said = said.as_ref();
        let accepted = joined(&exchange.head().headers, ACCEPT_ENCODING);
        let accept_encoding = accepted.map(|value| String::from_utf8_lossy(&value).into_owned());
        let library = self.library(said);
        *exchange.state::<Asked>() =
            Asked { settings: Some(Arc::clone(&self.settings)), coding: Some(library.coding()), accept_encoding };
        if self.compresses_responses(said, exchange) {
            let remove = match said {
                Some(CompressorOverride::Overrides { remove_accept_encoding: Some(remove), .. }) => *remove,
                _ => self.settings.remove_accept_encoding,
            };
            if remove {
                exchange.head_mut().headers.remove_by_name(ACCEPT_ENCODING);
            }
        }
        let encoder = if self.compresses_request(said, exchange) { self.encoder(library, &self.request) } else { None };
        match encoder {
            Some(encoder) => {
                self.request.compressed.increment();
                exchange.transform_request(encoder);
                exchange.head_mut().headers.set_by_name("content-encoding", library.coding().name().as_bytes());
            }
            None => self.request.not_compressed.increment(),
        }
        Verdict::Continue
    }

    fn response(&self, exchange: &mut Exchange<'_, '_, '_>) -> Verdict {
        let said = Self::of_route(exchange);
        let said = said.as_ref();
        let library = self.library(said);
        let stats = &self.response;
        let enabled = self.compresses_responses(said, exchange);
        let tells = enabled && self.settings.tells_status && !exchange.response_has_no_body();
        let objection = if tells { self.objection(exchange) } else { None };
        if let Some(objection) = objection {
            stats.not_compressed.increment();
            objection.tell(library.coding(), &mut exchange.response_mut().headers);
            return Verdict::Continue;
        }
        let long_enough =
            enabled && (tells || is_long_enough(&self.settings.response, &exchange.response().headers, stats));
        let compressible = tells || (long_enough && self.is_compressible(exchange));
        let chosen = long_enough && !exchange.response_has_no_body() && self.is_chosen(library.coding(), exchange);
        let encoder = if chosen && compressible { self.encoder(library, stats) } else { None };
        match encoder {
            Some(encoder) => {
                stats.compressed.increment();
                if tells {
                    tell_compressed(library.coding(), &mut exchange.response_mut().headers);
                }
                exchange.transform_response(encoder);
                let headers = &mut exchange.response_mut().headers;
                weaken_etag(headers, self.settings.etag);
                headers.set_by_name("content-encoding", library.coding().name().as_bytes());
            }
            None => stats.not_compressed.increment(),
        }
        // Whoever stores the response must know that others may get another one.
        if compressible {
            vary_by_accept_encoding(&mut exchange.response_mut().headers);
        }
        Verdict::Continue
    }
}

/// Why a response is not compressed. Source: `status_header_enabled`, and the words that Envoy has for it.
#[derive(Clone, Copy, Debug)]
enum Objection {
    ContentLengthTooSmall,
    ContentTypeNotAllowed,
    EtagNotAllowed,
    StatusCodeNotAllowed,
    /// One that the header does not tell of: nobody may compress it, or somebody has.
    Untold,
}

impl Objection {
    fn tell(self, coding: ContentCoding, headers: &mut Headers) {
        if !matches!(self, Self::Untold) {
            headers.append(STATUS.as_bytes(), format!("{};{self:?}", coding.name()).as_bytes());
        }
    }
}

fn tell_compressed(coding: ContentCoding, headers: &mut Headers) {
    let coding = coding.name();
    // As in Envoy, also where that is not known.
    let length = headers.get_str(HeaderId::ContentLength).unwrap_or_default();
    let status = format!("{coding};Compressed;OriginalLength={length}");
    headers.append(STATUS.as_bytes(), status.as_bytes());
}

fn is_long_enough(rule: &Compressible, headers: &Headers, stats: &CompressionStats) -> bool {
    let Some(length) = headers.get_str(HeaderId::ContentLength) else { return true };
    let enough = length.parse().is_ok_and(|length: u64| length >= rule.min_content_length);
    if !enough {
        stats.content_length_too_small.increment();
    }
    enough
}

fn has_content_type(rule: &Compressible, headers: &Headers) -> bool {
    let Some(value) = headers.get(HeaderId::ContentType) else { return true };
    let bare = value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    bare.is_empty() || rule.content_types.iter().any(|matcher| matcher.matches(bare))
}

/// Whether `cache-control` says that nobody may change the content.
pub(super) fn has_no_transform(headers: &Headers) -> bool {
    let directives = headers.get_all_by_name("cache-control").flat_map(|value| value.split(|byte| *byte == b','));
    directives.map(<[u8]>::trim_ascii).any(|directive| directive.eq_ignore_ascii_case(b"no-transform"))
}

/// RFC 9110 section 8.8.3: what is compressed has other bytes, so a strong entity tag is wrong for it.
fn weaken_etag(headers: &mut Headers, rule: EtagRule) {
    let Some(tag) = headers.get_by_name("etag") else { return };
    let is_strong = tag.len() > 2 && !tag[..2].eq_ignore_ascii_case(b"w/");
    if !is_strong {
        return;
    }
    match rule {
        EtagRule::Weaken => {
            let weak = [b"W/", tag].concat();
            headers.set_by_name("etag", &weak);
        }
        EtagRule::Remove | EtagRule::Disable => drop(headers.remove_by_name("etag")),
    }
}

fn vary_by_accept_encoding(headers: &mut Headers) {
    let Some(value) = joined(headers, "vary") else {
        return headers.append(b"vary", b"Accept-Encoding");
    };
    // Compared as it stands, as in Envoy.
    if value.split(|byte| *byte == b',').any(|name| name.trim_ascii() == b"Accept-Encoding") {
        return;
    }
    let longer = [&value[..], b", Accept-Encoding"].concat();
    headers.set_by_name("vary", &longer);
}

/// A body on its way through a compressor.
struct Compressing {
    encoder: Option<Encoder>,
    stats: Arc<CompressionStats>,
}

impl Compressing {
    fn count(&self, counter: fn(&CompressionStats) -> &Counter, bytes: usize) {
        counter(&self.stats).add(bytes as u64);
    }
}

impl BodyFilter for Compressing {
    fn data(&mut self, input: Vec<u8>) -> Vec<u8> {
        self.count(|stats| &stats.total_uncompressed_bytes, input.len());
        let Some(encoder) = &mut self.encoder else { return Vec::new() };
        let compressed = encoder.write(&input).unwrap_or_else(|error| {
            tracing::warn!("a body was broken off: it could not be compressed: {error}");
            self.encoder = None;
            Vec::new()
        });
        self.count(|stats| &stats.total_compressed_bytes, compressed.len());
        compressed
    }

    fn end(&mut self, _trailers: &mut Option<Headers>) -> Vec<u8> {
        let rest = self.encoder.take().and_then(|encoder| encoder.finish().ok()).unwrap_or_default();
        self.count(|stats| &stats.total_compressed_bytes, rest.len());
        rest
    }
}

const ACCEPT_ENCODING: &str = "accept-encoding";
const STATUS: &str = "x-envoy-compression-status";

#[cfg(test)]
mod tests {
    use super::*;

    fn after(name: &str, value: Option<&str>, change: impl FnOnce(&mut Headers)) -> Option<String> {
        let mut headers = Headers::default();
        if let Some(value) = value {
            headers.append(name.as_bytes(), value.as_bytes());
        }
        change(&mut headers);
        headers.get_by_name(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    #[test]
    fn strong_entity_tags_do_not_stay() {
        for (tag, rule, expected) in [
            ("\"a\"", EtagRule::Remove, None),
            ("W/\"a\"", EtagRule::Remove, Some("W/\"a\"")),
            ("\"a\"", EtagRule::Weaken, Some("W/\"a\"")),
            ("w/\"a\"", EtagRule::Weaken, Some("w/\"a\"")),
        ] {
            assert_eq!(after("etag", Some(tag), |headers| weaken_etag(headers, rule)).as_deref(), expected, "{tag}");
        }
    }

    #[test]
    fn vary_names_accept_encoding_once() {
        for (vary, expected) in [
            (None, "Accept-Encoding"),
            (Some("Origin"), "Origin, Accept-Encoding"),
            (Some("Origin, Accept-Encoding"), "Origin, Accept-Encoding"),
        ] {
            assert_eq!(after("vary", vary, vary_by_accept_encoding).as_deref(), Some(expected));
        }
    }
}
