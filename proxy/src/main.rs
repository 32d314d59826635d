//! The outrigger binary: reads the command line and hands over.

use std::process::ExitCode;

use outrigger::cli::{self, Invocation, Output};
use outrigger::lifecycle;

/// Requests take and free buffers of a few kilobytes; glibc spends a fifth of an HTTP/2 request's time on that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let emulated_version = std::env::var(cli::EMULATED_VERSION_VARIABLE).ok();
    match cli::parse(std::env::args_os().skip(1), emulated_version.as_deref()) {
        Ok(Invocation::Run(options)) => lifecycle::run(*options),
        Ok(Invocation::Print(Output::Standard(text))) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Invocation::Print(Output::Error(text))) => {
            eprint!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}\n\n`outrigger --help` lists all flags.");
            ExitCode::FAILURE
        }
    }
}
