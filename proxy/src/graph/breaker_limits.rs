//! Thresholds of circuit breakers as they hold now: those of a cluster, or what the runtime says instead
//! (`circuit_breakers.<cluster>.<priority>.<threshold>`).
//!
//! Owns the names of the keys. Never counts anything.

use outrigger_config::cluster::{Cluster, Thresholds};
use outrigger_config::units::Percent;

use super::RuntimeSnapshot;

/// Thresholds of both priorities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerLimits {
    /// For the default priority.
    pub default: Thresholds,
    /// For high priority.
    pub high: Thresholds,
}

impl BreakerLimits {
    /// Those that hold for a cluster.
    pub fn of(config: &Cluster, runtime: &RuntimeSnapshot) -> Self {
        let breakers = &config.circuit_breakers;
        let mut limits = Self { default: breakers.default, high: breakers.high };
        let prefix = format!("{PREFIX}{}.", config.name);
        if runtime.values.keys().any(|key| key.starts_with(&prefix)) {
            change(&mut limits.default, runtime, &format!("{prefix}default."));
            change(&mut limits.high, runtime, &format!("{prefix}high."));
        }
        limits
    }
}

const PREFIX: &str = "circuit_breakers.";

fn change(limits: &mut Thresholds, runtime: &RuntimeSnapshot, prefix: &str) {
    let number = |name: &str| Some(u32::try_from(runtime.integer(&format!("{prefix}{name}"))?).unwrap_or(u32::MAX));
    for (limit, name) in [
        (&mut limits.max_connections, "max_connections"),
        (&mut limits.max_pending_requests, "max_pending_requests"),
        (&mut limits.max_requests, "max_requests"),
        (&mut limits.max_retries, "max_retries"),
    ] {
        *limit = number(name).unwrap_or(*limit);
    }
    if let Some(budget) = &mut limits.retry_budget {
        let least = number("retry_budget.min_retry_concurrency");
        budget.min_retry_concurrency = least.unwrap_or(budget.min_retry_concurrency);
        let share = runtime.values.get(format!("{prefix}retry_budget.budget_percent").as_str());
        let share = share.and_then(|share| share.number).and_then(Percent::new);
        budget.budget = share.unwrap_or(budget.budget);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outrigger_config::bootstrap::RuntimeValue;
    use outrigger_config::cluster::{Discovery, RetryBudget};

    use super::super::hosts::tests::{assignment, cluster};
    use super::*;

    #[test]
    fn the_runtime_comes_before_the_configuration() {
        let mut config = cluster("a.b", Discovery::Static(Arc::new(assignment(&[]))));
        let budget = Percent::new(20.0).unwrap();
        config.circuit_breakers.high.retry_budget =
            Some(RetryBudget { budget, min_retry_concurrency: 3, interval: None });
        let mut runtime = RuntimeSnapshot::default();
        let before = BreakerLimits::of(&config, &runtime);
        assert_eq!((before.default, before.high), (config.circuit_breakers.default, config.circuit_breakers.high));
        for (key, value) in [
            ("circuit_breakers.a.b.default.max_requests", "7"),
            ("circuit_breakers.a.b.default.max_connections", "-1"),
            ("circuit_breakers.a.b.high.max_retries", "0"),
            ("circuit_breakers.a.b.high.retry_budget.budget_percent", "12.5"),
            ("circuit_breakers.a.b.default.retry_budget.budget_percent", "12.5"),
            ("circuit_breakers.a.default.max_requests", "1"),
        ] {
            runtime.values.insert(key.to_owned(), RuntimeValue::from_text(value));
        }
        let limits = BreakerLimits::of(&config, &runtime);
        assert_eq!(limits.default, Thresholds { max_requests: 7, ..before.default });
        let budget = Percent::new(12.5).unwrap();
        let retry_budget = Some(RetryBudget { budget, min_retry_concurrency: 3, interval: None });
        assert_eq!(limits.high, Thresholds { max_retries: 0, retry_budget, ..before.high });
    }
}
