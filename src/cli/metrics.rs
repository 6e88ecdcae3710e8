//! The metrics service that the command line or the environment names.

use clap::{ArgMatches, Args, Command, FromArgMatches};
use result_cleaner::DEFAULT_METRICS_URL;

use super::{exclusive, switch};

/// The URL for reports, if there is one.
#[derive(Debug)]
pub(crate) struct MetricsArgs {
    pub url: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Reporting")]
struct MetricsFlags {
    /// Base URL of the metrics service; `/track/cleanup` is appended
    #[arg(long, value_name = "URL", default_value = DEFAULT_METRICS_URL, env = "RESULT_CLEANER_METRICS_URL")]
    metrics_url: String,
    /// Do not report to a metrics service
    #[arg(long, value_parser = switch(), env = "RESULT_CLEANER_NO_METRICS")]
    no_metrics: bool,
}

impl Args for MetricsArgs {
    fn augment_args(command: Command) -> Command {
        MetricsFlags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        MetricsFlags::augment_args_for_update(command)
    }
}

impl FromArgMatches for MetricsArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let MetricsFlags { metrics_url, no_metrics } = MetricsFlags::from_arg_matches(matches)?;
        let [_, none_counts] = exclusive(matches, ["metrics_url", "no_metrics"])?;
        let none = no_metrics && none_counts;
        Ok(Self { url: (!none).then_some(metrics_url) })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
