//! `tarn-worker validate | schema | run | schedule`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use temporalio_client::errors::WorkflowGetResultError;
use temporalio_client::{Client, WorkflowStartOptions};

use crate::definition::Definition;
use crate::tarn::{Dsn, Tarn};
use crate::workflows::maintenance::MaintenanceWorkflow;
use crate::workflows::transform::TransformWorkflow;
use crate::{schedules, temporal};

/// Pipelines of Tarn on Temporal.
///
/// Where Temporal is, the variables of its own clients say: TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, TEMPORAL_API_KEY, TEMPORAL_TLS_….
/// Where the marts are: TARN_DSN, TARN_TOKEN, TARN_CA_FILE.
#[derive(Parser)]
#[command(
    name = "tarn-worker",
    version,
    after_help = "Example:\n  tarn-worker validate daily.yaml && tarn-worker run daily.yaml"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check definitions of workflows, without any server.
    #[command(after_help = "Example:\n  tarn-worker validate pipelines/*.yaml")]
    Validate {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Print the JSON schema of definitions, for editors.
    #[command(after_help = "Example:\n  tarn-worker schema > workflow.schema.json")]
    Schema,
    /// Work off the task queue; with a file, only until its workflow, started now, is over.
    #[command(after_help = "Example:\n  tarn-worker run\n  tarn-worker run daily.yaml")]
    Run {
        file: Option<PathBuf>,
        #[command(flatten)]
        queue: Queue,
    },
    /// Schedules on Temporal.
    #[command(subcommand)]
    Schedule(ScheduleCommand),
}

#[derive(Subcommand)]
enum ScheduleCommand {
    /// Make the schedules of definitions, change those that are there, remove those that a definition has no more.
    #[command(after_help = "Example:\n  tarn-worker schedule apply pipelines/*.yaml")]
    Apply {
        #[arg(required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        queue: Queue,
    },
    /// List schedules.
    #[command(after_help = "Example:\n  tarn-worker schedule list --json")]
    List {
        #[arg(long)]
        json: bool,
    },
    /// Remove schedules, by the ids that `list` shows.
    #[command(after_help = "Example:\n  tarn-worker schedule delete tarn-daily")]
    Delete {
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Args)]
struct Queue {
    /// Task queue of Temporal.
    #[arg(long = "task-queue", env = "TARN_TASK_QUEUE", default_value = "tarn")]
    name: String,
}

/// 0 for success, 2 for wrong usage, else 1.
pub async fn run() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn,worker=info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match dispatch(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tarn-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Validate { files } => validate(&files),
        Command::Schema => print(&serde_json::to_string_pretty(&Definition::schema())?),
        Command::Run { file, queue } => work(file.as_deref(), &queue.name).await,
        Command::Schedule(ScheduleCommand::Apply { files, queue }) => {
            let definitions = files.iter().map(|file| read(file)).collect::<anyhow::Result<Vec<_>>>()?;
            let client = temporal::connect().await?;
            for definition in &definitions {
                let definition = placed(definition.clone())?;
                for id in schedules::apply(&client, &queue.name, &definition).await? {
                    print(&id)?;
                }
            }
            Ok(())
        }
        Command::Schedule(ScheduleCommand::List { json }) => {
            let found = schedules::list(&temporal::connect().await?).await?;
            if json {
                let all: Vec<_> =
                    found.iter().map(|(id, paused)| serde_json::json!({"id": id, "paused": paused})).collect();
                return print(&serde_json::to_string_pretty(&all)?);
            }
            found.iter().try_for_each(|(id, paused)| print(&format!("{id}{}", if *paused { "  paused" } else { "" })))
        }
        Command::Schedule(ScheduleCommand::Delete { ids }) => {
            let client = temporal::connect().await?;
            for id in ids {
                if !schedules::remove(&client, &id).await? {
                    bail!("no schedule has the id `{id}`");
                }
            }
            Ok(())
        }
    }
}

/// All files are checked, also after one that is wrong.
fn validate(files: &[PathBuf]) -> anyhow::Result<()> {
    let mut wrong = 0;
    for file in files {
        match read(file) {
            Ok(definition) => print(&format!("{}: {}", file.display(), definition.name()))?,
            Err(error) => {
                wrong += 1;
                eprintln!("{error:#}");
            }
        }
    }
    if wrong > 0 { bail!("{wrong} of {} are no definitions", files.len()) } else { Ok(()) }
}

fn read(file: &Path) -> anyhow::Result<Definition> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    Definition::parse(&text).with_context(|| file.display().to_string())
}

/// With the mart of the DSN where the definition has none: a workflow's input says all.
fn placed(definition: Definition) -> anyhow::Result<Definition> {
    match definition {
        Definition::Transform(mut transform) if transform.mart.is_none() => {
            let mart = Dsn::from_environment()?.mart;
            transform.mart = Some(mart.context("no mart: name one in the definition or in TARN_DSN")?);
            Ok(Definition::Transform(transform))
        }
        other => Ok(other),
    }
}

async fn work(file: Option<&Path>, queue: &str) -> anyhow::Result<()> {
    let definition = file.map(|file| read(file).and_then(placed)).transpose()?;
    let tarn = Tarn::new(&Dsn::from_environment()?)?;
    let client = temporal::connect().await?;
    let mut worker = temporal::worker(client.clone(), queue, tarn)?;
    let stop = worker.shutdown_handle();
    tracing::info!(queue, "works");
    let working = worker.run();
    tokio::pin!(working);
    let until = async {
        match &definition {
            None => until_told().await.map(|()| None),
            Some(definition) => tokio::select! {
                done = start_and_wait(&client, queue, definition) => done.map(Some),
                told = until_told() => told.and_then(|()| bail!("stopped; the workflow goes on when a worker is there")),
            },
        }
    };
    let done = tokio::select! {
        done = until => done,
        // Nobody has stopped it: it can't go on.
        worked = &mut working => return Err(worked.err().map_or_else(|| anyhow::anyhow!("the worker ended"), Into::into)),
    };
    tracing::info!("stops");
    stop();
    working.await?;
    done?.map_or(Ok(()), |report| print(&report))
}

/// Starts the workflow, unless one that was started so runs already (a schedule's have a time in their ids), and waits for its end.
async fn start_and_wait(client: &Client, queue: &str, definition: &Definition) -> anyhow::Result<String> {
    let options = WorkflowStartOptions::new(queue, definition.name()).build();
    let told = match definition {
        Definition::Transform(transform) => {
            let handle = client.start_workflow(TransformWorkflow::run, transform.clone(), options).await?;
            handle.get_result(Default::default()).await.map(|report| serde_json::to_string_pretty(&report))
        }
        Definition::Maintenance(maintenance) => {
            let handle = client.start_workflow(MaintenanceWorkflow::run, maintenance.clone(), options).await?;
            handle.get_result(Default::default()).await.map(|report| serde_json::to_string_pretty(&report))
        }
    };
    match told {
        Ok(report) => Ok(report?),
        Err(WorkflowGetResultError::Failed(failure)) => bail!("{}: {}", definition.name(), failure.failure().message),
        Err(error) => Err(error).with_context(|| definition.name().to_owned()),
    }
}

async fn until_told() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        told = tokio::signal::ctrl_c() => told?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
