//! Prints a workflow's history in the form that the replay tests read: `record WORKFLOW_ID`, with Temporal's own variables.

use std::io::Write;

use temporalio_common::UntypedWorkflow;
use worker::temporal;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let id = std::env::args().nth(1).expect("a workflow's id");
    let client = temporal::connect().await?;
    let handle = client.get_workflow_handle::<UntypedWorkflow>(id);
    let history = handle.fetch_history(Default::default()).to_json().await?;
    let pretty: serde_json::Value = serde_json::from_slice(&history)?;
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&pretty)?)?)
}
