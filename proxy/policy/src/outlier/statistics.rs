//! Arithmetic over the success rates of a cluster.
//!
//! Owns mean, standard deviation and threshold. Never knows hosts.

/// What the success rates of a cluster say, in percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Averages {
    /// Their mean.
    pub mean: f64,
    /// Whoever is below is an outlier; may lie below 0.
    pub threshold: f64,
}

impl Averages {
    /// Mean, and mean minus `factor` times the standard deviation of all `rates`; `None` without any.
    pub fn of(rates: &[f64], factor: f64) -> Option<Self> {
        if rates.is_empty() {
            return None;
        }
        let count = rates.len() as f64;
        let mean = rates.iter().sum::<f64>() / count;
        let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
        Some(Self { mean, threshold: mean - factor * variance.sqrt() })
    }
}

/// The success rate in percent of (all, failed) requests; `None` without any.
pub fn success_rate((total, failed): (u32, u32)) -> Option<f64> {
    (total > 0).then(|| 100.0 * f64::from(total.saturating_sub(failed)) / f64::from(total))
}
