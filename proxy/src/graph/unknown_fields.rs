//! Fields of discovered resources that are not part of the API we know, which decoding would drop without a word.
//!
//! Owns what becomes of them and their count. Never finds them: see [`Schema::unknown_fields`].

use std::fmt::Display;
use std::sync::Arc;

use outrigger_api::Schema;
use outrigger_api::pb::google::protobuf::Any;

use super::stats::DiscoveryStats;
use crate::cli::UnknownDynamicFields;

/// What becomes of them.
#[derive(Clone)]
pub(super) struct UnknownFieldRule {
    /// As the command line says.
    pub policy: UnknownDynamicFields,
    /// Where they are counted.
    pub stats: Arc<DiscoveryStats>,
}

impl UnknownFieldRule {
    /// Judges a resource as received, and tells which of its fields are unknown. `subject` is what a person calls it.
    pub fn check_resource(&self, subject: &dyn Display, any: &Any) -> Result<Vec<String>, String> {
        match self.policy {
            UnknownDynamicFields::Ignore => Ok(Vec::new()),
            _ => {
                let unknown = Schema::load().unknown_fields(any);
                self.check(subject, &unknown).map(|()| unknown)
            }
        }
    }

    /// Judges fields that were found.
    pub fn check(&self, subject: &dyn Display, fields: &[String]) -> Result<(), String> {
        if fields.is_empty() || self.policy == UnknownDynamicFields::Ignore {
            return Ok(());
        }
        self.stats.dynamic_unknown_fields.add(fields.len() as u64);
        let fields = fields.join(", ");
        if self.policy == UnknownDynamicFields::Reject {
            return Err(format!("unknown fields: {fields}"));
        }
        tracing::warn!("{subject} has unknown fields, which are left out: {fields}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_told_counted_or_refused_as_the_command_line_says() {
        let url = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
        // A name, and field 5000.
        let any = Any { type_url: url.to_owned(), value: b"\x0a\x01a\xc2\xb8\x02\x00".to_vec() };
        let refused = Err("unknown fields: 5000".to_owned());
        for (policy, verdict, count) in [
            (UnknownDynamicFields::Warn, Ok(()), 1),
            (UnknownDynamicFields::Ignore, Ok(()), 0),
            (UnknownDynamicFields::Reject, refused, 1),
        ] {
            let rule = UnknownFieldRule { policy, stats: Arc::default() };
            assert_eq!(rule.check_resource(&"cluster a", &any).map(drop), verdict);
            assert_eq!(rule.stats.dynamic_unknown_fields.value(), count, "{policy:?}");
        }
    }
}
