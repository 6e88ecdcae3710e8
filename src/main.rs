//! The command line; see `result-cleaner --help`.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli::execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error can't be written, the exit status alone has to report the failure.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(cli::exit_status(&error))
        }
    }
}
