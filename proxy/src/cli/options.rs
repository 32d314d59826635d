//! What the command line asks for.
//!
//! Owns the options and their defaults, which are Envoy's. Never parses flags.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::version::EmulatedVersion;
use crate::logging::{ComponentLevels, DEFAULT_FORMAT, Level};
use crate::worker::topology::CpuPolicy;

/// All options.
#[derive(Clone, Debug)]
pub struct Options {
    /// `-c`: the bootstrap file.
    pub config_path: Option<PathBuf>,
    /// `--config-yaml`: merged over the file.
    pub config_yaml: String,
    /// `--mode`.
    pub mode: Mode,
    /// `--allow-unknown-static-fields`.
    pub allow_unknown_static_fields: bool,
    /// `--reject-unknown-dynamic-fields`.
    pub reject_unknown_dynamic_fields: bool,
    /// `--ignore-unknown-dynamic-fields`.
    pub ignore_unknown_dynamic_fields: bool,
    /// `--skip-deprecated-logs`.
    pub skip_deprecated_logs: bool,
    /// `--service-cluster`: replaces `node.cluster` unless empty.
    pub service_cluster: String,
    /// `--service-node`: replaces `node.id` unless empty.
    pub service_node: String,
    /// `--service-zone`: replaces `node.locality.zone` unless empty.
    pub service_zone: String,
    /// `--concurrency`: number of workers.
    pub concurrency: Option<u32>,
    /// `--cpuset-threads`: a worker for each CPU that we may use.
    pub cpuset_threads: bool,
    /// `--cpu-policy`: which CPUs the workers use.
    pub cpu_policy: Option<CpuPolicy>,
    /// `--dump-cpus`: print the plan and exit.
    pub dump_cpus: bool,
    /// `-l`.
    pub log_level: Level,
    /// `--component-log-level`.
    pub component_log_levels: ComponentLevels,
    /// As written, for the admin port.
    pub component_log_level_text: String,
    /// `--log-format`, if given.
    pub log_format: Option<String>,
    /// `--log-format-escaped`.
    pub log_format_escaped: bool,
    /// `--log-path`: standard error if `None`.
    pub log_path: Option<PathBuf>,
    /// `--log-stacktrace-single-entry`.
    pub log_stacktrace_single_entry: bool,
    /// `--enable-fine-grain-logging`.
    pub enable_fine_grain_logging: bool,
    /// `--admin-address-path`: where to write the address of the admin port.
    pub admin_address_path: Option<PathBuf>,
    /// `--local-address-ip-version`.
    pub local_address_ip_version: IpVersion,
    /// `--drain-time-s`: how long connections of a removed listener, or of a draining process, may go on.
    pub drain_time: Duration,
    /// `--drain-strategy`.
    pub drain_strategy: DrainStrategy,
    /// `--parent-shutdown-time-s`.
    pub parent_shutdown_time: Duration,
    /// `--file-flush-interval-msec`: access log files are written at least so often.
    pub file_flush_interval: Duration,
    /// `--file-flush-min-size-kb`, in bytes: access log files are written once so much waits.
    pub file_flush_min_size: u64,
    /// `--stats-tag`, each added to all stats.
    pub stats_tags: Vec<StatsTag>,
    /// `--base-id`.
    pub base_id: u64,
    /// `--use-dynamic-base-id`.
    pub use_dynamic_base_id: bool,
    /// `--base-id-path`.
    pub base_id_path: String,
    /// `--restart-epoch`.
    pub restart_epoch: u32,
    /// `--disable-hot-restart`.
    pub disable_hot_restart: bool,
    /// `--skip-hot-restart-on-no-parent`.
    pub skip_hot_restart_on_no_parent: bool,
    /// `--skip-hot-restart-parent-stats`.
    pub skip_hot_restart_parent_stats: bool,
    /// `--socket-path`.
    pub socket_path: String,
    /// `--socket-mode`, read as octal.
    pub socket_mode: u32,
    /// `--enable-mutex-tracing`.
    pub enable_mutex_tracing: bool,
    /// `--enable-core-dump`: the system may write core dumps, which hold private keys.
    pub enable_core_dump: bool,
    /// `--protect-memory`: other processes of the same user may not read ours.
    pub protect_memory: bool,
    /// `--admin-read-only`: the admin port shows and changes nothing.
    pub admin_read_only: bool,
    /// `--disable-extensions`.
    pub disabled_extensions: Vec<String>,
    /// The Envoy release that we present ourselves as.
    pub emulated_version: EmulatedVersion,
    /// Flags that were given although they do nothing here, each with the reason. To be logged.
    pub warnings: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            config_path: None,
            config_yaml: String::new(),
            mode: Mode::Serve,
            allow_unknown_static_fields: false,
            reject_unknown_dynamic_fields: false,
            ignore_unknown_dynamic_fields: false,
            skip_deprecated_logs: false,
            service_cluster: String::new(),
            service_node: String::new(),
            service_zone: String::new(),
            concurrency: None,
            cpuset_threads: false,
            cpu_policy: None,
            dump_cpus: false,
            log_level: Level::Info,
            component_log_levels: ComponentLevels::default(),
            component_log_level_text: String::new(),
            log_format: None,
            log_format_escaped: false,
            log_path: None,
            log_stacktrace_single_entry: false,
            enable_fine_grain_logging: false,
            admin_address_path: None,
            local_address_ip_version: IpVersion::V4,
            drain_time: Duration::from_secs(600),
            drain_strategy: DrainStrategy::Gradual,
            parent_shutdown_time: Duration::from_secs(900),
            file_flush_interval: Duration::from_secs(10),
            file_flush_min_size: 64 * 1024,
            stats_tags: Vec::new(),
            base_id: 0,
            use_dynamic_base_id: false,
            base_id_path: String::new(),
            restart_epoch: 0,
            disable_hot_restart: false,
            skip_hot_restart_on_no_parent: false,
            skip_hot_restart_parent_stats: false,
            socket_path: "@envoy_domain_socket".to_owned(),
            socket_mode: 0,
            enable_mutex_tracing: false,
            enable_core_dump: false,
            protect_memory: false,
            admin_read_only: false,
            disabled_extensions: Vec::new(),
            emulated_version: EmulatedVersion::default(),
            warnings: Vec::new(),
        }
    }
}

impl Options {
    /// The line format of the log, unless the bootstrap gives one.
    pub fn log_format(&self) -> &str {
        self.log_format.as_deref().unwrap_or(DEFAULT_FORMAT)
    }

    /// What becomes of discovered resources with unknown fields. Refusing them is what both flags together mean.
    pub fn unknown_dynamic_fields(&self) -> UnknownDynamicFields {
        match (self.reject_unknown_dynamic_fields, self.ignore_unknown_dynamic_fields) {
            (true, _) => UnknownDynamicFields::Reject,
            (false, true) => UnknownDynamicFields::Ignore,
            (false, false) => UnknownDynamicFields::Warn,
        }
    }

    /// Which CPUs the workers use. `--cpuset-threads` stands for all that we may use.
    pub fn cpu_policy(&self) -> CpuPolicy {
        let default = if self.cpuset_threads { CpuPolicy::None } else { CpuPolicy::default() };
        self.cpu_policy.unwrap_or(default)
    }
}

/// What the process does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Carries traffic.
    Serve,
    /// Reads the bootstrap, prints what is wrong with it, and exits.
    Validate,
    /// Starts as if to carry traffic, and exits once that would begin.
    InitOnly,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "serve" => Ok(Mode::Serve),
            "validate" => Ok(Mode::Validate),
            "init_only" => Ok(Mode::InitOnly),
            other => Err(format!("unknown mode {other:?}, expected serve, validate or init_only")),
        }
    }
}

/// What becomes of discovered resources with fields that are not part of the API we know.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum UnknownDynamicFields {
    /// They are accepted without the fields, with a warning.
    #[default]
    Warn,
    /// They are accepted without the fields.
    Ignore,
    /// They are refused.
    Reject,
}

/// How quickly connections are asked to go while draining.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DrainStrategy {
    /// More and more of them over the drain time.
    Gradual,
    /// All from the beginning.
    Immediate,
}

impl FromStr for DrainStrategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "gradual" => Ok(DrainStrategy::Gradual),
            "immediate" => Ok(DrainStrategy::Immediate),
            other => Err(format!("unknown drain strategy {other:?}, expected gradual or immediate")),
        }
    }
}

/// The kind of the local address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl FromStr for IpVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "v4" => Ok(IpVersion::V4),
            "v6" => Ok(IpVersion::V6),
            other => Err(format!("unknown IP address version {other:?}, expected v4 or v6")),
        }
    }
}

/// A tag of all stats, written `name:value`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StatsTag {
    /// Letters and digits.
    pub name: String,
    /// Anything but dots.
    pub value: String,
}

impl FromStr for StatsTag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').ok_or_else(|| format!("stats tag {text:?} is not name:value"))?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(format!("stats tag {text:?}: the name {name:?} is not made of letters and digits"));
        }
        if value.contains('.') {
            return Err(format!("stats tag {text:?}: the value {value:?} contains a dot"));
        }
        Ok(StatsTag { name: name.to_owned(), value: value.to_owned() })
    }
}

impl fmt::Display for StatsTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.value)
    }
}
