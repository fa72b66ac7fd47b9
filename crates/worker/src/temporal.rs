//! The Temporal server: where it is, and a worker on it. Set up as all of Temporal's clients: `TEMPORAL_ADDRESS`, `TEMPORAL_NAMESPACE`,
//! `TEMPORAL_API_KEY`, `TEMPORAL_TLS_…`, or a profile in Temporal's own file.

use std::time::{Duration, Instant};

use anyhow::Context;
use temporalio_client::envconfig::LoadClientConfigProfileOptions;
use temporalio_client::{Client, ClientOptions, Connection};
use temporalio_sdk::{Runtime, Worker, WorkerOptions};

use crate::activities::Activities;
use crate::tarn::Tarn;
use crate::workflows::maintenance::MaintenanceWorkflow;
use crate::workflows::transform::TransformWorkflow;

/// A server that is being started too is waited for so long.
const PATIENCE: Duration = Duration::from_secs(60);
const CONNECTS: Duration = Duration::from_secs(5);
/// Activities that are under way at an orderly end may take so long.
const GRACE: Duration = Duration::from_secs(10);
/// A cancel reaches an activity with a heartbeat: they are sent as they come.
const HEARTBEATS: Duration = Duration::from_secs(1);

pub async fn connect() -> anyhow::Result<Client> {
    let (mut connection, options) = ClientOptions::load_from_config(LoadClientConfigProfileOptions::default())
        .map_err(|error| anyhow::anyhow!("Temporal's settings: {error}"))?;
    connection.connect_timeout = Some(CONNECTS);
    let begun = Instant::now();
    loop {
        match Connection::connect(connection.clone()).await {
            Ok(connected) => return Ok(Client::new(connected, options)?),
            Err(error) if begun.elapsed() < PATIENCE => {
                tracing::warn!(address = %connection.target, %error, "Temporal does not answer; tried again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error).with_context(|| format!("Temporal at {}", connection.target)),
        }
    }
}

pub fn worker(client: Client, queue: &str, tarn: Tarn) -> anyhow::Result<Worker> {
    let runtime = Runtime::from_current_tokio(Default::default())?;
    let options = WorkerOptions::new(queue)
        .register_activities(Activities::new(tarn))
        .register_workflow::<TransformWorkflow>()?
        .register_workflow::<MaintenanceWorkflow>()?
        .max_heartbeat_throttle_interval(HEARTBEATS)
        .default_heartbeat_throttle_interval(HEARTBEATS)
        .graceful_shutdown_period(GRACE)
        .build();
    Ok(Worker::new(&runtime, client, options)?)
}
