//! Proxies beside each other where endpoints differ or fail: latencies and lost requests instead of CPU time.
//!
//!     cargo bench -p outrigger-benches --features scenarios --bench scenarios -- slow
//!     cargo bench -p outrigger-benches --features scenarios --bench scenarios -- faults
//!     cargo bench -p outrigger-benches --features scenarios --bench scenarios -- endpoints
//!
//! Owns the choice of the scenario. `OUTRIGGER_BIN` names the proxy (`target/release/outrigger` unless given); Envoy and
//! HAProxy are looked for on the PATH and left out, by name, where they are missing. `faults` needs root, for a network
//! namespace of its own.

mod endpoint;
mod endpoints;
mod faults;
mod load;
mod proxies;
mod slow;

use std::process::ExitCode;

fn main() -> ExitCode {
    // cargo adds an option of its own.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    if wants("slow") {
        runtime.block_on(slow::run());
    }
    if wants("endpoints") && !runtime.block_on(endpoints::run()) {
        eprintln!("endpoints: a bound is not kept");
        return ExitCode::FAILURE;
    }
    if wants("faults") {
        if let Err(problem) = faults::enter_namespace() {
            eprintln!("faults: {problem}");
            return ExitCode::FAILURE;
        }
        runtime.block_on(faults::run());
    }
    ExitCode::SUCCESS
}
