use std::collections::HashMap;
use std::process::Command;
use std::thread;

use super::super::System;
use super::*;

/// Files that are not there.
#[derive(Default)]
struct Files(HashMap<PathBuf, Vec<u8>>);

impl Files {
    fn with(path: &str, content: &str) -> Self {
        Self(HashMap::from([(path.into(), content.into())]))
    }
}

impl Environment for Files {
    fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

fn options(path: &str, yaml: &str) -> Options {
    Options { config_path: (!path.is_empty()).then(|| path.into()), config_yaml: yaml.to_owned(), ..Options::default() }
}

fn problems(options: &Options, files: &Files) -> Vec<String> {
    load(options, files).expect_err("must be refused").problems()
}

const YAML: &str =
    "node: {id: a, cluster: b}\nstatic_resources:\n  clusters:\n  - name: one\n    connect_timeout: 1s\n";
const JSON: &str =
    r#"{"node": {"id": "a"}, "staticResources": {"clusters": [{"name": "one", "connect_timeout": "1s"}]}}"#;

#[test]
fn all_formats_are_read() {
    for (path, content) in [("a.yaml", YAML), ("a.json", JSON), ("a.conf", JSON), ("a", YAML), ("/dev/fd/3", JSON)] {
        let loaded = load(&options(path, ""), &Files::with(path, content)).unwrap();
        assert_eq!(loaded.bootstrap.node.id, "a", "{path}");
        assert_eq!(loaded.bootstrap.clusters.len(), 1, "{path}");
        assert!(loaded.warnings.is_empty());
    }
    let binary = {
        use prost::Message as _;
        let loaded = load(&options("a.yaml", ""), &Files::with("a.yaml", YAML)).unwrap();
        Files(HashMap::from([("a.pb".into(), loaded.message.encode_to_vec())]))
    };
    assert_eq!(load(&options("a.pb", ""), &binary).unwrap().bootstrap.clusters.len(), 1);
    let wrong_end = problems(&options("a.json", ""), &Files::with("a.json", YAML));
    assert!(wrong_end[0].starts_with("a.json: not valid JSON: "), "{wrong_end:?}");
}

#[test]
fn a_fifo_is_read_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("envoy-1-bootstrap.json");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let writer = thread::spawn({
        let path = path.clone();
        move || {
            use std::io::Write;
            let mut fifo = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            for chunk in JSON.as_bytes().chunks(7) {
                fifo.write_all(chunk).unwrap();
            }
        }
    });
    let loaded = load(&options(path.to_str().unwrap(), ""), &System).unwrap();
    assert_eq!(loaded.bootstrap.clusters.len(), 1);
    writer.join().unwrap();
}

#[test]
fn text_is_merged_over_the_file() {
    let over = "node: {id: c}\nstatic_resources: {clusters: [{name: two, connect_timeout: 1s}]}";
    let loaded = load(&options("a.yaml", over), &Files::with("a.yaml", YAML)).unwrap();
    assert_eq!((loaded.bootstrap.node.id.as_str(), loaded.bootstrap.node.cluster.as_str()), ("c", "b"));
    let names: Vec<_> = loaded.bootstrap.clusters.iter().map(|cluster| &*cluster.name).collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(load(&options("", over), &Files::default()).unwrap().bootstrap.clusters.len(), 1);
    assert_eq!(load(&options("", JSON), &Files::default()).unwrap().bootstrap.clusters.len(), 1);
}

#[test]
fn flags_have_the_last_word() {
    let mut options = options("a.yaml", "");
    options.service_node = "flag".into();
    options.stats_tags = vec!["pod:x".parse().unwrap()];
    let loaded = load(&options, &Files::with("a.yaml", YAML)).unwrap();
    assert_eq!((loaded.bootstrap.node.id.as_str(), loaded.bootstrap.node.cluster.as_str()), ("flag", "b"));
    assert_eq!(loaded.message.node.as_ref().unwrap().user_agent_name, "envoy");
    let tag = StatsTag { name: "pod".into(), value: StatsTagValue::Fixed("x".into()) };
    assert_eq!(loaded.bootstrap.stats.tags, [tag]);
}

#[test]
fn unknown_fields_are_refused_or_left_out() {
    let text = "nodee: {id: a}\nstatic_resources: {clusterz: []}\nnode: {id: a}";
    let mut options = options("a.yaml", "");
    let files = Files::with("a.yaml", text);
    let found = problems(&options, &files);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|problem| problem.starts_with("a.yaml: nodee: ")), "{found:?}");
    assert!(found.iter().any(|problem| problem.starts_with("a.yaml: static_resources.clusterz: ")), "{found:?}");
    options.allow_unknown_static_fields = true;
    let mut warnings = load(&options, &files).unwrap().warnings;
    warnings.sort();
    assert_eq!(
        warnings,
        ["a.yaml: unknown field nodee is left out", "a.yaml: unknown field static_resources.clusterz is left out"]
    );
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let text = "unknown: 1\nstatic_resources: {clusters: [{name: one, connect_timeout: -1s}, {name: ''}]}\n\
                admin: {address: {socket_address: {address: not-an-ip, port_value: 0}}}";
    let found = problems(&options("a.yaml", ""), &Files::with("a.yaml", text));
    assert!(found.len() >= 3, "{found:?}");
    assert!(found[0].starts_with("a.yaml: unknown: "), "{found:?}");
    assert!(found.iter().any(|problem| problem.contains("connect_timeout")), "{found:?}");
}

#[test]
fn what_cannot_be_read_says_why() {
    let none = Files::default();
    assert_eq!(problems(&options("", ""), &none), ["no bootstrap: give --config-path, --config-yaml or both"]);
    assert_eq!(problems(&options("no.yaml", ""), &none), ["cannot read no.yaml: entity not found"]);
    let broken = problems(&options("a.yaml", ""), &Files::with("a.yaml", "static_resources: ["));
    assert!(broken[0].starts_with("a.yaml: not valid YAML: "), "{broken:?}");
    let typed = problems(&options("", "node: {id: [1]}\nadmin: 3"), &none);
    assert!(typed.len() == 2 && typed.iter().all(|problem| problem.starts_with("--config-yaml: ")), "{typed:?}");
}

#[test]
fn the_log_format_is_said_once() {
    let text = "application_log_config: {log_format: {text_format: '%l %v'}}";
    let mut options = options("", text);
    let loaded = load(&options, &Files::default()).unwrap();
    assert_eq!(loaded.log_pattern, Some(Pattern::new("%l %v", Escape::None)));
    options.log_format = Some("%v".into());
    assert_eq!(
        problems(&options, &Files::default()),
        ["application_log_config.log_format and --log-format exclude each other"]
    );
    options.log_format = None;
    options.config_yaml = "application_log_config: {log_format: {json_format: {m: '%v'}}}".into();
    assert_eq!(
        problems(&options, &Files::default()),
        ["application_log_config.log_format: member \"m\": %v would break the JSON, write %j for the message"]
    );
}
