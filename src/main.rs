//! The command line; see `result-cleaner --help`.

use std::io::Write;
use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    match cli::execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error can't be written, the exit status alone has to report the failure.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
