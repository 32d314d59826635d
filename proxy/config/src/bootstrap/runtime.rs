//! Reader of runtime layers and of their values.
//!
//! Owns how a struct becomes flat keys, and what a value can be read as. Never decides which layer wins.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use outrigger_api::pb::envoy::config::bootstrap::v3 as bootstrap;
use outrigger_api::pb::envoy::service::runtime::v3 as service;
use outrigger_api::pb::google::protobuf::{Struct, Value, value::Kind};

use super::parse::{Rejections, unique};
use super::{RuntimeLayer, RuntimeLayerKind, RuntimeValue, RuntimeValues};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::source::{ConfigSource, config_source};
use crate::units::Fraction;

/// A layer that runtime discovery brings: its name and its values.
pub fn runtime_layer(_context: &Context<'_>, wire: service::Runtime) -> Parsed<(Arc<str>, RuntimeValues)> {
    let resource_name = wire.name.clone();
    let at = &FieldPath::resource("runtime", &resource_name);
    decide!(wire, at, service::Runtime as "envoy.service.runtime.v3.Runtime" {
        implemented: name, layer;
        no_effect: ;
        unsupported: ;
    });
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty"));
    }
    let values = runtime_values(&at.field("layer"), layer.unwrap_or_default())?;
    Ok((Arc::from(name), values))
}

/// Passes a source whose servers can be reached.
type Check<'a> = dyn Fn(&FieldPath<'_>, ConfigSource) -> Parsed<ConfigSource> + 'a;

/// The layers of a bootstrap. Without any there is one for the admin port.
pub(super) fn layers(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: bootstrap::LayeredRuntime,
    check: &Check<'_>,
    rejections: &mut Rejections,
) -> Vec<RuntimeLayer> {
    let bootstrap::LayeredRuntime { layers: wire } = wire;
    if wire.is_empty() {
        return vec![RuntimeLayer { name: Arc::from("admin"), kind: RuntimeLayerKind::Admin }];
    }
    let list = at.field("layers");
    let mut names = Vec::new();
    let mut layers: Vec<RuntimeLayer> = Vec::with_capacity(wire.len());
    for (index, wire) in wire.into_iter().enumerate() {
        let item = list.item(index);
        let read = layer(context, &item, wire, check).and_then(|layer| {
            unique(&mut names, &item.field("name"), &layer.name)?;
            let admin = matches!(layer.kind, RuntimeLayerKind::Admin);
            if admin && layers.iter().any(|other| matches!(other.kind, RuntimeLayerKind::Admin)) {
                return Err(item.field("admin_layer").reject("is given twice"));
            }
            Ok(layer)
        });
        layers.extend(rejections.keep(read));
    }
    layers
}

fn layer(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: bootstrap::RuntimeLayer,
    check: &Check<'_>,
) -> Parsed<RuntimeLayer> {
    decide!(wire, at, bootstrap::RuntimeLayer as "envoy.config.bootstrap.v3.RuntimeLayer" {
        implemented: name, layer_specifier;
        no_effect: ;
        unsupported: ;
    });
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty"));
    }
    use bootstrap::runtime_layer::LayerSpecifier;
    let kind = match layer_specifier {
        Some(LayerSpecifier::StaticLayer(wire)) => {
            RuntimeLayerKind::Static(runtime_values(&at.field("static_layer"), wire)?)
        }
        Some(LayerSpecifier::DiskLayer(wire)) => disk_layer(&at.field("disk_layer"), wire)?,
        Some(LayerSpecifier::AdminLayer(bootstrap::runtime_layer::AdminLayer {})) => RuntimeLayerKind::Admin,
        Some(LayerSpecifier::RtdsLayer(wire)) => rtds_layer(context, &at.field("rtds_layer"), wire, check)?,
        None => return Err(at.reject("needs one of static_layer, disk_layer, admin_layer, rtds_layer")),
    };
    Ok(RuntimeLayer { name: Arc::from(name), kind })
}

fn disk_layer(at: &FieldPath<'_>, wire: bootstrap::runtime_layer::DiskLayer) -> Parsed<RuntimeLayerKind> {
    use bootstrap::runtime_layer::DiskLayer;
    decide!(wire, at, DiskLayer as "envoy.config.bootstrap.v3.RuntimeLayer.DiskLayer" {
        implemented: symlink_root, subdirectory, append_service_cluster;
        no_effect: ;
        unsupported: ;
    });
    if symlink_root.is_empty() {
        return Err(at.field("symlink_root").reject("must not be empty"));
    }
    Ok(RuntimeLayerKind::Disk { symlink_root: PathBuf::from(symlink_root), subdirectory, append_service_cluster })
}

fn rtds_layer(
    context: &Context<'_>,
    at: &FieldPath<'_>,
    wire: bootstrap::runtime_layer::RtdsLayer,
    check: &Check<'_>,
) -> Parsed<RuntimeLayerKind> {
    use bootstrap::runtime_layer::RtdsLayer;
    decide!(wire, at, RtdsLayer as "envoy.config.bootstrap.v3.RuntimeLayer.RtdsLayer" {
        implemented: name, rtds_config;
        no_effect: ;
        unsupported: ;
    });
    if name.is_empty() {
        return Err(at.field("name").reject("must not be empty"));
    }
    let config_at = at.field("rtds_config");
    let Some(wire) = rtds_config else { return Err(config_at.reject("is required")) };
    Ok(RuntimeLayerKind::Rtds {
        name: Arc::from(name),
        source: check(&config_at, config_source(context, &config_at, wire)?)?,
    })
}

/// Flattens a struct: `{a: {b: 1}}` becomes `a.b`.
fn runtime_values(at: &FieldPath<'_>, wire: Struct) -> Parsed<RuntimeValues> {
    let mut values = BTreeMap::new();
    flatten(at, "", wire, &mut values)?;
    Ok(values)
}

fn flatten(at: &FieldPath<'_>, prefix: &str, wire: Struct, values: &mut RuntimeValues) -> Parsed<()> {
    // In order, so that the same value is refused each time.
    let fields: BTreeMap<String, Value> = wire.fields.into_iter().collect();
    for (name, value) in fields {
        let at = at.key(&name);
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let value = match value.kind {
            Some(Kind::StructValue(inner)) if is_fraction(&inner) => fraction_value(&at, &inner)?,
            Some(Kind::StructValue(inner)) => {
                flatten(&at, &key, inner, values)?;
                continue;
            }
            Some(Kind::StringValue(text)) => RuntimeValue::from_text(&text),
            Some(Kind::NumberValue(number)) => {
                RuntimeValue { text: number.to_string(), number: Some(number), flag: None, fraction: None }
            }
            Some(Kind::BoolValue(flag)) => {
                RuntimeValue { text: flag.to_string(), number: None, flag: Some(flag), fraction: None }
            }
            Some(Kind::NullValue(_) | Kind::ListValue(_)) | None => {
                return Err(at.reject("is neither a string, a number, a boolean nor a struct"));
            }
        };
        values.insert(key, value);
    }
    Ok(())
}

impl RuntimeValue {
    /// What a text says, as it stands in a file of a disk layer, in a string, or in a request to the admin port.
    pub fn from_text(text: &str) -> Self {
        let trimmed = text.trim();
        RuntimeValue {
            text: text.to_owned(),
            number: trimmed.parse().ok().filter(|number: &f64| number.is_finite()),
            flag: match trimmed.to_ascii_lowercase().as_str() {
                "true" => Some(true),
                "false" => Some(false),
                _ => None,
            },
            fraction: fraction_text(trimmed),
        }
    }
}

/// A `FractionalPercent` as YAML writes it, in one line with braces or one field a line.
fn fraction_text(text: &str) -> Option<Fraction> {
    let inside = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
    let mut numerator = 0;
    let mut denominator = 100;
    for part in inside.split([',', '\n']).map(str::trim).filter(|part| !part.is_empty()) {
        let (field, value) = part.split_once(':')?;
        let unquote = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
        match unquote(field).as_str() {
            "numerator" => numerator = unquote(value).parse().ok()?,
            "denominator" => denominator = denominator_number(&unquote(value))?,
            _ => return None,
        }
    }
    if inside.trim().is_empty() { None } else { Fraction::new(numerator, denominator) }
}

fn is_fraction(wire: &Struct) -> bool {
    wire.fields.contains_key("numerator") || wire.fields.contains_key("denominator")
}

fn fraction_value(at: &FieldPath<'_>, wire: &Struct) -> Parsed<RuntimeValue> {
    let mut numerator = 0;
    let mut denominator = 100;
    let mut text = Vec::new();
    let fields: BTreeMap<&String, &Value> = wire.fields.iter().collect();
    for (name, value) in fields {
        let at = at.key(name);
        match (name.as_str(), &value.kind) {
            ("numerator", Some(Kind::NumberValue(number)))
                if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(number) =>
            {
                numerator = *number as u32;
                text.push(format!("numerator: {numerator}"));
            }
            ("denominator", Some(Kind::StringValue(name))) => {
                denominator = denominator_number(name)
                    .ok_or_else(|| at.reject(format!("{name:?} is not HUNDRED, TEN_THOUSAND or MILLION")))?;
                text.push(format!("denominator: {name}"));
            }
            _ => return Err(at.reject("is not part of a FractionalPercent")),
        }
    }
    let text = format!("{{{}}}", text.join(", "));
    Ok(RuntimeValue { text, number: None, flag: None, fraction: Fraction::new(numerator, denominator) })
}

fn denominator_number(name: &str) -> Option<u32> {
    match name {
        "HUNDRED" => Some(100),
        "TEN_THOUSAND" => Some(10_000),
        "MILLION" => Some(1_000_000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::NoEnvironment;

    fn value(kind: Kind) -> Value {
        Value { kind: Some(kind) }
    }

    fn layer_of(fields: Vec<(&str, Kind)>) -> Struct {
        Struct { fields: fields.into_iter().map(|(name, kind)| (name.to_owned(), value(kind))).collect() }
    }

    fn read(layer: Struct) -> Result<RuntimeValues, String> {
        let wire = service::Runtime { name: "a".into(), layer: Some(layer) };
        runtime_layer(&Context::new(&NoEnvironment), wire).map(|(_, values)| values).map_err(|error| error.to_string())
    }

    #[test]
    fn values_are_flattened_and_read_as_what_they_can_be() {
        let values = read(layer_of(vec![
            ("re2.max_program_size.error_level", Kind::StringValue("32768".into())),
            ("upstream", Kind::StructValue(layer_of(vec![("weight", Kind::NumberValue(0.5))]))),
            ("envoy.reloadable_features.http_reject_path_with_fragment", Kind::BoolValue(false)),
            (
                "abort",
                Kind::StructValue(layer_of(vec![
                    ("numerator", Kind::NumberValue(5.0)),
                    ("denominator", Kind::StringValue("TEN_THOUSAND".into())),
                ])),
            ),
        ]))
        .unwrap();
        assert_eq!(values["re2.max_program_size.error_level"].number, Some(32768.0));
        assert_eq!(values["upstream.weight"].text, "0.5");
        assert_eq!(values["envoy.reloadable_features.http_reject_path_with_fragment"].flag, Some(false));
        assert_eq!(values["abort"].fraction, Fraction::new(5, 10_000));
        assert_eq!(values["abort"].text, "{denominator: TEN_THOUSAND, numerator: 5}");
    }

    #[test]
    fn values_that_are_refused() {
        let cases = [
            (
                layer_of(vec![("a", Kind::StructValue(layer_of(vec![("b", Kind::NullValue(0))])))]),
                "runtime \"a\": layer[\"a\"][\"b\"]: is neither a string, a number, a boolean nor a struct",
            ),
            (
                layer_of(vec![(
                    "a",
                    Kind::StructValue(layer_of(vec![("denominator", Kind::StringValue("TEN".into()))])),
                )]),
                "runtime \"a\": layer[\"a\"][\"denominator\"]: \"TEN\" is not HUNDRED, TEN_THOUSAND or MILLION",
            ),
        ];
        for (layer, expected) in cases {
            assert_eq!(read(layer).unwrap_err(), expected);
        }
    }

    #[test]
    fn texts_say_numbers_flags_and_fractions() {
        assert_eq!(RuntimeValue::from_text(" 5 \n").number, Some(5.0));
        assert_eq!(RuntimeValue::from_text("True").flag, Some(true));
        assert_eq!(RuntimeValue::from_text("inf").number, None);
        let fraction = Fraction::new(1, 1_000_000);
        assert_eq!(RuntimeValue::from_text("{numerator: 1, denominator: MILLION}").fraction, fraction);
        assert_eq!(RuntimeValue::from_text("numerator: 1\ndenominator: MILLION").fraction, fraction);
        assert_eq!(RuntimeValue::from_text("").fraction, None);
        assert_eq!(RuntimeValue::from_text("a: b").fraction, None);
    }
}
