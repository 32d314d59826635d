//! All stats as a stream of pieces of text.
//!
//! Owns the order of output and how it is cut up, so that a scrape of many stats never holds all of them at once. Never
//! writes to a socket.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use outrigger_config::bootstrap::{StatsConfig, StatsMatcher};
use regex::Regex;

use super::buckets::{Bounds, BucketMode};
use super::json::JsonWriter;
use super::prometheus::{PrometheusWriter, Series};
use super::tags::{TagError, TagExtractor};
use super::{Exemplars, Family, FamilyKind, Registry, Scope, names, text};

/// A piece of output is about this large, in bytes.
const PIECE_BYTES: usize = 32 * 1024;
/// So many stats are collected at once.
const BATCH: usize = 8 * 1024;
/// Each batch looks at all names, so there are never more than these.
const MAX_BATCHES: usize = 4;

/// What the configuration says about how stats are shown.
#[derive(Debug, Default)]
pub struct ExportSettings {
    /// Tag rules.
    pub tags: TagExtractor,
    /// Which stats exist.
    pub matcher: StatsMatcher,
    /// Bounds of histogram buckets.
    pub bounds: Bounds,
}

impl ExportSettings {
    /// From the bootstrap.
    pub fn new(config: &StatsConfig) -> Result<Self, TagError> {
        Ok(Self {
            tags: TagExtractor::new(config)?,
            matcher: config.matcher.clone(),
            bounds: Bounds::new(config.histogram_buckets.clone()),
        })
    }
}

/// Which stats are shown, and how.
#[derive(Clone, Debug)]
pub struct Query {
    /// The form.
    pub format: Format,
    /// Histograms.
    pub buckets: BucketMode,
    /// Only these kinds.
    pub kinds: Kinds,
    /// Only names in which this is found (or is not, if inverted).
    pub filter: Option<(Regex, Inverted)>,
    /// Only stats that were written.
    pub used_only: bool,
    /// Text readouts in Prometheus output too.
    pub text_readouts: bool,
}

/// Whether a filter says what is wanted or what is not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Inverted {
    /// Names that match are shown.
    No,
    /// Names that match are left out.
    Yes,
}

/// The form of output.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// Lines.
    Text,
    /// One object.
    Json,
    /// Prometheus text.
    Prometheus,
    /// OpenMetrics text.
    OpenMetrics,
}

impl Format {
    /// Whether stats are series of metrics, with tags as labels.
    pub fn has_labels(self) -> bool {
        matches!(self, Self::Prometheus | Self::OpenMetrics)
    }
}

/// Kinds of stats.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kinds {
    /// All.
    All,
    /// Counters.
    Counters,
    /// Gauges.
    Gauges,
    /// Histograms.
    Histograms,
    /// Text readouts.
    TextReadouts,
}

impl Query {
    fn wants_name(&self, settings: &ExportSettings, name: &str) -> bool {
        let passes = match &self.filter {
            None => true,
            Some((filter, inverted)) => filter.is_match(name) != (*inverted == Inverted::Yes),
        };
        passes && names::exists(&settings.matcher, name)
    }

    fn wants(&self, family: &Family) -> bool {
        let (kind, used) = match &family.kind {
            FamilyKind::Counter(value) => (Kinds::Counters, *value != 0),
            // Being 0 is a state too: agents wait for `server.state` to become it.
            FamilyKind::Gauge(value) => (Kinds::Gauges, value.is_some()),
            FamilyKind::Histogram(values) => (Kinds::Histograms, !values.is_empty()),
        };
        (self.kinds == Kinds::All || self.kinds == kind) && (used || !self.used_only)
    }

    fn wants_readouts(&self) -> bool {
        matches!(self.kinds, Kinds::All | Kinds::TextReadouts) && (!self.format.has_labels() || self.text_readouts)
    }
}

/// A part of the stats that is collected at once.
#[derive(Clone, Copy, Debug)]
enum Batch {
    Whole,
    /// Scalars of names in a range.
    Scalars(usize),
    /// Histograms of names in a range.
    Histograms(usize),
    /// Metrics of a group.
    Metrics(u8),
}

enum Current {
    Families(std::vec::IntoIter<Family>),
    Series(std::vec::IntoIter<Series>),
}

/// Where stats are.
pub trait Source {
    /// Those in use.
    fn registry(&self) -> &Registry;

    /// Those that stand in the configuration, see [`super::Declared`].
    fn declared(&self, visit: &mut dyn FnMut(&str, &dyn Scope));

    /// Examples of what histograms have counted.
    fn exemplars(&self) -> &Exemplars;
}

/// Gives the output piece by piece.
pub struct Export<S> {
    source: S,
    settings: Rc<ExportSettings>,
    query: Query,
    readouts: Option<Vec<(String, String)>>,
    batches: VecDeque<Batch>,
    /// First names of the ranges after the first.
    bounds: Vec<String>,
    /// Group of each name, by the name's hash.
    groups: HashMap<u64, u8>,
    current: Current,
    json: JsonWriter,
    prometheus: PrometheusWriter,
    finished: bool,
}

impl<S: Source> Export<S> {
    /// The output of `query`; `readouts` are all text readouts by name.
    pub fn new(source: S, settings: Rc<ExportSettings>, query: Query, readouts: Vec<(String, String)>) -> Self {
        let prometheus = match query.format {
            Format::OpenMetrics => PrometheusWriter::open_metrics(),
            Format::Text | Format::Json | Format::Prometheus => PrometheusWriter::default(),
        };
        let mut export = Self {
            source,
            settings,
            query,
            readouts: Some(readouts),
            batches: VecDeque::from([Batch::Whole]),
            bounds: Vec::new(),
            groups: HashMap::new(),
            current: Current::Families(Vec::new().into_iter()),
            json: JsonWriter::default(),
            prometheus,
            finished: false,
        };
        export.plan();
        export
    }

    /// Divides stats into batches if there are many.
    fn plan(&mut self) {
        let count = std::cell::Cell::new(0);
        self.each_name(&mut |_| count.set(count.get() + 1));
        let count = count.get();
        if count <= BATCH {
            return;
        }
        let batches = count.div_ceil(BATCH).min(MAX_BATCHES);
        if self.query.format.has_labels() {
            // Series of one metric belong together, wherever their names stand.
            let mut groups = HashMap::new();
            let settings = Rc::clone(&self.settings);
            self.each_name(&mut |name| {
                groups.entry(hash(name)).or_insert_with(|| {
                    let metric = settings.tags.extract(name).base;
                    (hash(&metric) % batches as u64) as u8
                });
            });
            self.groups = groups;
            self.batches = (0..batches as u8).map(Batch::Metrics).collect();
            return;
        }
        let every = count.div_ceil(batches);
        let mut bounds = Vec::new();
        let mut seen = 0;
        self.each_name(&mut |name| {
            seen += 1;
            if seen % every == 0 {
                bounds.push(name.to_owned());
            }
        });
        bounds.sort();
        let ranges = bounds.len() + 1;
        self.bounds = bounds;
        self.batches = (0..ranges).map(Batch::Scalars).chain((0..ranges).map(Batch::Histograms)).collect();
    }

    fn each_name(&self, visit: &mut dyn FnMut(&str)) {
        let visit = std::cell::RefCell::new(visit);
        // Wanting nothing, this only shows the names.
        self.collect(&|name| {
            if self.query.wants_name(&self.settings, name)
                && let Ok(mut visit) = visit.try_borrow_mut()
            {
                visit(name);
            }
            false
        });
    }

    fn collect(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<Family> {
        if self.query.used_only {
            return self.source.registry().collect(wanted);
        }
        self.source.registry().collect_with(&|visit| self.source.declared(visit), wanted)
    }

    fn gather(&self, batch: Batch) -> Current {
        let in_range = |index: usize, name: &str| {
            self.bounds.get(index).is_none_or(|end| name < end.as_str())
                && (index == 0 || self.bounds.get(index - 1).is_none_or(|start| name >= start.as_str()))
        };
        let in_batch = |name: &str| match batch {
            Batch::Whole => true,
            Batch::Scalars(index) | Batch::Histograms(index) => in_range(index, name),
            // A stat that came after planning goes with the first group.
            Batch::Metrics(group) => self.groups.get(&hash(name)).copied().unwrap_or(0) == group,
        };
        let mut families = self.collect(&|name| in_batch(name) && self.query.wants_name(&self.settings, name));
        families.retain(|family| self.query.wants(family));
        let is_histogram = |family: &Family| matches!(family.kind, FamilyKind::Histogram(_));
        match batch {
            Batch::Scalars(_) => families.retain(|family| !is_histogram(family)),
            Batch::Histograms(_) => families.retain(is_histogram),
            // A stable sort: names stay in order.
            Batch::Whole | Batch::Metrics(_) => families.sort_by_key(is_histogram),
        }
        if !self.query.format.has_labels() {
            return Current::Families(families.into_iter());
        }
        let mut series: Vec<Series> =
            families.into_iter().map(|family| Series::new(family, &self.settings.tags)).collect();
        series.sort_by(|a, b| a.order().cmp(&b.order()));
        Current::Series(series.into_iter())
    }

    fn begin(&mut self, out: &mut String, readouts: Vec<(String, String)>) {
        if self.query.format == Format::Json {
            self.json.open(out);
        }
        if !self.query.wants_readouts() {
            return;
        }
        for (name, value) in readouts {
            if !self.query.wants_name(&self.settings, &name) || (self.query.used_only && value.is_empty()) {
                continue;
            }
            match self.query.format {
                Format::Text => text::write_readout(out, &name, &value),
                Format::Json => self.json.write_readout(out, &name, &value),
                Format::Prometheus | Format::OpenMetrics => {
                    self.prometheus.write_readout(out, &name, &value, &self.settings.tags)
                }
            }
        }
    }

    /// Writes one stat; false when the batch is used up.
    fn write_next(&mut self, out: &mut String) -> bool {
        let bounds = &self.settings.bounds;
        match &mut self.current {
            Current::Families(families) => {
                let Some(family) = families.next() else { return false };
                match self.query.format {
                    Format::Json => self.json.write(out, &family, self.query.buckets, bounds),
                    Format::Text | Format::Prometheus | Format::OpenMetrics => {
                        text::write(out, &family, self.query.buckets, bounds)
                    }
                }
            }
            Current::Series(series) => {
                let Some(series) = series.next() else { return false };
                let exemplars = match (self.query.format, &series.family.kind) {
                    (Format::OpenMetrics, FamilyKind::Histogram(_)) => self.source.exemplars().of(&series.family.name),
                    _ => Vec::new(),
                };
                self.prometheus.write(out, &series, self.query.buckets, bounds, &exemplars);
            }
        }
        true
    }
}

impl<S: Source> Iterator for Export<S> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.finished {
            return None;
        }
        let mut out = String::new();
        if let Some(readouts) = self.readouts.take() {
            self.begin(&mut out, readouts);
        }
        while out.len() < PIECE_BYTES {
            if self.write_next(&mut out) {
                continue;
            }
            match self.batches.pop_front() {
                Some(batch) => self.current = self.gather(batch),
                None => {
                    if self.query.format == Format::Json {
                        self.json.close(&mut out, self.query.buckets);
                    }
                    self.prometheus.close(&mut out);
                    self.finished = true;
                    break;
                }
            }
        }
        (!out.is_empty()).then_some(out)
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::scope;

    scope! {
        struct Sample { upstream_cx_total: Counter, upstream_cx_active: Gauge, upstream_rq: StatusCounters, upstream_rq_time: Histogram }
    }

    struct Shared(Registry, Exemplars);

    impl Source for Shared {
        fn registry(&self) -> &Registry {
            &self.0
        }

        fn declared(&self, _: &mut dyn FnMut(&str, &dyn Scope)) {}

        fn exemplars(&self) -> &Exemplars {
            &self.1
        }
    }

    fn query(format: Format) -> Query {
        let buckets = if format == Format::Prometheus { BucketMode::Cumulative } else { BucketMode::Summary };
        Query { format, buckets, kinds: Kinds::All, filter: None, used_only: false, text_readouts: false }
    }

    fn settings() -> Rc<ExportSettings> {
        Rc::new(ExportSettings::new(&super::super::tags::tests::config(&[], true)).unwrap())
    }

    fn many(count: usize) -> (Shared, Vec<Arc<Sample>>) {
        let shared = Shared(Registry::default(), Exemplars::default());
        let scopes: Vec<Arc<Sample>> =
            (0..count).map(|index| shared.0.scope::<Sample>(&format!("cluster.c{index}."))).collect();
        for scope in &scopes {
            scope.upstream_cx_total.increment();
            scope.upstream_rq.increment(200);
            scope.upstream_rq_time.record(3);
        }
        (shared, scopes)
    }

    #[test]
    fn text_has_readouts_then_scalars_then_histograms_each_by_name() {
        let (shared, _scopes) = many(2);
        let readouts = vec![("cluster_manager.cds.version_text".to_owned(), "v1".to_owned())];
        let text: String = Export::new(shared, settings(), query(Format::Text), readouts).collect();
        let lines: Vec<&str> = text.lines().map(|line| line.split_once(": ").unwrap().0).collect();
        assert_eq!(
            lines,
            [
                "cluster_manager.cds.version_text",
                "cluster.c0.upstream_cx_active",
                "cluster.c0.upstream_cx_total",
                "cluster.c0.upstream_rq_200",
                "cluster.c1.upstream_cx_active",
                "cluster.c1.upstream_cx_total",
                "cluster.c1.upstream_rq_200",
                "cluster.c0.upstream_rq_time",
                "cluster.c1.upstream_rq_time",
            ]
        );
    }

    #[test]
    fn queries_choose_by_name_kind_and_use() {
        let (shared, scopes) = many(2);
        let mut query = query(Format::Text);
        query.filter = Some((Regex::new("c1").unwrap(), Inverted::No));
        query.used_only = true;
        query.kinds = Kinds::Counters;
        let shared = Rc::new(shared);
        struct Handle(Rc<Shared>);
        impl Source for Handle {
            fn registry(&self) -> &Registry {
                &self.0.0
            }

            fn declared(&self, visit: &mut dyn FnMut(&str, &dyn Scope)) {
                visit("cluster.unused.", &Sample::default());
            }

            fn exemplars(&self) -> &Exemplars {
                &self.0.1
            }
        }
        let text = |query: &Query| -> String {
            Export::new(Handle(Rc::clone(&shared)), settings(), query.clone(), Vec::new()).collect()
        };
        assert_eq!(text(&query), "cluster.c1.upstream_cx_total: 1\ncluster.c1.upstream_rq_200: 1\n");
        query.filter = Some((Regex::new("c1|_rq").unwrap(), Inverted::Yes));
        assert_eq!(text(&query), "cluster.c0.upstream_cx_total: 1\n");
        query.filter = None;
        query.kinds = Kinds::Gauges;
        assert_eq!(text(&query), "");
        scopes[1].upstream_cx_active.increment();
        scopes[1].upstream_cx_active.decrement();
        assert_eq!(text(&query), "cluster.c1.upstream_cx_active: 0\n");
        query.used_only = false;
        query.filter = Some((Regex::new("unused").unwrap(), Inverted::No));
        assert_eq!(text(&query), "cluster.unused.upstream_cx_active: 0\n");
    }

    #[test]
    fn many_stats_come_in_pieces_and_all_of_them_once() {
        let count = 6000;
        for format in [Format::Text, Format::Json, Format::Prometheus, Format::OpenMetrics] {
            let (shared, _scopes) = many(count);
            let pieces: Vec<String> = Export::new(shared, settings(), query(format), Vec::new()).collect();
            assert!(pieces.len() > 10);
            assert!(pieces.iter().all(|piece| piece.len() < 2 * PIECE_BYTES));
            let all = pieces.concat();
            match format {
                Format::OpenMetrics => assert!(all.ends_with("\n# EOF\n")),
                Format::Text => {
                    assert_eq!(all.lines().count(), 4 * count);
                    let scalars: Vec<&str> = all.lines().take(3 * count).collect();
                    assert!(scalars.is_sorted());
                }
                Format::Json => {
                    let object: serde_json::Value = serde_json::from_str(&all).unwrap();
                    assert_eq!(object["stats"].as_array().unwrap().len(), 3 * count + 1);
                }
                Format::Prometheus => {
                    assert_eq!(all.matches("# TYPE ").count(), 4);
                    assert_eq!(
                        all.lines().filter(|line| line.starts_with("envoy_cluster_upstream_rq{")).count(),
                        count
                    );
                }
            }
        }
    }
}
