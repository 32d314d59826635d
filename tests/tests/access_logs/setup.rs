//! Pieces of configuration for access logs.

use outrigger_tests::config::{cluster, cluster_with};

/// A file log with fields after `path`.
pub fn file(name: &str, fields: &str, filter: &str) -> String {
    format!(
        "{{ name: envoy.access_loggers.file{filter}, typed_config: {{ \
         '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: '$dir/{name}'{fields} }} }}"
    )
}

/// A text format of one line.
pub fn text(format: &str) -> String {
    let quoted = format.replace('\'', "''");
    format!(", log_format: {{ text_format_source: {{ inline_string: '{quoted}\n\n' }} }}")
}

/// A field with access logs.
pub fn logs(all: &[String]) -> String {
    format!(", access_log: [{}]", all.join(", "))
}

/// The cluster `one` with metadata, `gone` that nobody listens for, and `empty`.
pub fn clusters(port: u16, gone: u16) -> Vec<String> {
    let metadata =
        ", alt_stat_name: other, metadata: { filter_metadata: { m: { text: a, number: 3, deep: { flag: true } } } }";
    vec![cluster_with("one", &[port], metadata), cluster("gone", &[gone]), cluster("empty", &[])]
}
