//! Reader of the stats config (`envoy.config.metrics.v3.StatsConfig`).
//!
//! Owns which tag rules, matchers and buckets are accepted. Never applies them to a name.

use outrigger_api::pb::envoy::config::metrics::v3 as metrics;
use outrigger_api::pb::envoy::r#type::matcher::v3 as matcher;

use super::{StatsConfig, StatsMatcher, StatsTag, StatsTagValue};
use crate::decide::decide;
use crate::matching::StringMatcher;
use crate::rejection::{FieldPath, Parsed};
use crate::wire;

/// As without a `stats_config`.
impl Default for StatsConfig {
    fn default() -> Self {
        StatsConfig {
            tags: Vec::new(),
            use_all_default_tags: true,
            allow_default_tag_overrides: false,
            matcher: StatsMatcher::All,
            histogram_buckets: Vec::new(),
        }
    }
}

pub(super) fn config(at: &FieldPath<'_>, wire: metrics::StatsConfig) -> Parsed<StatsConfig> {
    decide!(wire, at, metrics::StatsConfig as "envoy.config.metrics.v3.StatsConfig" {
        implemented: stats_tags, use_all_default_tags, stats_matcher, histogram_bucket_settings,
            allow_default_tag_overrides;
        no_effect: ;
        unsupported: ;
    });
    let list = at.field("stats_tags");
    let mut tags = Vec::with_capacity(stats_tags.len());
    for (index, wire) in stats_tags.into_iter().enumerate() {
        tags.push(tag(&list.item(index), wire)?);
    }
    let list = at.field("histogram_bucket_settings");
    let mut histogram_buckets = Vec::with_capacity(histogram_bucket_settings.len());
    for (index, wire) in histogram_bucket_settings.into_iter().enumerate() {
        histogram_buckets.extend(buckets(&list.item(index), wire)?);
    }
    let matcher_at = at.field("stats_matcher");
    Ok(StatsConfig {
        tags,
        use_all_default_tags: use_all_default_tags.is_none_or(|flag| flag.value),
        allow_default_tag_overrides: allow_default_tag_overrides.is_some_and(|flag| flag.value),
        matcher: stats_matcher.map(|wire| stat_matcher(&matcher_at, wire)).transpose()?.unwrap_or_default(),
        histogram_buckets,
    })
}

fn tag(at: &FieldPath<'_>, wire: metrics::TagSpecifier) -> Parsed<StatsTag> {
    decide!(wire, at, metrics::TagSpecifier as "envoy.config.metrics.v3.TagSpecifier" {
        implemented: tag_name, tag_value;
        no_effect: ;
        unsupported: ;
    });
    if tag_name.is_empty() {
        return Err(at.field("tag_name").reject("must not be empty"));
    }
    let value = match tag_value {
        Some(metrics::tag_specifier::TagValue::Regex(regex)) if regex.len() > MAX_TAG_REGEX_BYTES => {
            let reason = format!("{} bytes, expected up to {MAX_TAG_REGEX_BYTES}", regex.len());
            return Err(at.field("regex").reject(reason));
        }
        Some(metrics::tag_specifier::TagValue::Regex(regex)) => StatsTagValue::Regex(regex),
        Some(metrics::tag_specifier::TagValue::FixedValue(value)) => StatsTagValue::Fixed(value),
        None => StatsTagValue::Regex(String::new()),
    };
    Ok(StatsTag { name: tag_name, value })
}

fn stat_matcher(at: &FieldPath<'_>, wire: metrics::StatsMatcher) -> Parsed<StatsMatcher> {
    decide!(wire, at, metrics::StatsMatcher as "envoy.config.metrics.v3.StatsMatcher" {
        implemented: stats_matcher;
        no_effect: ;
        unsupported: ;
    });
    match stats_matcher {
        Some(metrics::stats_matcher::StatsMatcher::RejectAll(true)) => Ok(StatsMatcher::None),
        Some(metrics::stats_matcher::StatsMatcher::RejectAll(false)) => Ok(StatsMatcher::All),
        Some(metrics::stats_matcher::StatsMatcher::ExclusionList(wire)) => {
            Ok(StatsMatcher::Exclude(patterns(&at.field("exclusion_list"), wire)?))
        }
        Some(metrics::stats_matcher::StatsMatcher::InclusionList(wire)) => {
            Ok(StatsMatcher::Include(patterns(&at.field("inclusion_list"), wire)?))
        }
        None => Err(at.reject("needs one of reject_all, exclusion_list, inclusion_list")),
    }
}

fn patterns(at: &FieldPath<'_>, wire: matcher::ListStringMatcher) -> Parsed<Vec<StringMatcher>> {
    let matcher::ListStringMatcher { patterns } = wire;
    let at = at.field("patterns");
    if patterns.is_empty() {
        return Err(at.reject("must not be empty"));
    }
    patterns.into_iter().enumerate().map(|(index, wire)| wire::string_matcher(&at.item(index), wire)).collect()
}

/// `None` without bounds: the stats then keep the default ones.
fn buckets(at: &FieldPath<'_>, wire: metrics::HistogramBucketSettings) -> Parsed<Option<(StringMatcher, Vec<f64>)>> {
    decide!(wire, at, metrics::HistogramBucketSettings as "envoy.config.metrics.v3.HistogramBucketSettings" {
        implemented: r#match, buckets;
        no_effect: bins = "histograms have a size of their own";
        unsupported: ;
    });
    let Some(wire) = r#match else { return Err(at.field("match").reject("is required")) };
    let matcher = wire::string_matcher(&at.field("match"), wire)?;
    let list = at.field("buckets");
    let mut bounds: Vec<f64> = Vec::with_capacity(buckets.len());
    for (index, bound) in buckets.into_iter().enumerate() {
        if !bound.is_finite() || bound <= 0.0 {
            return Err(list.item(index).reject(format!("{bound} must be above zero")));
        }
        if bounds.contains(&bound) {
            return Err(list.item(index).reject(format!("{bound} is given twice")));
        }
        bounds.push(bound);
    }
    bounds.sort_by(f64::total_cmp);
    Ok((!bounds.is_empty()).then_some((matcher, bounds)))
}

const MAX_TAG_REGEX_BYTES: usize = 1024;
