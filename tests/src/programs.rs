//! Other people's programs that scenarios run: curl, h2load, Python, Go. A missing one fails the test by name.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Runs a program to its end; gives what it wrote to stdout.
///
/// # Panics
/// If it is missing, fails, or takes longer than `limit`.
pub async fn run(program: &str, arguments: &[&str], environment: &[(&str, &str)], limit: Duration) -> String {
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
    let Ok(output) = tokio::time::timeout(limit, command.output()).await else {
        panic!("{program} {arguments:?} takes longer than {limit:?}");
    };
    let output = output.unwrap_or_else(|error| panic!("this test needs `{program}`: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout.into_owned()
}

/// A file under `tests/interop`.
pub fn interop(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("interop").join(path)
}
