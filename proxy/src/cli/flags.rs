//! The table of flags.
//!
//! Owns, for each flag, its name, what it takes, what it sets, and what the help says. Everything else about the
//! command line follows from this table.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::options::Options;

/// One flag.
pub(super) struct Flag {
    /// Without dashes.
    pub name: &'static str,
    /// A letter that stands for it.
    pub short: Option<char>,
    pub effect: Effect,
    pub standing: Standing,
    pub help: &'static str,
}

/// What a flag does.
pub(super) enum Effect {
    /// Takes no value.
    Switch(fn(&mut Options)),
    /// Takes a value, called so in the help.
    Value(&'static str, fn(&mut Options, &str) -> Result<(), String>),
    /// Takes a value, and may be given several times.
    Repeated(&'static str, fn(&mut Options, &str) -> Result<(), String>),
    /// Prints something instead of starting.
    Print(Print),
    /// What follows on the command line is not looked at.
    Rest,
}

/// What can be printed instead of starting.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Print {
    Help,
    Version,
    HotRestartVersion,
}

/// Whose flag it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// Envoy's.
    Envoys,
    /// Envoy's, and harmless to leave without effect.
    Accepted,
    /// Envoy's, without effect here: whoever gives it is told why.
    WithoutEffect(&'static str),
    /// Not known to Envoy.
    Own,
}

const fn switch(name: &'static str, set: fn(&mut Options), standing: Standing, help: &'static str) -> Flag {
    Flag { name, short: None, effect: Effect::Switch(set), standing, help }
}

const fn value(
    name: &'static str,
    placeholder: &'static str,
    set: fn(&mut Options, &str) -> Result<(), String>,
    standing: Standing,
    help: &'static str,
) -> Flag {
    Flag { name, short: None, effect: Effect::Value(placeholder, set), standing, help }
}

const fn short(letter: char, flag: Flag) -> Flag {
    Flag { short: Some(letter), ..flag }
}

const fn printing(name: &'static str, print: Print, help: &'static str) -> Flag {
    Flag { name, short: None, effect: Effect::Print(print), standing: Standing::Envoys, help }
}

/// Puts a parsed value in its place.
fn put<T: FromStr<Err: ToString>>(place: &mut T, text: &str) -> Result<(), String> {
    *place = text.parse().map_err(|error: T::Err| error.to_string())?;
    Ok(())
}

fn put_path(place: &mut Option<PathBuf>, text: &str) -> Result<(), String> {
    *place = (!text.is_empty()).then(|| PathBuf::from(text));
    Ok(())
}

fn number(text: &str) -> Result<u32, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is not a whole number from 0 to {}", u32::MAX))
}

const NO_HOT_RESTART: Standing = Standing::WithoutEffect("there is no hot restart; run the new process beside the old");

use Standing::{Accepted, Envoys, Own, WithoutEffect};

/// All flags, in the order of the help.
pub(super) static FLAGS: &[Flag] = &[
    short(
        'c',
        value(
            "config-path",
            "path",
            |o, v| put_path(&mut o.config_path, v),
            Envoys,
            "Bootstrap file: JSON, YAML or binary protobuf, told apart by its ending and content. Read once, so it may be a \
         FIFO.",
        ),
    ),
    value(
        "config-yaml",
        "text",
        |o, v| put(&mut o.config_yaml, v),
        Envoys,
        "Bootstrap as YAML or JSON text. With a file, it is merged over it: single values replace, lists grow.",
    ),
    value(
        "mode",
        "mode",
        |o, v| put(&mut o.mode, v),
        Envoys,
        "serve (the default), validate (check the bootstrap, print what is wrong, exit) or init_only (start, then exit \
         once that has worked).",
    ),
    value("service-node", "id", |o, v| put(&mut o.service_node, v), Envoys, "Replaces node.id of the bootstrap."),
    value(
        "service-cluster",
        "name",
        |o, v| put(&mut o.service_cluster, v),
        Envoys,
        "Replaces node.cluster of the bootstrap.",
    ),
    value(
        "service-zone",
        "name",
        |o, v| put(&mut o.service_zone, v),
        Envoys,
        "Replaces node.locality.zone of the bootstrap.",
    ),
    value(
        "concurrency",
        "count",
        |o, v| {
            o.concurrency = Some(number(v)?.max(1));
            Ok(())
        },
        Envoys,
        "Number of worker threads. By default one for each CPU that --cpu-policy chooses, and no more than the CPU limit \
         of the container.",
    ),
    switch(
        "cpuset-threads",
        |o| o.cpuset_threads = true,
        Envoys,
        "A worker for each CPU that the process may use; the same as --cpu-policy none.",
    ),
    value(
        "cpu-policy",
        "policy",
        |o, v| {
            o.cpu_policy = Some(v.parse::<crate::worker::topology::CpuPolicy>().map_err(|error| error.to_string())?);
            Ok(())
        },
        Own,
        "Which CPUs workers use: first-usable-node (the default), performance, efficiency or none (all).",
    ),
    switch(
        "dump-cpus",
        |o| o.dump_cpus = true,
        Own,
        "Prints the CPUs found and the workers planned on them, and exits.",
    ),
    value(
        "drain-time-s",
        "seconds",
        |o, v| {
            o.drain_time = Duration::from_secs(number(v)?.into());
            Ok(())
        },
        Envoys,
        "How long connections may go on after their listener is gone or draining has begun. 600 by default.",
    ),
    value(
        "drain-strategy",
        "strategy",
        |o, v| put(&mut o.drain_strategy, v),
        Envoys,
        "gradual (the default): connections are asked to close with growing probability over the drain time; immediate: \
         all at once.",
    ),
    value(
        "parent-shutdown-time-s",
        "seconds",
        |o, v| {
            o.parent_shutdown_time = Duration::from_secs(number(v)?.into());
            Ok(())
        },
        Accepted,
        "Accepted; concerns hot restart only.",
    ),
    switch(
        "allow-unknown-static-fields",
        |o| o.allow_unknown_static_fields = true,
        Envoys,
        "Unknown fields of the bootstrap are logged instead of refused.",
    ),
    switch(
        "allow-unknown-fields",
        |o| o.allow_unknown_static_fields = true,
        Envoys,
        "Old name of --allow-unknown-static-fields.",
    ),
    switch(
        "reject-unknown-dynamic-fields",
        |o| o.reject_unknown_dynamic_fields = true,
        Envoys,
        "Unknown fields in discovered resources are refused.",
    ),
    switch(
        "ignore-unknown-dynamic-fields",
        |o| o.ignore_unknown_dynamic_fields = true,
        Envoys,
        "Unknown fields in discovered resources are neither logged nor counted.",
    ),
    switch(
        "skip-deprecated-logs",
        |o| o.skip_deprecated_logs = true,
        Accepted,
        "Accepted; deprecated fields are not logged anyway.",
    ),
    value(
        "admin-address-path",
        "path",
        |o, v| put_path(&mut o.admin_address_path, v),
        Envoys,
        "File to write the address of the admin port to, once it is open.",
    ),
    switch(
        "admin-read-only",
        |o| o.admin_read_only = true,
        Own,
        "The admin port refuses whatever would change or end the process.",
    ),
    value(
        "local-address-ip-version",
        "version",
        |o, v| put(&mut o.local_address_ip_version, v),
        Accepted,
        "v4 (the default) or v6. Accepted and shown in /server_info.",
    ),
    short(
        'l',
        value(
            "log-level",
            "level",
            |o, v| put(&mut o.log_level, v),
            Envoys,
            "trace, debug, info (the default), warning or warn, error, critical, off.",
        ),
    ),
    value(
        "component-log-level",
        "list",
        |o, v| {
            put(&mut o.component_log_levels, v)?;
            put(&mut o.component_log_level_text, v)
        },
        Envoys,
        "Levels of single components, such as upstream:debug,http:trace. The admin page /logging lists them.",
    ),
    value(
        "log-format",
        "pattern",
        |o, v| {
            o.log_format = Some(v.to_owned());
            Ok(())
        },
        Envoys,
        "How log lines look, in the pattern letters of spdlog, with %j for a message escaped for JSON. Times are UTC. \
         Default: [%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v",
    ),
    switch(
        "log-format-escaped",
        |o| o.log_format_escaped = true,
        Envoys,
        "Writes unusual characters of the log as C escapes.",
    ),
    value(
        "log-path",
        "path",
        |o, v| put_path(&mut o.log_path, v),
        Envoys,
        "File to append the log to; opened again at SIGUSR1. Standard error by default.",
    ),
    switch(
        "log-stacktrace-single-entry",
        |o| o.log_stacktrace_single_entry = true,
        Accepted,
        "Accepted; a log entry is one line anyway.",
    ),
    switch(
        "enable-fine-grain-logging",
        |o| o.enable_fine_grain_logging = true,
        WithoutEffect("levels are set by component, not by file"),
        "No effect.",
    ),
    value(
        "file-flush-interval-msec",
        "milliseconds",
        |o, v| {
            o.file_flush_interval = Duration::from_millis(number(v)?.into());
            Ok(())
        },
        Envoys,
        "Access log files are written at least so often. 10000 by default.",
    ),
    value(
        "file-flush-min-size-kb",
        "KiB",
        |o, v| {
            o.file_flush_min_size = u64::from(number(v)?) * 1024;
            Ok(())
        },
        Envoys,
        "Access log files are written once so much waits. 64 by default.",
    ),
    Flag {
        name: "stats-tag",
        short: None,
        standing: Envoys,
        effect: Effect::Repeated("name:value", |o, v| {
            let tag: super::StatsTag = v.parse()?;
            if o.stats_tags.iter().any(|known| known.name == tag.name) {
                return Err(format!("stats tag {:?} is given twice", tag.name));
            }
            o.stats_tags.push(tag);
            Ok(())
        }),
        help: "A tag for all stats. May be given several times.",
    },
    value(
        "emulated-version",
        "version",
        |o, v| put(&mut o.emulated_version, v),
        Own,
        "The Envoy release to present as, to launchers and control planes. 1.40.0 by default; the environment variable \
         OUTRIGGER_EMULATED_VERSION sets it, too.",
    ),
    switch("disable-hot-restart", |o| o.disable_hot_restart = true, Accepted, "Accepted; there is no hot restart."),
    value(
        "base-id",
        "number",
        |o, v| {
            o.base_id = number(v)?.into();
            Ok(())
        },
        Accepted,
        "Accepted; concerns hot restart only.",
    ),
    switch("use-dynamic-base-id", |o| o.use_dynamic_base_id = true, NO_HOT_RESTART, "No effect."),
    value("base-id-path", "path", |o, v| put(&mut o.base_id_path, v), NO_HOT_RESTART, "No effect."),
    value(
        "restart-epoch",
        "number",
        |o, v| {
            o.restart_epoch = number(v)?;
            if o.restart_epoch > 0 {
                o.warnings
                    .push(format!("--restart-epoch {v}: hot restart is not supported, the older process goes on"));
            }
            Ok(())
        },
        Accepted,
        "Accepted; there is no hot restart.",
    ),
    printing("hot-restart-version", Print::HotRestartVersion, "Prints `disabled` and exits."),
    switch(
        "skip-hot-restart-on-no-parent",
        |o| o.skip_hot_restart_on_no_parent = true,
        Accepted,
        "Accepted; there is no hot restart.",
    ),
    switch(
        "skip-hot-restart-parent-stats",
        |o| o.skip_hot_restart_parent_stats = true,
        Accepted,
        "Accepted; there is no hot restart.",
    ),
    value("socket-path", "path", |o, v| put(&mut o.socket_path, v), NO_HOT_RESTART, "No effect."),
    value(
        "socket-mode",
        "mode",
        |o, v| {
            o.socket_mode = u32::from_str_radix(v, 8).map_err(|_| format!("{v:?} is not an octal file mode"))?;
            Ok(())
        },
        NO_HOT_RESTART,
        "No effect.",
    ),
    switch(
        "enable-mutex-tracing",
        |o| o.enable_mutex_tracing = true,
        WithoutEffect("contention is not traced"),
        "No effect.",
    ),
    switch(
        "enable-core-dump",
        |o| o.enable_core_dump = true,
        Envoys,
        "Lets the system write core dumps. They hold private keys, so without this there are none.",
    ),
    switch(
        "protect-memory",
        |o| o.protect_memory = true,
        Own,
        "Keeps other processes of the same user from reading our memory: no debugger, no core dump, no /proc/<pid>/fd.",
    ),
    value(
        "disable-extensions",
        "names",
        |o, v| {
            o.disabled_extensions =
                v.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
            Ok(())
        },
        WithoutEffect("extensions are compiled in and cannot be switched off"),
        "No effect.",
    ),
    Flag {
        name: "ignore_rest",
        short: Some('-'),
        effect: Effect::Rest,
        standing: Envoys,
        help: "What follows is not looked at.",
    },
    printing("version", Print::Version, "Prints the version, in the form of Envoy, and exits."),
    short('h', printing("help", Print::Help, "Prints this and exits.")),
];

impl Flag {
    /// Whether it takes a value, and what the help calls it.
    pub fn placeholder(&self) -> Option<&'static str> {
        match self.effect {
            Effect::Value(placeholder, _) | Effect::Repeated(placeholder, _) => Some(placeholder),
            Effect::Switch(_) | Effect::Print(_) | Effect::Rest => None,
        }
    }
}

/// The flag that is written so, dashes included.
pub(super) fn find(written: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| match written.strip_prefix("--") {
        Some("") => flag.short == Some('-'),
        Some(name) => flag.name == name,
        None => written.strip_prefix('-').is_some_and(|letter| {
            let mut letters = letter.chars();
            letters.next() == flag.short && flag.short.is_some() && letters.next().is_none()
        }),
    })
}

/// The flag that was probably meant.
pub(super) fn nearest(written: &str) -> Option<&'static Flag> {
    let name = written.trim_start_matches('-');
    let distances = FLAGS.iter().map(|flag| (distance(name, flag.name), flag));
    let (distance, flag) = distances.min_by_key(|(distance, _)| *distance)?;
    let allowed = (name.len() / 3).clamp(1, 3);
    if distance <= allowed {
        return Some(flag);
    }
    // Somebody who remembers the beginning only.
    FLAGS.iter().find(|flag| name.len() > 3 && flag.name.starts_with(name))
}

/// How many letters must be inserted, removed or replaced to turn one into the other.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.bytes().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_letters_are_unique() {
        let names: std::collections::BTreeSet<_> = FLAGS.iter().map(|flag| flag.name).collect();
        assert_eq!(names.len(), FLAGS.len());
        let letters: Vec<_> = FLAGS.iter().filter_map(|flag| flag.short).collect();
        assert_eq!(letters, ['c', 'l', '-', 'h']);
    }

    /// The list that `envoy --help` of 1.40 prints.
    #[test]
    fn all_of_envoys_flags_are_there() {
        let envoys = "stats-tag enable-core-dump socket-mode socket-path disable-extensions cpuset-threads \
            enable-mutex-tracing disable-hot-restart mode parent-shutdown-time-s drain-strategy drain-time-s \
            file-flush-min-size-kb file-flush-interval-msec service-zone service-node service-cluster \
            hot-restart-version restart-epoch log-path enable-fine-grain-logging log-format-escaped log-format \
            component-log-level log-level local-address-ip-version admin-address-path log-stacktrace-single-entry \
            skip-deprecated-logs ignore-unknown-dynamic-fields reject-unknown-dynamic-fields \
            allow-unknown-static-fields allow-unknown-fields config-yaml config-path concurrency base-id-path \
            skip-hot-restart-parent-stats skip-hot-restart-on-no-parent use-dynamic-base-id base-id ignore_rest \
            version help";
        for name in envoys.split_whitespace() {
            let flag = find(&format!("--{name}")).unwrap_or_else(|| panic!("--{name} is missing"));
            assert_ne!(flag.standing, Standing::Own, "--{name}");
        }
        let own = FLAGS.iter().filter(|flag| flag.standing == Standing::Own).count();
        assert_eq!(envoys.split_whitespace().count() + own, FLAGS.len());
    }

    #[test]
    fn suggestions_are_near() {
        for (written, meant) in [
            ("--concurency", Some("concurrency")),
            ("--log_level", Some("log-level")),
            ("--config", Some("config-path")),
            ("--component", Some("component-log-level")),
            ("--nonsense", None),
            ("-x", None),
        ] {
            assert_eq!(nearest(written).map(|flag| flag.name), meant, "{written}");
        }
    }
}
