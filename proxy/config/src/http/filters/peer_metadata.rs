//! Telling workloads of a mesh who the other side of a request is (`io.istio.http.peer_metadata.Config`).
//!
//! Owns which sides are asked and told. Never reads a header.

use outrigger_api::istio::peer_metadata as pb;

use crate::decide::decide;
use crate::rejection::{FieldPath, Parsed};

/// Source: `io.istio.http.peer_metadata.Config`. Everything goes through headers of the mesh's own.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PeerMetadata {
    /// What clients say in requests is kept, and taken out of them.
    pub ask_downstream: bool,
    /// What endpoints say in responses is kept, and taken out of them.
    pub ask_upstream: bool,
    /// Clients that said something are told about us.
    pub tell_downstream: bool,
    /// Endpoints are told about us.
    pub tell_upstream: bool,
    /// But not those outside of the mesh.
    pub skip_external: bool,
    /// Labels of ours that are told beside the usual ones.
    pub additional_labels: Vec<String>,
}

impl PeerMetadata {
    pub(super) fn parse(at: &FieldPath<'_>, wire: pb::Config) -> Parsed<Self> {
        decide!(wire, at, pb::Config as "io.istio.http.peer_metadata.Config" {
            implemented: downstream_discovery, upstream_discovery, downstream_propagation, upstream_propagation,
                additional_labels;
            no_effect: shared_with_upstream = "a listener inside the process learns of peers from its own filters";
            unsupported: ;
        });
        let (tell_downstream, _) = told(&at.field("downstream_propagation"), downstream_propagation)?;
        let (tell_upstream, skip_external) = told(&at.field("upstream_propagation"), upstream_propagation)?;
        Ok(Self {
            ask_downstream: asked(&at.field("downstream_discovery"), downstream_discovery)?,
            ask_upstream: asked(&at.field("upstream_discovery"), upstream_discovery)?,
            tell_downstream,
            tell_upstream,
            skip_external,
            additional_labels,
        })
    }
}

/// Whether headers are read.
fn asked(at: &FieldPath<'_>, wire: Vec<pb::config::DiscoveryMethod>) -> Parsed<bool> {
    use pb::config::discovery_method::MethodSpecifier as Method;
    let mut headers = false;
    for (index, pb::config::DiscoveryMethod { method_specifier }) in wire.into_iter().enumerate() {
        match method_specifier {
            Some(Method::IstioHeaders(_)) => headers = true,
            // Nothing is known of workloads unless the bootstrap says where to ask, which it cannot here.
            Some(Method::WorkloadDiscovery(_)) | None => {}
            Some(Method::Baggage(_)) => return Err(at.item(index).field("baggage").unsupported()),
            Some(Method::UpstreamFilterState(_)) => {
                return Err(at.item(index).field("upstream_filter_state").unsupported());
            }
        }
    }
    Ok(headers)
}

/// Whether headers are written, and whether not to those outside of the mesh.
fn told(at: &FieldPath<'_>, wire: Vec<pb::config::PropagationMethod>) -> Parsed<(bool, bool)> {
    use pb::config::propagation_method::MethodSpecifier as Method;
    let mut told = (false, false);
    for (index, pb::config::PropagationMethod { method_specifier }) in wire.into_iter().enumerate() {
        match method_specifier {
            Some(Method::IstioHeaders(pb::config::IstioHeaders { skip_external_clusters })) => {
                told = (true, skip_external_clusters);
            }
            Some(Method::Baggage(_)) => return Err(at.item(index).field("baggage").unsupported()),
            None => {}
        }
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_the_only_way() {
        use pb::config::{discovery_method as ask, propagation_method as tell};
        let ask = |method| pb::config::DiscoveryMethod { method_specifier: Some(method) };
        let tell = |method| pb::config::PropagationMethod { method_specifier: Some(method) };
        let headers = pb::config::IstioHeaders { skip_external_clusters: true };
        let read = |wire| PeerMetadata::parse(&FieldPath::resource("filter", "f"), wire);
        let config = pb::Config {
            upstream_discovery: vec![
                ask(ask::MethodSpecifier::IstioHeaders(headers)),
                ask(ask::MethodSpecifier::WorkloadDiscovery(pb::config::WorkloadDiscovery {})),
            ],
            upstream_propagation: vec![tell(tell::MethodSpecifier::IstioHeaders(headers))],
            ..pb::Config::default()
        };
        let known = PeerMetadata { ask_upstream: true, tell_upstream: true, skip_external: true, ..Default::default() };
        assert_eq!(read(config.clone()).unwrap(), known);
        let baggage = tell(tell::MethodSpecifier::Baggage(pb::config::Baggage {}));
        assert!(read(pb::Config { downstream_propagation: vec![baggage], ..config }).is_err());
    }
}
