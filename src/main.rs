//! `kubemeter`: picks the command, says in one line what went wrong.

use std::process::ExitCode;

use clap::Parser;
use kubemeter::command::{self, Cli, Command, LogFormat};
use kubemeter::telemetry::{self, LogOptions};

/// The image's libc has an allocator that is slow under threads, and ingest allocates for every event.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("kubemeter: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|why| format!("can't start threads: {why}"))?;
    let _inside = runtime.enter();
    let logs = LogOptions { filter: &cli.log, json: cli.log_format == LogFormat::Json };
    let traces = telemetry::init(logs, cli.command.otlp_endpoint()).map_err(|why| why.to_string())?;
    let result = match cli.command {
        Command::Crds => {
            let crds = kubemeter::api::crds().map_err(|why| why.to_string())?;
            crds.iter().for_each(|(_, text)| print!("---\n{text}"));
            Ok(())
        }
        Command::Operator(args) => runtime.block_on(command::operator::run(args)),
        Command::Gateway(args) => runtime.block_on(command::gateway::run(args)),
        Command::Dev(args) => runtime.block_on(command::dev::run(args)),
        Command::Check(args) => runtime.block_on(command::check::run(args)),
        Command::Clickhouse(args) => runtime.block_on(command::clickhouse::run(args)),
    };
    traces.finish();
    result
}
