//! `result-cleaner doctor`: checks the environment that the service needs. The checks and their words are in
//! `src/oneshot/doctor.rs`, which the library has, too; this file prints them.

use clap::Args;
use console::style;
use result_cleaner::{CheckStatus, diagnose};

use crate::cli::metrics::MetricsArgs;
use crate::cli::{CommandError, DirectoryArg, block_on, log, output, switch};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  result-cleaner doctor
  result-cleaner doctor /var/cache/results --no-metrics

Exit status: 1 if a check is wrong, 0 also with warnings.")]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    directory: DirectoryArg,
    #[command(flatten)]
    metrics: MetricsArgs,
    /// Print one JSON object per line
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_JSON")]
    json: bool,
}

pub(crate) fn execute(args: DoctorArgs) -> Result<(), CommandError> {
    log::start_quietly();
    let mut config = args.directory.config();
    config.metrics_url = args.metrics.url;
    let checks = block_on(async { Ok(diagnose(&config).await?) })?;
    output::print(|out| {
        for check in &checks {
            if args.json {
                writeln!(out, "{}", output::json(check)?)?;
                continue;
            }
            let status = match check.status {
                CheckStatus::Ok => style("ok     ").green(),
                CheckStatus::Warning => style("warning").yellow(),
                _ => style("wrong  ").red().bold(),
            };
            writeln!(out, "{status}  {:15}  {}", check.check, check.found)?;
            if let Some(remedy) = &check.remedy {
                writeln!(out, "{:26}remedy: {remedy}", "")?;
            }
        }
        Ok(())
    })?;
    match checks.iter().filter(|check| check.status == CheckStatus::Wrong).count() {
        0 => Ok(()),
        1 => Err("1 check failed; the line below it says what to do".into()),
        count => Err(format!("{count} checks failed; the lines below them say what to do").into()),
    }
}
