//! Buckets and quantiles of histograms, as all output formats show them.
//!
//! Owns the default bounds, the configured ones (`StatsConfig.histogram_bucket_settings`) and what is read off a
//! histogram. Never records values.

use outrigger_config::matching::StringMatcher;

/// Values of one stat.
pub type Values = hdrhistogram::Histogram<u64>;

/// A histogram without values, which grows with those that it gets.
pub fn none() -> Values {
    // Two digits are within the allowed 0..=5, so this cannot fail.
    let mut values = Values::new(2).expect("two significant digits are allowed");
    values.auto(true);
    values
}

/// Upper bounds, unless configured otherwise: milliseconds for most stats.
const DEFAULT_BOUNDS: &[f64] = &[
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// The quantiles that summaries show, in percent.
pub const PERCENTILES: &[f64] = &[0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

/// How histograms are shown. Source: the query parameter `histogram_buckets`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum BucketMode {
    /// Quantiles.
    #[default]
    Summary,
    /// Values up to each bound.
    Cumulative,
    /// Values between each bound and the one before.
    Disjoint,
    /// The buckets as recorded, and quantiles.
    Detailed,
}

/// Upper bounds by stat name.
#[derive(Debug, Default)]
pub struct Bounds(Vec<(StringMatcher, Vec<f64>)>);

impl Bounds {
    /// The first matcher that matches decides.
    pub fn new(configured: Vec<(StringMatcher, Vec<f64>)>) -> Self {
        Self(configured)
    }

    /// The bounds of the stat `name`, ascending.
    pub fn of(&self, name: &str) -> &[f64] {
        let found = self.0.iter().find(|(matcher, _)| matcher.matches(name.as_bytes()));
        found.map_or(DEFAULT_BOUNDS, |(_, bounds)| bounds)
    }
}

/// For each bound how many values are at most that large.
pub fn cumulative(values: &Values, bounds: &[f64]) -> Vec<u64> {
    let mut counts = vec![0; bounds.len()];
    let mut at = 0;
    let mut sum = 0;
    for recorded in values.iter_recorded() {
        // A recorded value stands for a small range; its lower end keeps values that equal a bound below it.
        let value = values.lowest_equivalent(recorded.value_iterated_to()) as f64;
        while at < bounds.len() && value > bounds[at] {
            counts[at] = sum;
            at += 1;
        }
        sum += recorded.count_at_value();
    }
    counts[at..].fill(sum);
    counts
}

/// For each bound how many values are at most that large, but larger than the bound before.
pub fn disjoint(values: &Values, bounds: &[f64]) -> Vec<u64> {
    let mut before = 0;
    let difference = |count: u64| count - std::mem::replace(&mut before, count);
    cumulative(values, bounds).into_iter().map(difference).collect()
}

/// Ranges as recorded: (lower bound, width, count).
pub fn recorded(values: &Values) -> impl Iterator<Item = (u64, u64, u64)> {
    values.iter_recorded().map(|recorded| {
        let lower = values.lowest_equivalent(recorded.value_iterated_to());
        (lower, values.equivalent_range(lower) - 1, recorded.count_at_value())
    })
}

/// The value that `percent` of all values do not exceed; `None` if there is none.
pub fn percentile(values: &Values, percent: f64) -> Option<u64> {
    (!values.is_empty()).then(|| values.lowest_equivalent(values.value_at_percentile(percent)))
}

/// Sum of all values, as exact as they were recorded.
pub fn sum(values: &Values) -> f64 {
    values
        .iter_recorded()
        .map(|recorded| {
            let value = values.median_equivalent(recorded.value_iterated_to());
            value as f64 * recorded.count_at_value() as f64
        })
        .sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn values(recorded: &[u64]) -> Values {
        let mut values = Values::new(2).unwrap();
        values.auto(true);
        for value in recorded {
            values.record(*value).unwrap();
        }
        values
    }

    #[test]
    fn values_fall_into_the_bucket_whose_bound_they_equal() {
        let values = values(&[0, 0, 1, 5, 6, 3_600_000, 4_000_000]);
        let counts = cumulative(&values, DEFAULT_BOUNDS);
        assert_eq!(counts[..5], [2, 3, 4, 5, 5]);
        assert_eq!(counts[18], 6);
        assert_eq!(disjoint(&values, DEFAULT_BOUNDS)[..5], [2, 1, 1, 1, 0]);
        assert_eq!(recorded(&values).next(), Some((0, 0, 2)));
    }

    #[test]
    fn an_empty_histogram_has_no_quantiles() {
        let empty = values(&[]);
        assert_eq!((percentile(&empty, 50.0), sum(&empty)), (None, 0.0));
        assert_eq!(cumulative(&empty, &[1.0]), [0]);
        let some = values(&[1, 2, 3, 4]);
        assert_eq!((percentile(&some, 50.0), percentile(&some, 100.0), sum(&some)), (Some(2), Some(4), 10.0));
    }

    #[test]
    fn bounds_can_be_set_by_name() {
        let matcher = StringMatcher::Prefix { value: "http.".to_owned(), ignore_case: false };
        let bounds = Bounds::new(vec![(matcher, vec![1.0, 2.0])]);
        assert_eq!(bounds.of("http.x.downstream_rq_time"), [1.0, 2.0]);
        assert_eq!(bounds.of("cluster.x.upstream_rq_time").len(), 19);
    }
}
