//! Destinations that filters have left for original-destination clusters.
//!
//! Owns where they are looked for. Never decides whether a cluster goes by them.

use std::net::SocketAddr;

use outrigger_config::cluster::MetadataPath;
use outrigger_config::metadata::Namespaces;

use crate::filter_state::FilterState;

/// The one in filter state, which comes before all others.
pub fn told_destination(state: &FilterState) -> Option<SocketAddr> {
    state.get(OBJECT)?.parse().ok()
}

/// The one in metadata at `path`.
pub fn destination_in(metadata: &Namespaces, path: &MetadataPath) -> Option<SocketAddr> {
    let mut keys = path.keys.iter();
    let first = metadata.get(&*path.namespace)?.get(&**keys.next()?)?;
    let value = keys.try_fold(first, |value, key| value.get(&**key))?;
    value.as_str()?.parse().ok()
}

/// The object of the filter state that names a destination.
const OBJECT: &str = "envoy.network.transport_socket.original_dst_address";
