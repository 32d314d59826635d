//! Reads what describes this process to OpenTelemetry: its name, and what resource detectors find.
//!
//! Owns the detectors. Files and variables are read once, when the configuration comes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use outrigger_api::pb::envoy::config::core::v3 as core;
use outrigger_api::pb::envoy::extensions::tracers::opentelemetry::resource_detectors::v3 as detectors;

use crate::context::{Context, Environment};
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// The attributes of the resource, sorted; what a later detector finds replaces what was known before.
pub(crate) fn resource(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    service_name: Option<String>,
    wire: Vec<core::TypedExtensionConfig>,
) -> Parsed<Vec<(String, String)>> {
    let mut attributes = BTreeMap::new();
    attributes.extend(service_name.map(|name| ("service.name".to_owned(), name)));
    for (index, wire) in wire.into_iter().enumerate() {
        detect(context, &at.item(index), wire, &mut attributes)?;
    }
    Ok(attributes.into_iter().collect())
}

fn detect(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: core::TypedExtensionConfig,
    into: &mut BTreeMap<String, String>,
) -> Parsed<()> {
    let core::TypedExtensionConfig { name: _, typed_config } = wire;
    let at = at.field("typed_config");
    let Some(any) = typed_config else { return Err(at.reject("is required")) };
    let any = wire::extension(context, &at, any)?;
    match wire::type_name(&any) {
        "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig" => {
            let detectors::EnvironmentResourceDetectorConfig {} = wire::decode(&at, &any)?;
            into.extend(from_variable(&at, context.environment().variable(VARIABLE).as_deref().unwrap_or(""))?);
        }
        "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig" => {
            let detectors::StaticConfigResourceDetectorConfig { attributes } = wire::decode(&at, &any)?;
            into.extend(attributes);
        }
        "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.DynatraceResourceDetectorConfig" => {
            let detectors::DynatraceResourceDetectorConfig {} = wire::decode(&at, &any)?;
            into.extend(from_enrichment(context.environment()));
        }
        _ => return Err(at.reject(format!("the resource detector {:?} is not supported", any.type_url))),
    }
    Ok(())
}

/// `key=value,key=value`. Source: OpenTelemetry's resource SDK.
fn from_variable(at: &FieldPath<'_>, text: &str) -> Parsed<Vec<(String, String)>> {
    let pairs = text.split(',').filter(|pair| !pair.is_empty()).map(|pair| {
        let parts = pair.split_once('=').filter(|(key, value)| !key.is_empty() && !value.is_empty());
        let (key, value) =
            parts.ok_or_else(|| at.reject(format!("{VARIABLE}={text:?} is not a list of key=value pairs")))?;
        Ok((key.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

/// What Dynatrace's agents leave on hosts, where they are installed.
fn from_enrichment(environment: &dyn Environment) -> Vec<(String, String)> {
    let read = |path: &Path| {
        let bytes = environment.read_file(path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    // The first file holds nothing but the path of the one that counts.
    let named = PathBuf::from(read(Path::new(ENRICHMENT_POINTER)).trim());
    let files = [named, PathBuf::from(ENRICHMENT_METADATA), PathBuf::from(ENRICHMENT_HOST)];
    let texts = files.iter().filter(|path| !path.as_os_str().is_empty()).map(|path| read(path));
    let pairs = |text: String| {
        let lines = text.lines().filter_map(|line| line.trim().split_once('='));
        lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect::<Vec<_>>()
    };
    texts.flat_map(pairs).collect()
}

const VARIABLE: &str = "OTEL_RESOURCE_ATTRIBUTES";
/// Source: Dynatrace's documentation of enrichment files.
const ENRICHMENT_POINTER: &str = "dt_metadata_e617c525669e072eebe3d0f08212e8f2.properties";
const ENRICHMENT_METADATA: &str = "/var/lib/dynatrace/enrichment/dt_metadata.properties";
const ENRICHMENT_HOST: &str = "/var/lib/dynatrace/enrichment/dt_host_metadata.properties";
