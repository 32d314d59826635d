//! Reads principals: who does something.
//!
//! Owns the message `Principal` and the extension for mutual TLS. Never decides who somebody is.

use outrigger_api::pb::envoy::config::core::v3::TypedExtensionConfig;
use outrigger_api::pb::envoy::config::rbac::v3 as pb;
use outrigger_api::pb::envoy::config::rbac::v3::principal::Identifier;
use outrigger_api::pb::envoy::extensions::rbac::principals::mtls_authenticated::v3 as mtls;

use super::Principal;
use super::rules::{Reader, dynamic_metadata, sourced_metadata, url_path};
use crate::address_parse::cidr;
use crate::decide::decide;
use crate::matching::FilterStateMatcher;
use crate::rejection::{FieldPath, Parsed};
use crate::route::header_matcher;
use crate::tls::typed_san_matcher;
use crate::wire;

impl Reader<'_> {
    /// Reads a principal. Nesting is as deep as protobuf allows.
    pub(super) fn principal(&self, at: &FieldPath<'_>, wire: pb::Principal) -> Parsed<Principal> {
        let pb::Principal { identifier } = wire;
        let Some(identifier) = identifier else { return Err(at.reject(KINDS)) };
        Ok(match identifier {
            Identifier::AndIds(pb::principal::Set { ids }) => {
                Principal::And(self.principals(&at.field("and_ids").field("ids"), ids)?)
            }
            Identifier::OrIds(pb::principal::Set { ids }) => {
                Principal::Or(self.principals(&at.field("or_ids").field("ids"), ids)?)
            }
            Identifier::NotId(id) => Principal::Not(Box::new(self.principal(&at.field("not_id"), *id)?)),
            Identifier::Any(true) => Principal::Any,
            Identifier::Any(false) => return Err(at.field("any").reject("false is not a principal")),
            Identifier::Authenticated(pb::principal::Authenticated { principal_name }) => {
                let at = at.field("authenticated");
                let at = at.field("principal_name");
                Principal::Authenticated(principal_name.map(|wire| wire::string_matcher(&at, wire)).transpose()?)
            }
            Identifier::Custom(wire) => self.custom(&at.field("custom"), wire)?,
            Identifier::SourceIp(wire) => Principal::SourceIp(cidr(&at.field("source_ip"), wire)?),
            Identifier::DirectRemoteIp(wire) => Principal::DirectRemoteIp(cidr(&at.field("direct_remote_ip"), wire)?),
            Identifier::RemoteIp(wire) => Principal::RemoteIp(cidr(&at.field("remote_ip"), wire)?),
            Identifier::Header(_) if !self.http => {
                return Err(at.field("header").reject("exists in HTTP requests only"));
            }
            Identifier::Header(wire) => Principal::Header(header_matcher(&at.field("header"), wire)?),
            Identifier::UrlPath(wire) => Principal::UrlPath(url_path(&at.field("url_path"), wire)?),
            Identifier::Metadata(wire) => Principal::Metadata(dynamic_metadata(&at.field("metadata"), wire)?),
            Identifier::SourcedMetadata(wire) => {
                Principal::Metadata(sourced_metadata(&at.field("sourced_metadata"), wire)?)
            }
            Identifier::FilterState(wire) => {
                Principal::FilterState(FilterStateMatcher::parse(&at.field("filter_state"), wire)?)
            }
        })
    }

    fn custom(&self, at: &FieldPath<'_>, wire: TypedExtensionConfig) -> Parsed<Principal> {
        let TypedExtensionConfig { name: _, typed_config } = wire;
        let at = at.field("typed_config");
        let Some(any) = typed_config else { return Err(at.reject("is required")) };
        let any = wire::extension(self.context, &at, any)?;
        if wire::type_name(&any) != "envoy.extensions.rbac.principals.mtls_authenticated.v3.Config" {
            return Err(at.reject(format!("the principal {:?} is not supported", any.type_url)));
        }
        let wire: mtls::Config = wire::decode(&at, &any)?;
        decide!(wire, &at, mtls::Config as "envoy.extensions.rbac.principals.mtls_authenticated.v3.Config" {
            implemented: san_matcher, any_validated_client_certificate;
            no_effect: ;
            unsupported: ;
        });
        match san_matcher {
            Some(wire) => Ok(Principal::MtlsAuthenticated(Some(typed_san_matcher(&at.field("san_matcher"), wire)?))),
            None if any_validated_client_certificate => Ok(Principal::MtlsAuthenticated(None)),
            None => Err(at.reject("needs san_matcher or any_validated_client_certificate")),
        }
    }
}

const KINDS: &str = "needs one of and_ids, or_ids, any, authenticated, source_ip, direct_remote_ip, remote_ip, header, \
    url_path, filter_state, not_id, sourced_metadata, custom";
