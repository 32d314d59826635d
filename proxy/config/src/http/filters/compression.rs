//! Compression libraries (`envoy.extensions.compression`), and which messages are compressed with them.
//!
//! Owns the settings of libraries and of the filters `compressor` and `decompressor`. Never compresses anything.

use std::sync::Arc;

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::compression::brotli::{
    compressor::v3 as brotli, decompressor::v3 as unbrotli,
};
use outrigger_api::pb::envoy::extensions::compression::gzip::{compressor::v3 as gzip, decompressor::v3 as gunzip};
use outrigger_api::pb::envoy::extensions::compression::zstd::{compressor::v3 as zstd, decompressor::v3 as unzstd};
use outrigger_api::pb::envoy::extensions::filters::http::compressor::v3 as pb;
use outrigger_api::pb::envoy::extensions::filters::http::decompressor::v3 as decompressor;
use outrigger_api::pb::envoy::r#type::matcher::v3 as matcher;
use outrigger_api::pb::google::protobuf::{Any, UInt32Value};

use crate::context::Context;
use crate::decide::decide;
use crate::http::header_mutations::is_token_byte;
use crate::matching::StringMatcher;
use crate::network::RuntimeFlag;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// How content is encoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ContentCoding {
    /// RFC 1952.
    Gzip,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

impl ContentCoding {
    /// As it stands in headers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    /// As it stands in stat names.
    pub fn stat_name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "brotli",
            Self::Zstd => "zstd",
        }
    }
}

/// A compression library with its settings.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Compression {
    /// Level 1 to 9; window of `1 << window_bits` bytes, 9 to 15.
    Gzip { level: u32, window_bits: u8 },
    /// Quality 0 to 11; window of `1 << window_bits` bytes, 10 to 24.
    Brotli { quality: u8, window_bits: u8, mode: BrotliMode },
    /// Level 1 to 22.
    Zstd { level: i32, checksum: bool, dictionary: Option<Arc<ZstdDictionary>> },
}

/// What both sides know of the content beforehand. Source: RFC 8878 section 5.
#[derive(Clone, Eq, PartialEq)]
pub struct ZstdDictionary {
    /// By which content says that it needs this one; never 0.
    pub id: u32,
    /// All of it.
    pub bytes: Box<[u8]>,
}

impl std::fmt::Debug for ZstdDictionary {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "ZstdDictionary {{ id: {}, .. }}", self.id)
    }
}

impl ZstdDictionary {
    fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: core::DataSource) -> Parsed<Arc<Self>> {
        let bytes = wire::data_source(context, at, wire)?.bytes;
        let rest = bytes.strip_prefix(&ZSTD_DICTIONARY_MAGIC[..]);
        match rest.and_then(|rest| rest.first_chunk()).map(|id| u32::from_le_bytes(*id)) {
            Some(id @ 1..) => Ok(Arc::new(Self { id, bytes: bytes.into() })),
            _ => Err(at.reject("is not a dictionary of zstd with an id")),
        }
    }
}

/// Source: `Brotli.EncoderMode`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BrotliMode {
    /// For anything.
    Generic,
    /// For UTF-8 text.
    Text,
    /// For fonts.
    Font,
}

impl Compression {
    /// What it makes.
    pub fn coding(&self) -> ContentCoding {
        match self {
            Self::Gzip { .. } => ContentCoding::Gzip,
            Self::Brotli { .. } => ContentCoding::Brotli,
            Self::Zstd { .. } => ContentCoding::Zstd,
        }
    }
}

/// Which messages of one direction are compressed. Source: `Compressor.CommonDirectionConfig`.
#[derive(Clone, Debug)]
pub struct Compressible {
    /// Whether any are.
    pub enabled: RuntimeFlag,
    /// Shorter ones are left alone, in bytes; 30 unless given.
    pub min_content_length: u64,
    /// Only these; those without a content type as well.
    pub content_types: Vec<StringMatcher>,
}

/// Source: `envoy.extensions.filters.http.compressor.v3.Compressor`.
#[derive(Clone, Debug)]
pub struct Compressor {
    /// Name of the library's entry, for stats.
    pub library_name: Box<str>,
    /// The library.
    pub compression: Compression,
    /// Requests; none unless given.
    pub request: Option<Compressible>,
    /// Responses.
    pub response: Compressible,
    /// Stats of responses have `response.` in their names.
    pub names_response: bool,
    /// What is done to entity tags of responses.
    pub etag: EtagRule,
    /// Upstreams do not see what clients accept.
    pub remove_accept_encoding: bool,
    /// Responses with these statuses are left alone.
    pub uncompressible_statuses: Vec<u16>,
    /// Preferred where a client has no preference.
    pub choose_first: bool,
    /// Responses say in a header what was decided.
    pub tells_status: bool,
}

/// What becomes of the entity tag of a response that could be compressed. RFC 9110 section 8.8.3: a strong one is of the bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EtagRule {
    /// Strong ones are removed.
    Remove,
    /// Strong ones become weak.
    Weaken,
    /// Responses with one are left alone.
    Disable,
}

/// What a route says. Source: `CompressorPerRoute`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CompressorOverride {
    /// Nothing is compressed.
    Disabled,
    /// Responses are compressed, if `enabled`; what upstreams see of `accept-encoding` may be another, and so may the
    /// library that compresses.
    Overrides { enabled: bool, remove_accept_encoding: Option<bool>, library: Option<Compression> },
}

/// Which messages of one direction are decompressed. Source: `Decompressor.CommonDirectionConfig`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Decompressible {
    /// Whether any are.
    pub enabled: RuntimeFlag,
    /// Even those whose `cache-control` says that they must not be changed.
    pub ignore_no_transform: bool,
}

/// Source: `envoy.extensions.filters.http.decompressor.v3.Decompressor`.
#[derive(Clone, Debug)]
pub struct Decompressor {
    /// Name of the library's entry, for stats.
    pub library_name: Box<str>,
    /// What is decompressed.
    pub coding: ContentCoding,
    /// Output ends when it is so many times as long as the input.
    pub max_ratio: u64,
    /// What content of zstd may ask for.
    pub dictionaries: Vec<Arc<ZstdDictionary>>,
    /// Requests.
    pub request: Decompressible,
    /// Upstreams are told that this encoding is accepted.
    pub advertise: bool,
    /// Responses.
    pub response: Decompressible,
}

impl Compressor {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::Compressor) -> Parsed<Self> {
        decide!(wire, at, pb::Compressor as "envoy.extensions.filters.http.compressor.v3.Compressor" {
            implemented: content_length, content_type, disable_on_etag_header, remove_accept_encoding_header,
                runtime_enabled, compressor_library, request_direction_config, response_direction_config, choose_first;
            no_effect: ;
            unsupported: ;
        });
        let (library_name, library) = extension(context, &at.field("compressor_library"), compressor_library)?;
        let library_at = at.field("compressor_library");
        let compression = compression(context, &library_at.field("typed_config"), &library)?;
        let request = request_direction_config.map(|pb::compressor::RequestDirectionConfig { common_config }| {
            let at = at.field("request_direction_config");
            compressible(&at.field("common_config"), common_config.unwrap_or_default())
        });
        let names_response = response_direction_config.is_some();
        // The older fields count where the newer message is absent.
        let direction = response_direction_config.unwrap_or_else(|| pb::compressor::ResponseDirectionConfig {
            common_config: Some(pb::compressor::CommonDirectionConfig {
                enabled: runtime_enabled,
                min_content_length: content_length,
                content_type,
                content_type_matcher: Vec::new(),
            }),
            disable_on_etag_header,
            remove_accept_encoding_header,
            ..Default::default()
        });
        let response_at = at.field("response_direction_config");
        decide!(direction, response_at, pb::compressor::ResponseDirectionConfig
            as "envoy.extensions.filters.http.compressor.v3.Compressor.ResponseDirectionConfig" {
            implemented: common_config, disable_on_etag_header, weaken_etag_on_compress,
                remove_accept_encoding_header, uncompressible_response_codes, status_header_enabled;
            no_effect: ;
            unsupported: ;
        });
        let statuses = response_at.field("uncompressible_response_codes");
        Ok(Self {
            library_name,
            compression,
            request: request.transpose()?,
            response: compressible(&response_at.field("common_config"), common_config.unwrap_or_default())?,
            names_response,
            etag: match (weaken_etag_on_compress, disable_on_etag_header) {
                (true, _) => EtagRule::Weaken,
                (false, true) => EtagRule::Disable,
                (false, false) => EtagRule::Remove,
            },
            remove_accept_encoding: remove_accept_encoding_header,
            uncompressible_statuses: wire::each(
                &statuses,
                uncompressible_response_codes,
                |at, code| match u16::try_from(code) {
                    Ok(status @ 200..=599) => Ok(status),
                    _ => Err(at.reject(format!("{code} is not within 200 to 599"))),
                },
            )?,
            choose_first,
            tells_status: status_header_enabled,
        })
    }
}

impl CompressorOverride {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: pb::CompressorPerRoute) -> Parsed<Self> {
        use pb::compressor_per_route::Override;
        let pb::CompressorPerRoute { r#override } = wire;
        match r#override {
            Some(Override::Disabled(true)) => Ok(Self::Disabled),
            Some(Override::Disabled(false)) => Err(at.field("disabled").reject("must be true if it is set")),
            Some(Override::Overrides(wire)) => {
                let at = at.field("overrides");
                decide!(wire, at, pb::CompressorOverrides
                    as "envoy.extensions.filters.http.compressor.v3.CompressorOverrides" {
                    implemented: response_direction_config, compressor_library;
                    no_effect: ;
                    unsupported: ;
                });
                let library_at = at.field("compressor_library");
                let library = match compressor_library {
                    None => None,
                    library => {
                        let (_, library) = extension(context, &library_at, library)?;
                        Some(compression(context, &library_at.field("typed_config"), &library)?)
                    }
                };
                let remove = response_direction_config.as_ref().and_then(|config| config.remove_accept_encoding_header);
                Ok(Self::Overrides {
                    enabled: response_direction_config.is_some(),
                    remove_accept_encoding: remove.map(|flag| flag.value),
                    library,
                })
            }
            None => Err(at.reject("needs one of disabled, overrides")),
        }
    }
}

impl Decompressor {
    pub(super) fn parse(context: &Context<'_>, at: &FieldPath<'_>, wire: decompressor::Decompressor) -> Parsed<Self> {
        decide!(wire, at, decompressor::Decompressor as "envoy.extensions.filters.http.decompressor.v3.Decompressor" {
            implemented: decompressor_library, request_direction_config, response_direction_config;
            no_effect: ;
            unsupported: ;
        });
        let library_at = at.field("decompressor_library");
        let (library_name, library) = extension(context, &library_at, decompressor_library)?;
        if !library_name.bytes().all(is_token_byte) {
            let reason =
                format!("{library_name:?} is a part of a header's name, and has bytes that may not stand there");
            return Err(library_at.field("name").reject(reason));
        }
        let Decompression { coding, max_ratio, dictionaries } =
            decompression(context, &library_at.field("typed_config"), &library)?;
        let request_at = at.field("request_direction_config");
        let response_at = at.field("response_direction_config");
        let decompressor::decompressor::RequestDirectionConfig { common_config, advertise_accept_encoding } =
            request_direction_config.unwrap_or_default();
        let decompressor::decompressor::ResponseDirectionConfig { common_config: response } =
            response_direction_config.unwrap_or_default();
        Ok(Self {
            library_name,
            coding,
            max_ratio,
            dictionaries,
            request: decompressible(&request_at.field("common_config"), common_config.unwrap_or_default())?,
            advertise: advertise_accept_encoding.is_none_or(|flag| flag.value),
            response: decompressible(&response_at.field("common_config"), response.unwrap_or_default())?,
        })
    }
}

fn flag(at: &FieldPath<'_>, wire: Option<core::RuntimeFeatureFlag>) -> Parsed<RuntimeFlag> {
    wire.map_or(Ok(RuntimeFlag::ON), |wire| RuntimeFlag::parse(&at.field("enabled"), wire))
}

fn compressible(at: &FieldPath<'_>, wire: pb::compressor::CommonDirectionConfig) -> Parsed<Compressible> {
    decide!(wire, at, pb::compressor::CommonDirectionConfig
        as "envoy.extensions.filters.http.compressor.v3.Compressor.CommonDirectionConfig" {
        implemented: enabled, min_content_length, content_type, content_type_matcher;
        no_effect: ;
        unsupported: ;
    });
    let exact = |value: String| StringMatcher::Exact { value, ignore_case: true };
    let content_types = match (content_type_matcher.is_empty(), content_type.is_empty()) {
        (false, _) => {
            let read = |at: &FieldPath<'_>, wire: matcher::StringMatcher| wire::string_matcher(at, wire);
            wire::each(&at.field("content_type_matcher"), content_type_matcher, read)?
        }
        (true, false) => content_type.into_iter().map(exact).collect(),
        (true, true) => CONTENT_TYPES.iter().map(|value| exact((*value).to_owned())).collect(),
    };
    Ok(Compressible {
        enabled: flag(at, enabled)?,
        min_content_length: min_content_length.map_or(DEFAULT_MIN_LENGTH, |length| u64::from(length.value)),
        content_types,
    })
}

fn decompressible(
    at: &FieldPath<'_>,
    wire: decompressor::decompressor::CommonDirectionConfig,
) -> Parsed<Decompressible> {
    decide!(wire, at, decompressor::decompressor::CommonDirectionConfig
        as "envoy.extensions.filters.http.decompressor.v3.Decompressor.CommonDirectionConfig" {
        implemented: enabled, ignore_no_transform_header;
        no_effect: ;
        unsupported: ;
    });
    Ok(Decompressible { enabled: flag(at, enabled)?, ignore_no_transform: ignore_no_transform_header })
}

/// Name and configuration of a library.
fn extension(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<core::TypedExtensionConfig>,
) -> Parsed<(Box<str>, Any)> {
    let Some(core::TypedExtensionConfig { name, typed_config }) = wire else { return Err(at.reject("is required")) };
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty"));
    }
    let config_at = at.field("typed_config");
    let Some(any) = typed_config else { return Err(config_at.reject("is required")) };
    Ok((name.into(), wire::extension(context, &config_at, any)?))
}

fn compression(context: &Context<'_>, at: &FieldPath<'_>, any: &Any) -> Parsed<Compression> {
    match wire::type_name(any) {
        "envoy.extensions.compression.gzip.compressor.v3.Gzip" => gzip_compression(at, wire::decode(at, any)?),
        "envoy.extensions.compression.brotli.compressor.v3.Brotli" => brotli_compression(at, wire::decode(at, any)?),
        "envoy.extensions.compression.zstd.compressor.v3.Zstd" => zstd_compression(context, at, wire::decode(at, any)?),
        _ => Err(at.reject(format!("the compression library {:?} is not supported", any.type_url))),
    }
}

fn bits(
    at: &FieldPath<'_>,
    wire: Option<UInt32Value>,
    range: std::ops::RangeInclusive<u32>,
    default: u8,
) -> Parsed<u8> {
    let bits = wire::number_within(at, wire, range)?;
    Ok(bits.and_then(|bits| u8::try_from(bits).ok()).unwrap_or(default))
}

fn gzip_compression(at: &FieldPath<'_>, wire: gzip::Gzip) -> Parsed<Compression> {
    decide!(wire, at, gzip::Gzip as "envoy.extensions.compression.gzip.compressor.v3.Gzip" {
        implemented: compression_level, window_bits;
        no_effect: memory_level = "the library chooses how much memory serves the level",
            compression_strategy = "the library chooses the strategy; what comes out is gzip in any case",
            chunk_size = "output grows as it is needed";
        unsupported: ;
    });
    let level = match compression_level {
        0 => DEFAULT_GZIP_LEVEL,
        level @ 1..=9 => level as u32,
        other => return Err(wire::unknown_enum(&at.field("compression_level"), other)),
    };
    Ok(Compression::Gzip { level, window_bits: bits(&at.field("window_bits"), window_bits, 9..=15, 12)? })
}

fn brotli_compression(at: &FieldPath<'_>, wire: brotli::Brotli) -> Parsed<Compression> {
    decide!(wire, at, brotli::Brotli as "envoy.extensions.compression.brotli.compressor.v3.Brotli" {
        implemented: quality, encoder_mode, window_bits;
        no_effect: input_block_bits = "the library chooses the block",
            chunk_size = "output grows as it is needed",
            disable_literal_context_modeling = "only trades size for speed of decoding";
        unsupported: ;
    });
    use brotli::brotli::EncoderMode;
    let mode = match EncoderMode::try_from(encoder_mode) {
        Ok(EncoderMode::Default | EncoderMode::Generic) => BrotliMode::Generic,
        Ok(EncoderMode::Text) => BrotliMode::Text,
        Ok(EncoderMode::Font) => BrotliMode::Font,
        Err(_) => return Err(wire::unknown_enum(&at.field("encoder_mode"), encoder_mode)),
    };
    Ok(Compression::Brotli {
        quality: bits(&at.field("quality"), quality, 0..=11, 3)?,
        window_bits: bits(&at.field("window_bits"), window_bits, 10..=24, 18)?,
        mode,
    })
}

fn zstd_compression(context: &Context<'_>, at: &FieldPath<'_>, wire: zstd::Zstd) -> Parsed<Compression> {
    decide!(wire, at, zstd::Zstd as "envoy.extensions.compression.zstd.compressor.v3.Zstd" {
        implemented: compression_level, enable_checksum, dictionary;
        no_effect: strategy = "the strategy is that of the level; what comes out is zstd in any case",
            chunk_size = "output grows as it is needed";
        unsupported: ;
    });
    let level = match compression_level.map_or(0, |level| level.value) {
        0 => DEFAULT_ZSTD_LEVEL,
        level => i32::try_from(level).unwrap_or(i32::MAX).min(MAX_ZSTD_LEVEL),
    };
    let at = at.field("dictionary");
    let dictionary = dictionary.map(|wire| ZstdDictionary::parse(context, &at, wire)).transpose()?;
    Ok(Compression::Zstd { level, checksum: enable_checksum, dictionary })
}

/// What a library is told.
struct Decompression {
    coding: ContentCoding,
    max_ratio: u64,
    dictionaries: Vec<Arc<ZstdDictionary>>,
}

fn decompression(context: &Context<'_>, at: &FieldPath<'_>, any: &Any) -> Parsed<Decompression> {
    let of = |coding, max_ratio| Decompression { coding, max_ratio, dictionaries: Vec::new() };
    match wire::type_name(any) {
        "envoy.extensions.compression.gzip.decompressor.v3.Gzip" => {
            let wire = wire::decode::<gunzip::Gzip>(at, any)?;
            decide!(wire, at, gunzip::Gzip as "envoy.extensions.compression.gzip.decompressor.v3.Gzip" {
                implemented: max_inflate_ratio;
                no_effect: window_bits = "every window that gzip may have is read",
                    chunk_size = "output grows as it is needed";
                unsupported: ;
            });
            let ratio = wire::number_within(&at.field("max_inflate_ratio"), max_inflate_ratio, 1..=1032)?;
            Ok(of(ContentCoding::Gzip, ratio.map_or(DEFAULT_RATIO, u64::from)))
        }
        "envoy.extensions.compression.brotli.decompressor.v3.Brotli" => {
            let wire = wire::decode::<unbrotli::Brotli>(at, any)?;
            decide!(wire, at, unbrotli::Brotli as "envoy.extensions.compression.brotli.decompressor.v3.Brotli" {
                implemented: ;
                no_effect: disable_ring_buffer_reallocation = "the library chooses when its window grows",
                    chunk_size = "output grows as it is needed";
                unsupported: ;
            });
            Ok(of(ContentCoding::Brotli, DEFAULT_RATIO))
        }
        "envoy.extensions.compression.zstd.decompressor.v3.Zstd" => {
            let wire = wire::decode::<unzstd::Zstd>(at, any)?;
            decide!(wire, at, unzstd::Zstd as "envoy.extensions.compression.zstd.decompressor.v3.Zstd" {
                implemented: dictionaries;
                no_effect: chunk_size = "output grows as it is needed";
                unsupported: ;
            });
            let read = |at: &FieldPath<'_>, wire: core::DataSource| ZstdDictionary::parse(context, at, wire);
            let dictionaries = wire::each(&at.field("dictionaries"), dictionaries, read)?;
            Ok(Decompression { dictionaries, ..of(ContentCoding::Zstd, DEFAULT_RATIO) })
        }
        _ => Err(at.reject(format!("the decompression library {:?} is not supported", any.type_url))),
    }
}

const DEFAULT_MIN_LENGTH: u64 = 30;
const DEFAULT_GZIP_LEVEL: u32 = 6;
/// RFC 8878 section 5.
const ZSTD_DICTIONARY_MAGIC: [u8; 4] = 0xEC30_A437_u32.to_le_bytes();
const DEFAULT_ZSTD_LEVEL: i32 = 3;
const MAX_ZSTD_LEVEL: i32 = 22;
/// Source: `Gzip.max_inflate_ratio`.
const DEFAULT_RATIO: u64 = 100;
/// What is compressed by default. Source: `CommonDirectionConfig.content_type`, with the synonyms that Envoy knows.
const CONTENT_TYPES: [&str; 18] = [
    "text/html",
    "text/plain",
    "text/css",
    "application/javascript",
    "application/x-javascript",
    "text/javascript",
    "text/x-javascript",
    "text/ecmascript",
    "text/js",
    "text/jscript",
    "text/x-js",
    "application/ecmascript",
    "application/x-json",
    "application/xml",
    "application/json",
    "image/svg+xml",
    "text/xml",
    "application/xhtml+xml",
];

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::context::NoEnvironment;

    fn library(type_name: &str, value: Vec<u8>) -> Option<core::TypedExtensionConfig> {
        let type_url = format!("type.googleapis.com/envoy.extensions.compression.{type_name}");
        Some(core::TypedExtensionConfig { name: "lib".into(), typed_config: Some(Any { type_url, value }) })
    }

    fn read(wire: pb::Compressor) -> Result<Compressor, String> {
        let context = Context::new(&NoEnvironment);
        Compressor::parse(&context, &FieldPath::resource("listener", "l"), wire).map_err(|error| error.to_string())
    }

    fn gzip_with(settings: gzip::Gzip) -> pb::Compressor {
        let compressor_library = library("gzip.compressor.v3.Gzip", settings.encode_to_vec());
        pb::Compressor { compressor_library, ..Default::default() }
    }

    #[test]
    fn defaults_are_envoys() {
        let read = read(gzip_with(gzip::Gzip::default())).unwrap();
        assert_eq!(read.compression, Compression::Gzip { level: 6, window_bits: 12 });
        assert!(read.request.is_none() && !read.names_response && read.response.enabled == RuntimeFlag::ON);
        assert_eq!((read.response.min_content_length, read.etag), (30, EtagRule::Remove));
        assert!(read.response.content_types.iter().any(|matcher| matcher.matches(b"Text/HTML")));
    }

    #[test]
    fn older_fields_count_where_newer_ones_are_absent() {
        let older = pb::Compressor { disable_on_etag_header: true, ..gzip_with(gzip::Gzip::default()) };
        assert_eq!(read(older.clone()).unwrap().etag, EtagRule::Disable);
        let newer = Some(pb::compressor::ResponseDirectionConfig::default());
        assert_eq!(read(pb::Compressor { response_direction_config: newer, ..older }).unwrap().etag, EtagRule::Remove);
    }

    #[test]
    fn what_no_library_does_is_refused() {
        let window = gzip::Gzip { window_bits: Some(UInt32Value { value: 16 }), ..Default::default() };
        let specifier = Some(core::data_source::Specifier::InlineString("what one likes".to_owned()));
        let dictionary = Some(core::DataSource { specifier, ..Default::default() });
        let dictionary = zstd::Zstd { dictionary, ..Default::default() };
        for (wire, expected) in [
            (pb::Compressor::default(), "compressor_library: is required"),
            (gzip_with(window), "compressor_library.typed_config.window_bits: 16 is not within 9 to 15"),
            (
                pb::Compressor {
                    compressor_library: library("zstd.compressor.v3.Zstd", dictionary.encode_to_vec()),
                    ..Default::default()
                },
                "compressor_library.typed_config.dictionary: is not a dictionary of zstd with an id",
            ),
            (
                pb::Compressor { compressor_library: library("lz4.Lz4", Vec::new()), ..Default::default() },
                "compressor_library.typed_config: the compression library \
                 \"type.googleapis.com/envoy.extensions.compression.lz4.Lz4\" is not supported",
            ),
        ] {
            assert_eq!(read(wire).unwrap_err(), format!("listener \"l\": {expected}"));
        }
    }
}
