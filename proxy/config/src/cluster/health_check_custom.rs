//! Our own kinds of health checks (`HealthCheck.custom_health_check`).
//!
//! Owns their checked settings. Never sends anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_api::outrigger::health_v1 as pb;
use outrigger_api::pb::envoy::config::core::v3::health_check::{CustomHealthCheck, custom_health_check};

use super::health_check_probe::{GrpcProbe, Probe, ProbeHeader};
use crate::context::Context;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// A line from an agent beside the endpoint. Source: `outrigger.health.v1.AgentCheck`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentProbe {
    /// Where the agent is; where other checks go when `None`.
    pub port: Option<u16>,
    /// Sent before the answer is read.
    pub send: Arc<str>,
}

/// Reads a check by its type; its name says nothing.
pub(super) fn custom(context: &Context<'_>, at: &FieldPath<'_>, wire: CustomHealthCheck) -> Parsed<Probe> {
    let CustomHealthCheck { name: _, config_type } = wire;
    let at = at.field("typed_config");
    let Some(custom_health_check::ConfigType::TypedConfig(config)) = config_type else {
        return Err(at.reject("is required"));
    };
    let config = wire::extension(context, &at, config)?;
    match wire::type_name(&config) {
        "outrigger.health.v1.GrpcWatch" => grpc_watch(&at, wire::decode(&at, &config)?).map(Probe::GrpcWatch),
        "outrigger.health.v1.AgentCheck" => agent(&at, wire::decode(&at, &config)?).map(Probe::Agent),
        _ => Err(at.reject(format!("{:?} is not supported", config.type_url))),
    }
}

fn grpc_watch(at: &FieldPath<'_>, wire: pb::GrpcWatch) -> Parsed<GrpcProbe> {
    decide!(wire, at, pb::GrpcWatch as "outrigger.health.v1.GrpcWatch" {
        implemented: service_name, authority, metadata;
        no_effect: ;
        unsupported: ;
    });
    wire::header_value(&at.field("authority"), &authority)?;
    let metadata_at = at.field("metadata");
    let mut headers = Vec::with_capacity(metadata.len());
    // Sorted, so that the same settings are equal.
    for (name, value) in metadata.into_iter().collect::<BTreeMap<_, _>>() {
        let name = name.to_ascii_lowercase();
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let reserved = ["content-type", "te", "host"].contains(&name.as_str()) || name.starts_with("grpc-");
        if name.is_empty() || reserved || !name.bytes().all(token) {
            return Err(metadata_at.reject(format!("{name:?} is not the name of a header that can be set")));
        }
        wire::header_value(&metadata_at, &value)?;
        headers.push(ProbeHeader { name: name.into(), value: value.into() });
    }
    Ok(GrpcProbe { service_name, authority: authority.into(), metadata: headers })
}

fn agent(at: &FieldPath<'_>, wire: pb::AgentCheck) -> Parsed<AgentProbe> {
    decide!(wire, at, pb::AgentCheck as "outrigger.health.v1.AgentCheck" {
        implemented: port, send;
        no_effect: ;
        unsupported: ;
    });
    let number =
        u16::try_from(port).map_err(|_| at.field("port").reject(format!("{port} is not within 0 to 65535")))?;
    Ok(AgentProbe { port: (number > 0).then_some(number), send: send.into() })
}

#[cfg(test)]
mod tests {
    use super::super::health_check_probe::probe;
    use super::*;
    use crate::context::NoEnvironment;
    use outrigger_api::pb::envoy::config::core::v3::HealthCheck;
    use outrigger_api::{ParseOptions, Schema};

    fn read(config: &str) -> Result<Probe, String> {
        let yaml = format!("custom_health_check: {{name: any, typed_config: {{{config}}}}}");
        let wire: HealthCheck = Schema::load().parse_yaml(&yaml, ParseOptions::default()).unwrap().message;
        let context = Context::new(&NoEnvironment);
        probe(&context, &FieldPath::resource("cluster", "c"), wire.health_checker).map_err(|error| error.to_string())
    }

    #[test]
    fn our_own_checks_are_taken_as_messages_and_as_typed_structs() {
        let watch = "service_name: s, authority: a, metadata: {X-B: '2', x-a: '1'}";
        let direct = read(&format!("'@type': type.googleapis.com/outrigger.health.v1.GrpcWatch, {watch}")).unwrap();
        let header = |name: &str, value: &str| ProbeHeader { name: name.into(), value: value.into() };
        let metadata = vec![header("x-b", "2"), header("x-a", "1")];
        let expected = GrpcProbe { service_name: "s".into(), authority: "a".into(), metadata };
        assert_eq!(direct, Probe::GrpcWatch(expected));
        let wrapped = read(&format!(
            "'@type': type.googleapis.com/xds.type.v3.TypedStruct, \
             type_url: type.googleapis.com/outrigger.health.v1.GrpcWatch, value: {{{watch}}}"
        ));
        assert_eq!(wrapped.unwrap(), direct);
        let agent = read("'@type': type.googleapis.com/outrigger.health.v1.AgentCheck, port: 8080, send: \"hi\\n\"");
        assert_eq!(agent.unwrap(), Probe::Agent(AgentProbe { port: Some(8080), send: "hi\n".into() }));
        let least = read("'@type': type.googleapis.com/outrigger.health.v1.AgentCheck");
        assert_eq!(least.unwrap(), Probe::Agent(AgentProbe::default()));
    }

    #[test]
    fn checks_that_are_refused() {
        for (config, reason) in [
            (
                "'@type': type.googleapis.com/outrigger.health.v1.AgentCheck, port: 70000",
                ".port: 70000 is not within 0 to 65535",
            ),
            (
                "'@type': type.googleapis.com/outrigger.health.v1.GrpcWatch, metadata: {TE: a}",
                ".metadata: \"te\" is not the name of a header that can be set",
            ),
            (
                "'@type': type.googleapis.com/google.protobuf.Struct, value: {}",
                ": \"type.googleapis.com/google.protobuf.Struct\" is not supported",
            ),
        ] {
            let expected = format!("cluster \"c\": custom_health_check.typed_config{reason}");
            assert_eq!(read(config).unwrap_err(), expected);
        }
    }
}
