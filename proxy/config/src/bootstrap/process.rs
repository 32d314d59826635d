//! Readers of the parts of a bootstrap that concern the process as a whole: admin port, log, extensions.
//!
//! Owns which of them are accepted. Never opens the admin port.

use outrigger_api::pb::envoy::config::accesslog::v3 as accesslog;
use outrigger_api::pb::envoy::config::bootstrap::v3 as bootstrap;
use outrigger_api::pb::envoy::config::bootstrap::v3::bootstrap::{ApplicationLogConfig, application_log_config};
use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::access_loggers::file::v3 as file;
use outrigger_api::pb::envoy::extensions::bootstrap::internal_listener::v3 as internal_listener;
use outrigger_api::pb::google::protobuf::{Any, Struct, value::Kind};
use prost::Message;

use super::{Admin, ApplicationLogFormat};
use crate::accesslog::access_logs;
use crate::address_parse::{address, socket_options};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// The admin port. `None` without an address: then there is none.
pub(super) fn admin(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<bootstrap::Admin>,
) -> Parsed<Option<Admin>> {
    let Some(wire) = wire else { return Ok(None) };
    let at_address = at.field("address");
    let at_options = at.field("socket_options");
    let at_logs = at.field("access_log");
    let at_paths = at.field("allow_paths");
    decide!(wire, at, bootstrap::Admin as "envoy.config.bootstrap.v3.Admin" {
        implemented: access_log, access_log_path, address, socket_options, allow_paths;
        no_effect: profile_path = "there is no CPU profiler",
            ignore_global_conn_limit = "the admin port never counts against the limit";
        unsupported: ;
    });
    let mut loggers = access_log;
    if !access_log_path.is_empty() {
        loggers.insert(0, file_logger(access_log_path));
    }
    let access_logs = access_logs(context, &at_logs, loggers)?;
    let socket_options = self::socket_options(&at_options, socket_options)?;
    let allowed_paths = wire::each(&at_paths, allow_paths, wire::string_matcher)?;
    let Some(wire) = address else { return Ok(None) };
    Ok(Some(Admin { address: self::address(&at_address, wire)?, socket_options, access_logs, allowed_paths }))
}

/// The older way to say where to log, in the newer words.
fn file_logger(path: String) -> accesslog::AccessLog {
    let config = file::FileAccessLog { path, access_log_format: None };
    let typed = Any {
        type_url: "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog".into(),
        value: config.encode_to_vec(),
    };
    accesslog::AccessLog {
        name: "envoy.access_loggers.file".into(),
        filter: None,
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(typed)),
    }
}

/// Extensions of the bootstrap: how much a connection to a listener of this process holds in each direction, in bytes.
/// Such listeners exist without it, too.
pub(super) fn extensions(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Vec<core::TypedExtensionConfig>,
) -> Parsed<usize> {
    let mut buffer_bytes = DEFAULT_INTERNAL_BUFFER_BYTES;
    for (index, wire) in wire.into_iter().enumerate() {
        let item = at.item(index);
        let any =
            only(context, &item, Some(wire), &["envoy.extensions.bootstrap.internal_listener.v3.InternalListener"])?;
        let at = item.field("typed_config");
        if let Some(any) = any {
            let wire: internal_listener::InternalListener = wire::decode(&at, &any)?;
            decide!(wire, at, internal_listener::InternalListener
                as "envoy.extensions.bootstrap.internal_listener.v3.InternalListener" {
                implemented: buffer_size_kb;
                no_effect: ;
                unsupported: ;
            });
            let size = wire::number_within(&at.field("buffer_size_kb"), buffer_size_kb, 1..=MAX_INTERNAL_BUFFER_KIB)?;
            buffer_bytes = size.map_or(DEFAULT_INTERNAL_BUFFER_BYTES, |kib| kib as usize * 1024);
        }
    }
    Ok(buffer_bytes)
}

/// Source: `InternalListener.buffer_size_kb`.
const DEFAULT_INTERNAL_BUFFER_BYTES: usize = 1024 * 1024;
/// Source: `InternalListener.buffer_size_kb`.
const MAX_INTERNAL_BUFFER_KIB: u32 = 8192;

/// All regular expressions are in the syntax of RE2.
pub(super) fn regex_engine(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<core::TypedExtensionConfig>,
) -> Parsed<()> {
    only(context, at, wire, &["envoy.extensions.regex_engines.v3.GoogleRE2"]).map(drop)
}

/// There is one listener manager.
pub(super) fn listener_manager(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<core::TypedExtensionConfig>,
) -> Parsed<()> {
    let accepted = ["envoy.config.bootstrap.v3.ListenerManager", "envoy.config.bootstrap.v3.ValidationListenerManager"];
    only(context, at, wire, &accepted).map(drop)
}

/// The message of an extension, if it is one of the `accepted` types.
fn only(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: Option<core::TypedExtensionConfig>,
    accepted: &[&str],
) -> Parsed<Option<Any>> {
    let Some(core::TypedExtensionConfig { name: _, typed_config }) = wire else { return Ok(None) };
    let at = at.field("typed_config");
    let Some(any) = typed_config else { return Err(at.reject("is required")) };
    // A type that the schema does not know cannot be unwrapped, yet its name can be told.
    let any = wire::extension(context, &at, any)?;
    let name = wire::type_name(&any);
    if accepted.contains(&name) { Ok(Some(any)) } else { Err(at.reject(format!("{name:?} is not supported"))) }
}

/// How log lines look.
pub(super) fn log_format(at: &FieldPath<'_>, wire: ApplicationLogConfig) -> Parsed<Option<ApplicationLogFormat>> {
    let ApplicationLogConfig { log_format } = wire;
    let Some(application_log_config::LogFormat { log_format }) = log_format else { return Ok(None) };
    let at = at.field("log_format");
    use application_log_config::log_format::LogFormat;
    match log_format {
        Some(LogFormat::TextFormat(text)) => Ok(Some(ApplicationLogFormat::Text(text))),
        Some(LogFormat::JsonFormat(Struct { fields })) => {
            let at = at.field("json_format");
            let mut keys = Vec::with_capacity(fields.len());
            for (key, value) in fields {
                match value.kind {
                    Some(Kind::StringValue(pattern)) => keys.push((key, pattern)),
                    _ => return Err(at.key(&key).reject("is not a string")),
                }
            }
            keys.sort();
            Ok(Some(ApplicationLogFormat::Json(keys)))
        }
        None => Err(at.reject("needs one of text_format, json_format")),
    }
}
