//! The options in the form that the admin port shows (`envoy.admin.v3.CommandLineOptions`).
//!
//! Owns the translation. Never reads that form.

use std::path::PathBuf;
use std::time::Duration;

use outrigger_api::pb::envoy::admin::v3 as admin;
use outrigger_api::pb::google::protobuf::Duration as WireDuration;

use super::options::{DrainStrategy, IpVersion, Mode, Options, StatsTag};

impl Options {
    /// For `/server_info`. `concurrency` is the number of workers that run.
    pub fn to_wire(&self, concurrency: u32) -> admin::CommandLineOptions {
        use admin::command_line_options as wire;
        admin::CommandLineOptions {
            base_id: self.base_id,
            use_dynamic_base_id: self.use_dynamic_base_id,
            skip_hot_restart_on_no_parent: self.skip_hot_restart_on_no_parent,
            skip_hot_restart_parent_stats: self.skip_hot_restart_parent_stats,
            base_id_path: self.base_id_path.clone(),
            concurrency,
            config_path: path(&self.config_path),
            config_yaml: self.config_yaml.clone(),
            allow_unknown_static_fields: self.allow_unknown_static_fields,
            reject_unknown_dynamic_fields: self.reject_unknown_dynamic_fields,
            ignore_unknown_dynamic_fields: self.ignore_unknown_dynamic_fields,
            skip_deprecated_logs: self.skip_deprecated_logs,
            admin_address_path: path(&self.admin_address_path),
            local_address_ip_version: match self.local_address_ip_version {
                IpVersion::V4 => wire::IpVersion::V4,
                IpVersion::V6 => wire::IpVersion::V6,
            }
            .into(),
            log_level: self.log_level.as_str().to_owned(),
            component_log_level: self.component_log_level_text.clone(),
            log_format: self.log_format().to_owned(),
            log_format_escaped: self.log_format_escaped,
            log_path: path(&self.log_path),
            service_cluster: self.service_cluster.clone(),
            service_node: self.service_node.clone(),
            service_zone: self.service_zone.clone(),
            file_flush_interval: duration(self.file_flush_interval),
            file_flush_min_size: u32::try_from(self.file_flush_min_size).unwrap_or(u32::MAX),
            drain_time: duration(self.drain_time),
            drain_strategy: match self.drain_strategy {
                DrainStrategy::Gradual => wire::DrainStrategy::Gradual,
                DrainStrategy::Immediate => wire::DrainStrategy::Immediate,
            }
            .into(),
            parent_shutdown_time: duration(self.parent_shutdown_time),
            mode: match self.mode {
                Mode::Serve => wire::Mode::Serve,
                Mode::Validate => wire::Mode::Validate,
                Mode::InitOnly => wire::Mode::InitOnly,
            }
            .into(),
            disable_hot_restart: self.disable_hot_restart,
            enable_mutex_tracing: self.enable_mutex_tracing,
            restart_epoch: self.restart_epoch,
            cpuset_threads: self.cpuset_threads,
            disabled_extensions: self.disabled_extensions.clone(),
            enable_fine_grain_logging: self.enable_fine_grain_logging,
            log_stacktrace_single_entry: self.log_stacktrace_single_entry,
            socket_path: self.socket_path.clone(),
            socket_mode: self.socket_mode,
            enable_core_dump: self.enable_core_dump,
            stats_tag: self.stats_tags.iter().map(StatsTag::to_string).collect(),
        }
    }
}

fn path(path: &Option<PathBuf>) -> String {
    path.as_deref().unwrap_or("".as_ref()).to_string_lossy().into_owned()
}

fn duration(duration: Duration) -> Option<WireDuration> {
    // Flags hold at most u32 seconds, and the nanoseconds of a second fit.
    Some(WireDuration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_envoy() {
        let wire = Options::default().to_wire(3);
        assert_eq!(wire.concurrency, 3);
        assert_eq!(wire.log_level, "info");
        assert_eq!(wire.log_format, "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v");
        assert_eq!(wire.drain_time, duration(Duration::from_secs(600)));
        assert_eq!(wire.parent_shutdown_time, duration(Duration::from_secs(900)));
        assert_eq!(wire.file_flush_interval, duration(Duration::from_secs(10)));
        assert_eq!(wire.socket_path, "@envoy_domain_socket");
    }
}
