//! File sinks.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use outrigger_config::accesslog::{AccessLogFilter, AccessLogSink};

use super::super::file::{LogFile, MAX_PENDING_BYTES, Shared, Target};
use super::super::samples::{NoRuntime, Sample, access_log, file_sink};
use super::super::stats::FileStats;
use super::super::{AccessLogManager, AccessLogger, FlushOptions};
use crate::stats::{FamilyKind, Registry};

fn stat(registry: &Registry, name: &str) -> i64 {
    let wanted = format!("filesystem.{name}");
    registry
        .collect(&|name| name == wanted)
        .into_iter()
        .map(|family| match family.kind {
            FamilyKind::Counter(value) => value as i64,
            FamilyKind::Gauge(value) => value.unwrap_or(0),
            FamilyKind::Histogram(_) => 0,
        })
        .sum()
}

fn logger(manager: &AccessLogManager, path: &Path, text: &str) -> AccessLogger {
    AccessLogger::open(&access_log(file_sink(path, text), None), manager).unwrap()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn two_writers_one_file_no_torn_lines() {
    const LINES: usize = 5_000;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let registry = Registry::default();
    let options = FlushOptions { min_bytes: 4096, ..FlushOptions::default() };
    let manager = Arc::new(AccessLogManager::new(options, &registry));
    let text = format!("{}%REQ(X-LONG)%\n", "x".repeat(90));
    let loggers = [logger(&manager, &path, &text), logger(&manager, &path, &text)];
    std::thread::scope(|scope| {
        for logger in &loggers {
            scope.spawn(move || {
                let sample = Sample::http();
                for _ in 0..LINES {
                    logger.log(&sample.facts(), 0, &NoRuntime);
                }
            });
        }
        for _ in 0..20 {
            manager.flush();
        }
    });
    manager.close();
    let text = read(&path);
    assert_eq!(text.lines().count(), 2 * LINES);
    let line = format!("{}abcdefghij", "x".repeat(90));
    assert!(text.lines().all(|found| found == line));
    assert_eq!(stat(&registry, "write_buffered"), 2 * LINES as i64);
    assert_eq!(stat(&registry, "write_total_buffered"), 0);
    assert_eq!(manager.buffered_bytes(), 0);
}

#[test]
fn what_the_filter_refuses_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let manager = AccessLogManager::new(FlushOptions::default(), &Registry::default());
    let filter = AccessLogFilter::ResponseFlag(Vec::new());
    let logger =
        AccessLogger::open(&access_log(file_sink(&path, "%RESPONSE_FLAGS%\n"), Some(filter)), &manager).unwrap();
    let sample = Sample::http();
    logger.log(&sample.facts(), 0, &NoRuntime);
    sample.info.flag(crate::stream::ResponseFlag::NoRouteFound);
    logger.log(&sample.facts(), 0, &NoRuntime);
    manager.flush();
    assert_eq!(read(&path), "NR\n");
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let manager = AccessLogManager::new(FlushOptions::default(), &Registry::default());
    let sink = file_sink(Path::new("/nonexistent/dir/log"), "x");
    let error = AccessLogger::open(&access_log(sink, None), &manager).unwrap_err();
    assert_eq!(error.to_string(), "cannot open access log /nonexistent/dir/log");
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn nothing_is_buffered_for_the_null_device() {
    let registry = Registry::default();
    let manager = AccessLogManager::new(FlushOptions::default(), &registry);
    let logger = logger(&manager, Path::new("/dev/null"), "x\n");
    logger.log(&Sample::http().facts(), 0, &NoRuntime);
    assert_eq!(stat(&registry, "write_buffered"), 0);
    let AccessLogSink::File { path, .. } = &logger.config().sink else { panic!("not a file") };
    assert_eq!(path, Path::new("/dev/null"));
}

#[test]
fn reopening_follows_the_path_and_a_failure_keeps_the_old_file() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join("logs");
    std::fs::create_dir(&folder).unwrap();
    let (path, rotated) = (folder.join("log"), folder.join("log.1"));
    let registry = Registry::default();
    let manager = AccessLogManager::new(FlushOptions::default(), &registry);
    let logger = logger(&manager, &path, "x\n");
    let sample = Sample::http();
    let log = || {
        logger.log(&sample.facts(), 0, &NoRuntime);
        manager.flush();
    };
    log();
    std::fs::rename(&path, &rotated).unwrap();
    log();
    assert_eq!(read(&rotated), "x\nx\n");
    manager.reopen();
    log();
    assert_eq!((read(&rotated), read(&path)), ("x\nx\n".into(), "x\n".into()));
    // The folder moves away: the path cannot be opened, and the old file takes the lines.
    let moved = directory.path().join("moved");
    std::fs::rename(&folder, &moved).unwrap();
    manager.reopen();
    log();
    assert_eq!(read(&moved.join("log")), "x\nx\n");
    assert_eq!(stat(&registry, "reopen_failed"), 1);
    std::fs::rename(&moved, &folder).unwrap();
    log();
    assert_eq!(read(&path), "x\nx\nx\n");
    assert_eq!(stat(&registry, "reopen_failed"), 1);
}

#[test]
fn a_full_buffer_drops_lines_and_counts_them() {
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::default();
    let stats = registry.scope::<FileStats>("filesystem.");
    let shared = Arc::new(Shared { wake: tokio::sync::Notify::new(), stats, min_flush_bytes: 64 * 1024 });
    let path = directory.path().join("log");
    let file = LogFile::open(Target::of(&path), shared).unwrap();
    let line = vec![b'x'; MAX_PENDING_BYTES / 4];
    for _ in 0..6 {
        file.append(&line);
    }
    assert_eq!(stat(&registry, "write_buffered"), 4);
    assert_eq!(stat(&registry, "write_dropped"), 2);
    assert_eq!(stat(&registry, "write_total_buffered"), MAX_PENDING_BYTES as i64);
    file.flush();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), MAX_PENDING_BYTES as u64);
    file.append(b"more");
    assert_eq!(file.pending_bytes(), 4);
}

#[test]
fn a_device_that_is_full_is_counted() {
    let registry = Registry::default();
    let manager = AccessLogManager::new(FlushOptions::default(), &registry);
    let logger = logger(&manager, Path::new("/dev/full"), "x\n");
    logger.log(&Sample::http().facts(), 0, &NoRuntime);
    manager.flush();
    assert_eq!(stat(&registry, "write_failed"), 1);
    assert_eq!(stat(&registry, "write_completed"), 0);
    assert_eq!(stat(&registry, "write_total_buffered"), 0);
}

/// Waits for another thread's work, for at most a minute.
async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it happens in time");
}

#[tokio::test]
async fn lines_reach_the_file_by_size_or_by_time() {
    let directory = tempfile::tempdir().unwrap();
    let (large, small) = (directory.path().join("large"), directory.path().join("small"));
    let registry = Registry::default();
    let by_size = FlushOptions { min_bytes: 4, interval: Duration::from_secs(3600) };
    let manager = Arc::new(AccessLogManager::new(by_size, &registry));
    let running = tokio::spawn(Arc::clone(&manager).run());
    logger(&manager, &large, "12345\n").log(&Sample::http().facts(), 0, &NoRuntime);
    until(|| read(&large) == "12345\n").await;
    assert_eq!(stat(&registry, "flushed_by_timer"), 0);
    running.abort();

    let registry = Registry::default();
    let by_time = FlushOptions { min_bytes: 4096, interval: Duration::from_millis(20) };
    let manager = Arc::new(AccessLogManager::new(by_time, &registry));
    let running = tokio::spawn(Arc::clone(&manager).run());
    let logger = logger(&manager, &small, "1\n");
    for lines in 1..=3 {
        logger.log(&Sample::http().facts(), 0, &NoRuntime);
        until(|| read(&small).lines().count() == lines).await;
    }
    until(|| stat(&registry, "write_completed") == 3).await;
    running.abort();
}
