//! Reads permissions: what is done.
//!
//! Owns the message `Permission`. Never decides whether one is given.

use outrigger_api::pb::envoy::config::rbac::v3 as pb;
use outrigger_api::pb::envoy::config::rbac::v3::permission::Rule;
use outrigger_api::pb::envoy::r#type::v3::Int32Range;

use super::Permission;
use super::rules::{Reader, dynamic_metadata, sourced_metadata, url_path};
use crate::address_parse::cidr;
use crate::matching::UriTemplate;
use crate::rejection::{FieldPath, Parsed};
use crate::route::header_matcher;
use crate::wire;

impl Reader<'_> {
    /// Reads a permission. Nesting is as deep as protobuf allows.
    pub(super) fn permission(&self, at: &FieldPath<'_>, wire: pb::Permission) -> Parsed<Permission> {
        let pb::Permission { rule } = wire;
        let Some(rule) = rule else { return Err(at.reject(KINDS)) };
        Ok(match rule {
            Rule::AndRules(pb::permission::Set { rules }) => {
                Permission::And(self.permissions(&at.field("and_rules").field("rules"), rules)?)
            }
            Rule::OrRules(pb::permission::Set { rules }) => {
                Permission::Or(self.permissions(&at.field("or_rules").field("rules"), rules)?)
            }
            Rule::NotRule(rule) => Permission::Not(Box::new(self.permission(&at.field("not_rule"), *rule)?)),
            Rule::Any(true) => Permission::Any,
            Rule::Any(false) => return Err(at.field("any").reject("false is not a permission")),
            // Never true for a connection, or, inverted, always: Envoy refuses it as well.
            Rule::Header(_) if !self.http => return Err(at.field("header").reject("exists in HTTP requests only")),
            Rule::Header(wire) => Permission::Header(header_matcher(&at.field("header"), wire)?),
            Rule::UrlPath(wire) => Permission::UrlPath(url_path(&at.field("url_path"), wire)?),
            Rule::UriTemplate(wire) => {
                Permission::UriTemplate(UriTemplate::parse(self.context, &at.field("uri_template"), wire)?)
            }
            Rule::DestinationIp(wire) => Permission::DestinationIp(cidr(&at.field("destination_ip"), wire)?),
            Rule::DestinationPort(port) => Permission::DestinationPort(u16::try_from(port).map_err(|_| {
                at.field("destination_port").reject(format!("{port} is not a port, expected 0 to 65535"))
            })?),
            Rule::DestinationPortRange(range) => ports(&at.field("destination_port_range"), range)?,
            Rule::Metadata(wire) => Permission::Metadata(dynamic_metadata(&at.field("metadata"), wire)?),
            Rule::SourcedMetadata(wire) => Permission::Metadata(sourced_metadata(&at.field("sourced_metadata"), wire)?),
            Rule::RequestedServerName(wire) => {
                Permission::RequestedServerName(wire::string_matcher(&at.field("requested_server_name"), wire)?)
            }
            Rule::Matcher(_) => return Err(at.field("matcher").unsupported()),
        })
    }
}

fn ports(at: &FieldPath<'_>, wire: Int32Range) -> Parsed<Permission> {
    let Int32Range { start, end } = wire;
    match (u32::try_from(start), u32::try_from(end)) {
        (Ok(start), Ok(end)) if start < end && end <= 65536 => Ok(Permission::DestinationPorts { start, end }),
        _ => Err(at.reject(format!("{start} to {end} is not a range of ports, expected 0 to 65536"))),
    }
}

const KINDS: &str = "needs one of and_rules, or_rules, any, header, url_path, destination_ip, destination_port, \
    destination_port_range, not_rule, requested_server_name, uri_template, sourced_metadata";
