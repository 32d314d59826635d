//! The standard metrics of a mesh, as two sidecars back to back show them: full sets of labels, with Istio's own names, and
//! what Istio's dashboards make of them.
//!
//! Needs `prometheus` on the PATH.

mod dashboards;
mod exemplars;
mod labels;
mod sidecars;
