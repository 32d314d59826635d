//! The share of a cluster's requests that the runtime refuses (`upstream.maintenance_mode.<cluster>`).
//!
//! Owns the name of the key. Never answers requests (see `http::router::drops`).

use outrigger_config::units::Fraction;
use outrigger_policy::route::RuntimeView;

use super::RuntimeSnapshot;

/// The share for a cluster, if there is one.
pub fn refused_for_maintenance(cluster: &str, runtime: &RuntimeSnapshot) -> Option<Fraction> {
    runtime.fraction(&format!("upstream.maintenance_mode.{cluster}"))
}

#[cfg(test)]
mod tests {
    use outrigger_config::bootstrap::RuntimeValue;

    use super::*;

    #[test]
    fn a_share_is_in_percent() {
        let mut runtime = RuntimeSnapshot::default();
        runtime.values.insert("upstream.maintenance_mode.one".to_owned(), RuntimeValue::from_text("25"));
        assert_eq!(refused_for_maintenance("one", &runtime).map(|share| share.parts()), Some((25, 100)));
        assert!(refused_for_maintenance("two", &runtime).is_none());
    }
}
