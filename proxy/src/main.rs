//! The outrigger binary: reads the command line and hands over.

use std::process::ExitCode;

use outrigger::cli::{self, Invocation, Output};
use outrigger::lifecycle;

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
