use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

use super::super::{DrainStrategy, IpVersion, Mode};
use super::*;
use crate::logging::Level;
use crate::worker::topology::CpuPolicy;

fn read(arguments: &[&str]) -> Result<Invocation, UsageError> {
    parse(arguments.iter().map(OsString::from), None)
}

fn options(arguments: &[&str]) -> Options {
    match read(arguments) {
        Ok(Invocation::Run(options)) => *options,
        other => panic!("{arguments:?}: {other:?}"),
    }
}

fn printed(arguments: &[&str], variable: Option<&str>) -> String {
    match parse(arguments.iter().map(OsString::from), variable) {
        Ok(Invocation::Print(Output::Standard(text) | Output::Error(text))) => text,
        other => panic!("{arguments:?}: {other:?}"),
    }
}

fn error(arguments: &[&str]) -> String {
    read(arguments).expect_err(&format!("{arguments:?}")).to_string()
}

#[test]
fn every_way_to_write_a_value() {
    for arguments in [
        ["-c", "a.yaml", "--log-level", "debug", "--mode", "validate"].as_slice(),
        &["--config-path=a.yaml", "-l=debug", "--mode=validate"],
        &["--config-path a.yaml", "-l debug", "--mode validate"],
        &["-c a.yaml", "--log-level", "debug", "--mode=validate"],
    ] {
        let options = options(arguments);
        assert_eq!(options.config_path.as_deref(), Some(Path::new("a.yaml")), "{arguments:?}");
        assert_eq!((options.log_level, options.mode), (Level::Debug, Mode::Validate), "{arguments:?}");
    }
}

#[test]
fn values_keep_their_blanks_and_signs() {
    let options = options(&[
        "--config-yaml",
        "node: {id: a=b}",
        "--service-node=a=b c",
        "--service-cluster a b=c",
        "--service-zone ",
        "--log-format",
        "--%v--",
    ]);
    assert_eq!(options.config_yaml, "node: {id: a=b}");
    assert_eq!(options.service_node, "a=b c");
    assert_eq!(options.service_cluster, "a b=c");
    // Contour's manifest with an empty variable; a parser that takes the next flag as the value loses that.
    assert_eq!(options.service_zone, "");
    assert_eq!(options.log_format(), "--%v--");
}

#[test]
fn contour_starts_us() {
    let options = options(&[
        "-c",
        "/config/envoy.json",
        "--service-cluster projectcontour",
        "--service-node envoy-x7k2p",
        "--log-level info",
    ]);
    assert_eq!(options.service_cluster, "projectcontour");
    assert_eq!(options.service_node, "envoy-x7k2p");
    assert!(options.warnings.is_empty());
}

#[test]
fn istio_starts_us() {
    let options = options(&[
        "-c",
        "etc/istio/proxy/envoy-rev.json",
        "--drain-time-s",
        "45",
        "--drain-strategy",
        "immediate",
        "--local-address-ip-version",
        "v6",
        "--file-flush-interval-msec",
        "1000",
        "--file-flush-min-size-kb",
        "8",
        "--disable-hot-restart",
        "--allow-unknown-static-fields",
        "-l",
        "warning",
        "--component-log-level",
        "misc:error",
        "--skip-deprecated-logs",
        "--enable-core-dump",
        "--concurrency",
        "2",
    ]);
    assert_eq!(options.drain_time, Duration::from_secs(45));
    assert_eq!(options.drain_strategy, DrainStrategy::Immediate);
    assert_eq!(options.local_address_ip_version, IpVersion::V6);
    assert_eq!(options.file_flush_interval, Duration::from_secs(1));
    assert_eq!(options.file_flush_min_size, 8192);
    assert!(options.disable_hot_restart && options.allow_unknown_static_fields && options.skip_deprecated_logs);
    assert_eq!(options.log_level, Level::Warning);
    assert_eq!(options.component_log_level_text, "misc:error");
    assert_eq!(options.concurrency, Some(2));
    assert!(options.enable_core_dump);
    assert_eq!(options.warnings, [""; 0]);
}

#[test]
fn consul_starts_us() {
    let fifo = "/tmp/envoy-5a1b-bootstrap.json";
    let launched = options(&["--config-path", fifo, "--disable-hot-restart", "-l", "trace", "--drain-time-s", "1"]);
    assert_eq!(launched.config_path.as_deref(), Some(Path::new(fifo)));
    assert_eq!(launched.log_level, Level::Trace);
    let dataplane = options(&[
        "--config-yaml",
        "{\"node\":{\"id\":\"a\"}}",
        "--log-level",
        "info",
        "--log-format",
        "{\"@message\":\"%j\"}%Y-%m-%dT%T.%eZ%z [%l] envoy.%n(%t) %v",
        "--disable-hot-restart",
    ]);
    assert_eq!(dataplane.config_yaml, "{\"node\":{\"id\":\"a\"}}");
    assert!(dataplane.log_format().starts_with("{\"@message\""));
}

#[test]
fn kuma_and_envoy_gateway_start_us() {
    let kuma = options(&[
        "--config-path",
        "/tmp/kuma-dp/bootstrap.yaml",
        "--drain-time-s",
        "30",
        "--disable-hot-restart",
        "--log-level",
        "off",
        "--drain-strategy",
        "immediate",
        "--cpuset-threads",
        "--component-log-level",
        "upstream:debug,router:trace",
    ]);
    assert!(kuma.cpuset_threads);
    assert_eq!(kuma.cpu_policy(), CpuPolicy::None);
    assert_eq!(kuma.component_log_levels.iter().count(), 2);
    let gateway = options(&[
        "--service-cluster",
        "default",
        "--service-node",
        "pod",
        "--config-yaml",
        "admin: {}\n",
        "--log-level",
        "warn",
        "--cpuset-threads",
        "--drain-strategy",
        "immediate",
        "--drain-time-s",
        "60",
        "--concurrency",
        "4",
    ]);
    assert_eq!(gateway.log_level, Level::Warning);
    assert_eq!(gateway.concurrency, Some(4));
}

#[test]
fn go_control_planes_tests_start_us() {
    let options = options(&["-c", "sample/bootstrap-ads.yaml", "--drain-time-s", "1", "-l", "debug"]);
    assert_eq!(options.drain_time, Duration::from_secs(1));
}

#[test]
fn flags_without_effect_say_so_and_go_on() {
    let given = options(&[
        "--base-id",
        "3",
        "--restart-epoch",
        "1",
        "--use-dynamic-base-id",
        "--base-id-path",
        "/tmp/id",
        "--socket-path",
        "@x",
        "--socket-mode",
        "600",
        "--enable-mutex-tracing",
        "--enable-fine-grain-logging",
        "--disable-extensions",
        "a, b",
        "--parent-shutdown-time-s",
        "9",
        "--stats-tag",
        "a:1",
        "--stats-tag",
        "b:2",
        "--skip-hot-restart-on-no-parent",
        "--skip-hot-restart-parent-stats",
        "--log-stacktrace-single-entry",
        "--ignore-unknown-dynamic-fields",
        "--reject-unknown-dynamic-fields",
        "--allow-unknown-fields",
    ]);
    assert_eq!((given.base_id, given.restart_epoch, given.socket_mode), (3, 1, 0o600));
    assert_eq!(given.disabled_extensions, ["a", "b"]);
    assert_eq!(given.stats_tags.len(), 2);
    assert_eq!(given.warnings.len(), 8);
    assert_eq!(given.warnings[0], "--restart-epoch 1: hot restart is not supported, the older process goes on");
    assert!(options(&["--restart-epoch", "0"]).warnings.is_empty());
}

#[test]
fn our_own_flags() {
    let options =
        options(&["--cpu-policy", "efficiency", "--dump-cpus", "--emulated-version", "1.34.7", "--concurrency=0"]);
    assert_eq!(options.cpu_policy(), CpuPolicy::Efficiency);
    assert!(options.dump_cpus);
    assert_eq!(options.emulated_version.to_string(), "1.34.7");
    assert_eq!(options.concurrency, Some(1), "as with Envoy");
}

#[test]
fn what_follows_two_dashes_does_not_count() {
    assert_eq!(options(&["-l", "off", "--", "--nonsense"]).log_level, Level::Off);
    assert_eq!(options(&["--ignore_rest", "--nonsense"]).log_level, Level::Info);
}

#[test]
fn printing_comes_first() {
    let version =
        |arguments: &[&str], variable| printed(arguments, variable).trim().split('/').nth(1).unwrap().to_owned();
    assert_eq!(version(&["--version"], None), "1.40.0");
    assert_eq!(version(&["--version"], Some("1.35.12")), "1.35.12");
    assert_eq!(version(&["--version", "--emulated-version", "1.36.1"], Some("1.35.12")), "1.36.1");
    assert_eq!(version(&["--version", "--nonsense"], Some("")), "1.40.0");
    assert!(printed(&["-h"], None).contains("--config-path"));
    assert_eq!(printed(&["--disable-hot-restart", "--hot-restart-version"], None), "disabled\n");
}

#[test]
fn mistakes_are_explained() {
    for (arguments, message) in [
        (["--nope"].as_slice(), "unknown argument \"--nope\""),
        (&["--concurency", "2"], "unknown argument \"--concurency\", did you mean --concurrency?"),
        (&["--log-levl debug"], "unknown argument \"--log-levl\", did you mean --log-level?"),
        (&["--qqqqqqq=1"], "unknown argument \"--qqqqqqq\""),
        (&["-cfile"], "unknown argument \"-cfile\""),
        (&["-"], "unknown argument \"-\""),
        (&["file.yaml"], "unexpected argument \"file.yaml\": all arguments begin with a dash"),
        (&[""], "unexpected argument \"\": all arguments begin with a dash"),
        (&["-c"], "--config-path needs a value: --config-path <path>"),
        (&["--concurrency", "x"], "--concurrency: \"x\" is not a whole number from 0 to 4294967295"),
        (&["--concurrency="], "--concurrency: \"\" is not a whole number from 0 to 4294967295"),
        (&["--drain-time-s", "-1"], "--drain-time-s: \"-1\" is not a whole number from 0 to 4294967295"),
        (&["-l", "info", "--log-level", "debug"], "--log-level is given twice"),
        (&["--cpuset-threads=yes"], "--cpuset-threads takes no value, but \"yes\" is given"),
        (&["--mode", "foo"], "--mode: unknown mode \"foo\", expected serve, validate or init_only"),
        (
            &["--drain-strategy", "foo"],
            "--drain-strategy: unknown drain strategy \"foo\", expected gradual or immediate",
        ),
        (
            &["--local-address-ip-version", "v5"],
            "--local-address-ip-version: unknown IP address version \"v5\", expected v4 or v6",
        ),
        (&["-l", "loud"], "--log-level: \"loud\" is none of trace, debug, info, warning, error, critical, off"),
        (&["--component-log-level", "foo:debug"], "--component-log-level: there is no component \"foo\""),
        (
            &["--cpu-policy", "foo"],
            "--cpu-policy: CPU policy \"foo\" is none of first-usable-node, performance, efficiency, none",
        ),
        (&["--stats-tag", "foo"], "--stats-tag: stats tag \"foo\" is not name:value"),
        (&["--stats-tag", "a:b.c"], "--stats-tag: stats tag \"a:b.c\": the value \"b.c\" contains a dot"),
        (&["--stats-tag", "a:b", "--stats-tag", "a:c"], "--stats-tag: stats tag \"a\" is given twice"),
        (&["--socket-mode", "9"], "--socket-mode: \"9\" is not an octal file mode"),
        (&["--emulated-version", "1.40"], "--emulated-version: emulated version \"1.40\" is not of the form 1.40.0"),
    ] {
        assert_eq!(error(arguments), message, "{arguments:?}");
    }
    let raw = [OsString::from("-c"), OsString::from_vec(vec![b'a', 0xff])];
    assert_eq!(parse(raw, None).unwrap_err().to_string(), "argument 2 is not valid UTF-8: a\u{fffd}");
    let variable = parse([], Some("new")).unwrap_err().to_string();
    let expected =
        "environment variable OUTRIGGER_EMULATED_VERSION: emulated version \"new\" is not of the form 1.40.0";
    assert_eq!(variable, expected);
}

#[test]
fn nothing_given_is_all_defaults() {
    let options = options(&[]);
    assert!(options.config_path.is_none() && options.config_yaml.is_empty());
    assert_eq!(options.cpu_policy(), CpuPolicy::FirstUsableNode);
}
