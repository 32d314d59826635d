//! What a request must show (`JwtRequirement`).
//!
//! Owns the references to providers: one that is held is a provider that exists. Never judges a request.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_api::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;

use super::JwtProvider;
use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};

/// Source: `JwtRequirement`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum JwtRequirement {
    /// Nothing.
    Nothing,
    /// A token of one provider.
    Provider {
        /// Index of the provider.
        provider: usize,
        /// Instead of those of the provider.
        audiences: Option<Vec<String>>,
    },
    /// At least one of them.
    Any(Vec<JwtRequirement>),
    /// Each of them.
    All(Vec<JwtRequirement>),
    /// Tokens, if there are any, that are valid.
    AllowMissing,
    /// Nothing; tokens that are valid are used.
    AllowMissingOrFailed,
}

/// What requirements refer to.
pub(super) struct Requirements<'a> {
    pub providers: &'a [Arc<JwtProvider>],
    pub by_name: BTreeMap<String, JwtRequirement>,
}

impl Requirements<'_> {
    pub fn read(&self, at: &FieldPath<'_>, wire: pb::JwtRequirement) -> Parsed<JwtRequirement> {
        decide!(wire, at, pb::JwtRequirement as "envoy.extensions.filters.http.jwt_authn.v3.JwtRequirement" {
            implemented: requires_type;
            no_effect: ;
            unsupported: ;
        });
        use pb::jwt_requirement::RequiresType as Wire;
        Ok(match requires_type {
            None => JwtRequirement::Nothing,
            Some(Wire::ProviderName(name)) => JwtRequirement::Provider {
                provider: self.provider(&at.field("provider_name"), &name)?,
                audiences: None,
            },
            Some(Wire::ProviderAndAudiences(wire)) => self.with_audiences(&at.field("provider_and_audiences"), wire)?,
            Some(Wire::RequiresAny(pb::JwtRequirementOrList { requirements })) => {
                JwtRequirement::Any(self.list(&at.field("requires_any").field("requirements"), requirements)?)
            }
            Some(Wire::RequiresAll(pb::JwtRequirementAndList { requirements })) => {
                JwtRequirement::All(self.list(&at.field("requires_all").field("requirements"), requirements)?)
            }
            Some(Wire::AllowMissing(_)) => JwtRequirement::AllowMissing,
            Some(Wire::AllowMissingOrFailed(_)) => JwtRequirement::AllowMissingOrFailed,
            // Claims that nobody verified would look like those of valid tokens.
            Some(Wire::ExtractOnlyWithoutValidation(_)) => {
                return Err(at.field("extract_only_without_validation").unsupported());
            }
        })
    }

    pub fn named(&self, at: &FieldPath<'_>, name: &str) -> Parsed<JwtRequirement> {
        let known = || self.by_name.keys().map(String::as_str).collect::<Vec<_>>().join(",");
        match self.by_name.get(name) {
            _ if name.is_empty() => Err(at.reject("must not be empty")),
            Some(requirement) => Ok(requirement.clone()),
            None => Err(at.reject(format!("Wrong requirement_name: {name}. It should be one of [{}]", known()))),
        }
    }

    fn provider(&self, at: &FieldPath<'_>, name: &str) -> Parsed<usize> {
        let found = self.providers.iter().position(|provider| *provider.name == *name);
        found.ok_or_else(|| at.reject(format!("Required provider ['{name}'] is not configured.")))
    }

    fn with_audiences(&self, at: &FieldPath<'_>, wire: pb::ProviderWithAudiences) -> Parsed<JwtRequirement> {
        decide!(wire, at, pb::ProviderWithAudiences as "envoy.extensions.filters.http.jwt_authn.v3.ProviderWithAudiences" {
            implemented: provider_name, audiences;
            no_effect: ;
            unsupported: ;
        });
        let provider = self.provider(&at.field("provider_name"), &provider_name)?;
        Ok(JwtRequirement::Provider { provider, audiences: Some(audiences).filter(|audiences| !audiences.is_empty()) })
    }

    fn list(&self, at: &FieldPath<'_>, wire: Vec<pb::JwtRequirement>) -> Parsed<Vec<JwtRequirement>> {
        if wire.len() < 2 {
            return Err(at.reject(format!("has {} items, expected two or more", wire.len())));
        }
        crate::wire::each(at, wire, |at, wire| self.read(at, wire))
    }
}
