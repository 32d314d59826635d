//! Tags in stat names (`envoy.config.metrics.v3.TagSpecifier`): which parts of a name are values, and of what.
//!
//! Owns the default rules and the configured ones. Every rule looks at the whole name; what the rules took is cut out
//! afterwards, so their order decides nothing but the order of the tags. Never formats (see `prometheus`).

use std::ops::Range;

use fancy_regex::Regex;
use outrigger_config::bootstrap::{StatsConfig, StatsTag, StatsTagValue};

use super::default_tags::{DEFAULTS, Rule};

/// Why tag rules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// The regular expression has an error.
    #[error("stats tag {name:?}: {regex:?} is not a regular expression: {reason}")]
    Regex {
        /// The tag.
        name: String,
        /// As configured.
        regex: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither a value nor a regular expression is given, and there is no default rule of that name.
    #[error("stats tag {name:?}: give a regex or a fixed value, since no default rule has this name")]
    Unknown {
        /// The tag.
        name: String,
    },
    /// A default rule already has the name.
    #[error("stats tag {name:?}: a default rule has this name; set allow_default_tag_overrides to replace it")]
    Default {
        /// The tag.
        name: String,
    },
}

/// All tag rules.
#[derive(Debug, Default)]
pub struct TagExtractor {
    defaults: Vec<(&'static str, Rule)>,
    configured: Vec<(String, Regex)>,
    fixed: Vec<(String, String)>,
}

/// A stat name with its tags taken out.
#[derive(Debug, Eq, PartialEq)]
pub struct Tagged<'a> {
    /// What is left of the name.
    pub base: String,
    /// Names and values; fixed tags first.
    pub tags: Vec<(&'a str, &'a str)>,
}

/// What a rule found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Found {
    /// Cut out of the name.
    pub removed: Range<usize>,
    /// The tag's value.
    pub value: Range<usize>,
}

impl TagExtractor {
    /// The rules of this configuration.
    pub fn new(config: &StatsConfig) -> Result<Self, TagError> {
        let mut extractor = Self::default();
        if config.use_all_default_tags {
            extractor.defaults = DEFAULTS.to_vec();
        }
        for StatsTag { name, value } in &config.tags {
            match value {
                StatsTagValue::Fixed(value) => extractor.fixed.push((name.clone(), value.clone())),
                StatsTagValue::Regex(regex) if regex.is_empty() => extractor.add_default(name)?,
                StatsTagValue::Regex(regex) => {
                    if extractor.defaults.iter().any(|(default, _)| default == name) {
                        if !config.allow_default_tag_overrides {
                            return Err(TagError::Default { name: name.clone() });
                        }
                        extractor.defaults.retain(|(default, _)| default != name);
                    }
                    let compiled = Regex::new(regex).map_err(|error| TagError::Regex {
                        name: name.clone(),
                        regex: regex.clone(),
                        reason: error.to_string(),
                    })?;
                    extractor.configured.push((name.clone(), compiled));
                }
            }
        }
        // Labels of rules for one kind of stat stand behind the others, whatever the order they are configured in.
        extractor.configured.sort_by_key(|(_, regex)| is_for_one_kind(regex.as_str()));
        Ok(extractor)
    }

    fn add_default(&mut self, name: &str) -> Result<(), TagError> {
        if self.defaults.iter().any(|(known, _)| *known == name) {
            return Ok(());
        }
        let before = self.defaults.len();
        self.defaults.extend(DEFAULTS.iter().filter(|(known, _)| *known == name));
        if self.defaults.len() == before { Err(TagError::Unknown { name: name.to_owned() }) } else { Ok(()) }
    }

    /// Takes the tags out of `name`. Of several rules for one tag the first that matches counts.
    pub fn extract<'a>(&'a self, name: &'a str) -> Tagged<'a> {
        let mut tags: Vec<(&str, &str)> =
            self.fixed.iter().map(|(tag, value)| (tag.as_str(), value.as_str())).collect();
        if let Some(rest) = name.strip_prefix(LABELLED) {
            let bare = labels(rest, &mut tags);
            return Tagged { base: format!("{LABELLED}{bare}"), tags };
        }
        let mut removed: Vec<Range<usize>> = Vec::new();
        let mut take = |tag: &'a str, found: Found| {
            tags.push((tag, &name[found.value]));
            removed.push(found.removed);
        };
        let mut last = "";
        for (tag, rule) in &self.defaults {
            // Rules for one tag stand together.
            if *tag != last
                && let Some(found) = rule.find(name)
            {
                last = tag;
                take(tag, found);
            }
        }
        let mut seen: Vec<&str> = Vec::new();
        for (tag, regex) in &self.configured {
            if !seen.contains(&tag.as_str())
                && let Some(found) = search(regex, name)
            {
                seen.push(tag);
                take(tag, found);
            }
        }
        Tagged { base: without(name, removed), tags }
    }
}

/// Takes the labels off the beginning of a name, and gives the rest.
fn labels<'a>(mut name: &'a str, tags: &mut Vec<(&'a str, &'a str)>) -> &'a str {
    while let Some((label, rest)) = name.split_once(LABEL_END)
        && let Some((tag, value)) = label.split_once(LABEL_VALUE)
    {
        tags.push((tag, value));
        name = rest;
    }
    name
}

/// Names that begin so say themselves what their labels are (`label=.=value;.;`); rules are for other names.
const LABELLED: &str = "istiocustom.";
/// Between a label and its value.
pub const LABEL_VALUE: &str = "=.=";
/// Behind the value of a label, which must not hold it.
pub const LABEL_END: &str = ";.;";

/// Whether a rule begins with a fixed first part of names, such as `^http\.`.
fn is_for_one_kind(regex: &str) -> bool {
    let Some(rest) = regex.strip_prefix('^') else { return false };
    let length = rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
    length > 0 && (rest[length..].starts_with("\\.") || rest[length..].starts_with("(?=\\.)"))
}

/// The first group is cut out, the second is the value; a rule of one group uses it for both.
fn search(regex: &Regex, name: &str) -> Option<Found> {
    // Fails only when look-around takes too many steps; such a name has no tag then.
    let captures = regex.captures(name).ok().flatten()?;
    let removed = captures.get(1)?.range();
    let value = captures.get(2).map_or_else(|| removed.clone(), |group| group.range());
    Some(Found { removed, value })
}

fn without(name: &str, mut removed: Vec<Range<usize>>) -> String {
    removed.sort_by_key(|range| range.start);
    let mut base = String::with_capacity(name.len());
    let mut at = 0;
    for range in removed {
        if range.start > at {
            base.push_str(&name[at..range.start]);
        }
        at = at.max(range.end);
    }
    base.push_str(&name[at..]);
    base
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use outrigger_config::bootstrap::StatsMatcher;

    pub fn config(tags: &[(&str, &str)], defaults: bool) -> StatsConfig {
        let tag = |(name, regex): &(&str, &str)| StatsTag {
            name: (*name).to_owned(),
            value: StatsTagValue::Regex((*regex).to_owned()),
        };
        StatsConfig {
            tags: tags.iter().map(tag).collect(),
            use_all_default_tags: defaults,
            allow_default_tag_overrides: false,
            matcher: StatsMatcher::All,
            histogram_buckets: Vec::new(),
        }
    }

    fn shown(extractor: &TagExtractor, name: &str) -> String {
        let Tagged { base, tags } = extractor.extract(name);
        let tags: Vec<String> = tags.iter().map(|(tag, value)| format!("{tag}={value}")).collect();
        format!("{base} {}", tags.join(" ")).trim_end().to_owned()
    }

    /// The rules that Istio's agent writes, in its order.
    const MESH: &[(&str, &str)] = &[
        ("cluster_name", r"^cluster(\.(.+);)"),
        ("http_conn_manager_prefix", r"^http\.(((?:[_.[:digit:]\w]*|[_\[\]aAbBcCdDeEfF[:digit:]\w\:]*));\.)"),
        ("thread_name", r"^server(\.(.+))\.watchdog"),
        ("tcp_prefix", r"^tcp\.((.*?)\.)\w+?$"),
        ("response_code", r"_rq(_(\d{3}))$"),
        ("response_code_class", r"_rq(_(\dxx))$"),
        (
            "http_conn_manager_listener_prefix",
            r"^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
        ),
        ("listener_address", r"^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)"),
        ("mongo_prefix", r"^mongo\.(.+?)\.(collection|cmd|cx_|op_|delays_|decoding_)(.*?)$"),
        ("cache", r"(cache\.(.+?)\.)"),
        ("component", r"(component\.(.+?)\.)"),
        ("tag", r"(tag\.(.+?);\.)"),
        ("wasm_filter", r"(wasm_filter\.(.+?)\.)"),
        ("authz_enforce_result", r"rbac(\.(allowed|denied))"),
        ("authz_dry_run_action", r"(\.istio_dry_run_(allow|deny)_)"),
        ("authz_dry_run_result", r"(\.shadow_(allowed|denied))"),
    ];

    #[test]
    fn the_rules_of_a_mesh_work_as_written_look_ahead_included() {
        let extractor = TagExtractor::new(&config(MESH, false)).unwrap();
        for (name, wanted) in [
            ("cluster.xds-grpc;.upstream_cx_active", "cluster.upstream_cx_active cluster_name=xds-grpc"),
            (
                "cluster.outbound|80||a.svc;.upstream_rq_503",
                "cluster.upstream_rq cluster_name=outbound|80||a.svc response_code=503",
            ),
            (
                "http.inbound_0.0.0.0_8080;.downstream_rq_2xx",
                "http.downstream_rq response_code_class=2xx http_conn_manager_prefix=inbound_0.0.0.0_8080",
            ),
            (
                "listener.127.0.0.1_80.http.10.0.0.1_80.downstream_cx_total",
                "listener.http.downstream_cx_total http_conn_manager_listener_prefix=10.0.0.1_80 \
                 listener_address=127.0.0.1_80",
            ),
            ("server.worker_0.watchdog_miss", "server.watchdog_miss thread_name=worker_0"),
            ("http.in;.rbac.allowed", "http.rbac authz_enforce_result=allowed http_conn_manager_prefix=in"),
            ("istio_build.component.proxy.tag.1.28.0;.value", "istio_build.value component=proxy tag=1.28.0"),
        ] {
            assert_eq!(shown(&extractor, name), wanted, "{name}");
        }
    }

    #[test]
    fn names_that_say_their_labels_are_taken_at_their_word() {
        let name = "istiocustom.reporter=.=source;.;destination_service=.=cache.x.svc=.=;;.;code=.=;.;istio_x";
        let expected = "istiocustom.istio_x reporter=source destination_service=cache.x.svc=.=; code=";
        for extractor in [TagExtractor::default(), TagExtractor::new(&config(MESH, true)).unwrap()] {
            assert_eq!(shown(&extractor, name), expected);
        }
        assert_eq!(shown(&TagExtractor::default(), "istiocustom.a;.;b"), "istiocustom.a;.;b");
    }

    #[test]
    fn a_default_rule_can_be_named_alone_and_replaced_only_on_demand() {
        let alone = TagExtractor::new(&config(&[("envoy.cluster_name", "")], false)).unwrap();
        assert_eq!(shown(&alone, "cluster.a.upstream_rq_200"), "cluster.upstream_rq_200 envoy.cluster_name=a");
        assert!(matches!(TagExtractor::new(&config(&[("x", "")], true)), Err(TagError::Unknown { .. })));
        let mut replaced = config(&[("envoy.cluster_name", r"^cluster\.((\w+):\w+\.)")], true);
        assert!(matches!(TagExtractor::new(&replaced), Err(TagError::Default { .. })));
        replaced.allow_default_tag_overrides = true;
        let replaced = TagExtractor::new(&replaced).unwrap();
        assert_eq!(shown(&replaced, "cluster.a:1.x"), "cluster.x envoy.cluster_name=a");
    }

    #[test]
    fn a_bad_rule_is_named() {
        let error = TagExtractor::new(&config(&[("zone", "((")], true)).unwrap_err();
        assert!(error.to_string().starts_with("stats tag \"zone\": \"((\" is not a regular expression"), "{error}");
    }

    #[test]
    fn fixed_tags_come_first_and_overlapping_cuts_are_made_once() {
        let mut config = config(&[("a", r"(x\.(y)\.)"), ("b", r"(y\.(z)\.)")], false);
        config.tags.push(StatsTag { name: "pod".to_owned(), value: StatsTagValue::Fixed("p1".to_owned()) });
        let extractor = TagExtractor::new(&config).unwrap();
        assert_eq!(shown(&extractor, "x.y.z.total"), "total pod=p1 a=y b=z");
    }
}
