//! `cargo xtask bench latency|throughput|takeover|idle|step|telemetry`: how fast and how small Berth is on this machine.

use anyhow::Context as _;
use berth_tests::bench::{self, Report, idle, latency, step, takeover, telemetry, throughput};
use clap::{Parser, Subcommand, ValueEnum};
use std::io::Write as _;

/// Measures the real controller on a real etcd, with simulated agents.
#[derive(Parser)]
#[command(name = "bench")]
struct Args {
    /// What to measure.
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One client, one placement: how long it takes, beside one bare etcd transaction.
    Latency(Form),
    /// Many callers: durable placements a second, beside bare etcd, and where the processors' time goes.
    Throughput {
        #[command(flatten)]
        form: Form,
        /// Fleets to measure, by their number of hosts.
        #[arg(long, value_delimiter = ',', value_name = "N,…")]
        nodes: Option<Vec<usize>>,
        /// Callers at once.
        #[arg(long, value_name = "N")]
        callers: Option<usize>,
        /// Rounds of each fleet.
        #[arg(long, value_name = "N")]
        rounds: Option<usize>,
    },
    /// What telemetry costs: the same placements with it off and on, in turn.
    Telemetry(Form),
    /// From winning the election to leading a large fleet that is there already.
    Takeover(Form),
    /// A fleet at rest: what it writes, and how much memory controller and agent take.
    Idle {
        #[command(flatten)]
        form: Form,
        /// Fleets to measure, by their number of hosts.
        #[arg(long, value_delimiter = ',', value_name = "N,…")]
        nodes: Option<Vec<usize>>,
    },
    /// One step on a Hyper-V host: what it costs beside the host's own work; and an agent at rest.
    Step(Form),
    /// Be a Hyper-V host's PowerShell.
    #[command(hide = true)]
    StandIn(bench::StandInOptions),
    /// Be the agents of a fleet.
    #[command(hide = true)]
    Agents(bench::AgentsOptions),
}

#[derive(clap::Args)]
struct Form {
    /// A small fleet for a few seconds: shows that the benchmark works, and nothing else.
    #[arg(long)]
    short: bool,
    /// Form of the result.
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORM")]
    output: Output,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (output, report) = match Args::parse().what {
        What::Latency(Form { short, output }) => {
            let options = if short { latency::Options::SHORT } else { latency::Options::FULL };
            (output, latency::run(options).await?)
        }
        What::Throughput { form: Form { short, output }, nodes, callers, rounds } => {
            let mut options = if short { throughput::Options::short() } else { throughput::Options::full() };
            options.nodes = nodes.unwrap_or(options.nodes);
            options.callers = callers.unwrap_or(options.callers);
            options.rounds = rounds.unwrap_or(options.rounds);
            (output, throughput::run(options).await?)
        }
        What::Telemetry(Form { short, output }) => {
            let options = if short { telemetry::Options::SHORT } else { telemetry::Options::FULL };
            (output, telemetry::run(options).await?)
        }
        What::Takeover(Form { short, output }) => {
            let options = if short { takeover::Options::SHORT } else { takeover::Options::FULL };
            (output, takeover::run(options).await?)
        }
        What::Idle { form: Form { short, output }, nodes } => {
            let mut options = if short { idle::Options::short() } else { idle::Options::full() };
            options.nodes = nodes.unwrap_or(options.nodes);
            (output, idle::run(options).await?)
        }
        What::Step(Form { short, output }) => {
            let options = if short { step::Options::SHORT } else { step::Options::FULL };
            (output, step::run(options).await?)
        }
        What::StandIn(options) => return bench::stand_in(&options),
        What::Agents(options) => return bench::agents(options).await,
    };
    print(output, &report)
}

fn print(output: Output, report: &Report) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Text => write!(out, "{report}")?,
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(report).context("cannot encode the report")?)?,
    }
    Ok(())
}
