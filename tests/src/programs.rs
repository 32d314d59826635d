//! Other people's programs that scenarios run: curl, h2load, Python, Go. A missing one fails the test by name.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::Mutex;

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

/// A program of the Go module in `interop/peers`, which pins it and all it is made of. The first build needs the network
/// and some minutes; later ones take a second.
///
/// # Panics
/// If there is no Go, or it cannot build.
pub async fn go(package: &str) -> PathBuf {
    built("peers", package, package.rsplit('/').next().unwrap_or(package)).await
}

/// The program that the Go module in `interop/<module>` is, built like those of [`go`].
///
/// # Panics
/// If there is no Go, or it cannot build.
pub async fn go_module(module: &str) -> PathBuf {
    built(module, ".", module).await
}

/// An empty directory for what a scenario leaves for people to look at: `target/artifacts/<name>`.
///
/// # Panics
/// If it cannot be made.
pub fn artifacts(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    // target/debug/deps/<test> -> target/artifacts/<name>
    let directory = test.ancestors().nth(3).expect("a directory above").join("artifacts").join(name);
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).expect("a directory for artifacts");
    directory
}

async fn built(module: &str, package: &str, name: &str) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::const_new(());
    let _one_at_a_time = BUILDING.lock().await;
    let test = std::env::current_exe().expect("a running program has a path");
    // target/debug/deps/<test> -> target/debug/interop/<program>
    let program = test.ancestors().nth(2).expect("a directory above").join("interop").join(name);
    let (module, output) = (interop(module), program.to_string_lossy());
    let arguments = ["build", "-C", &module.to_string_lossy(), "-buildvcs=false", "-o", &output, package];
    run("go", &arguments, &[], Duration::from_secs(600)).await;
    program
}
