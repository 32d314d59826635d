//! Discovery while requests wait (`envoy.extensions.filters.http.on_demand.v3`).
//!
//! Owns what is accepted of it: the filter that waits for routes and virtual hosts, without a source of clusters. Never
//! discovers anything.

use outrigger_api::pb::envoy::extensions::filters::http::on_demand::v3 as pb;

use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};

/// Reads the settings of the filter, which may not ask for clusters.
pub(super) fn nothing(at: &FieldPath<'_>, wire: pb::OnDemand) -> Parsed<()> {
    decide!(wire, at, pb::OnDemand as "envoy.extensions.filters.http.on_demand.v3.OnDemand" {
        implemented: ;
        no_effect: ;
        unsupported: odcds;
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_empty_filter_is_accepted() {
        let root = FieldPath::resource("listener", "l");
        assert!(nothing(&root, pb::OnDemand::default()).is_ok());
        let wire = pb::OnDemand { odcds: Some(pb::OnDemandCds::default()) };
        assert_eq!(nothing(&root, wire).unwrap_err().to_string(), "listener \"l\": odcds: is not supported");
    }
}
