//! Histories that a Temporal server recorded, run through today's workflows: what they would do now must be what they did then.
//!
//! A workflow that is under way when a worker is replaced goes on with its code, so these must not change; write new ones with
//! `TARN_RECORD_HISTORIES=crates/worker/tests/histories` set for `tests/test_worker.py`.

use std::path::PathBuf;

use temporalio_client::WorkflowHistory;
use temporalio_sdk::workflow_replayer::{WorkflowReplayer, WorkflowReplayerOptions};
use worker::workflows::maintenance::MaintenanceWorkflow;
use worker::workflows::transform::TransformWorkflow;

fn histories() -> Vec<(String, Vec<u8>)> {
    let place = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/histories");
    let mut files: Vec<_> =
        std::fs::read_dir(place).expect("the directory").map(|file| file.expect("a file").path()).collect();
    files.sort();
    files.iter().map(|file| (file.display().to_string(), std::fs::read(file).expect("a history"))).collect()
}

fn replayer() -> WorkflowReplayer {
    let options = WorkflowReplayerOptions::new()
        .register_workflow::<TransformWorkflow>()
        .and_then(|options| options.register_workflow::<MaintenanceWorkflow>())
        .expect("two workflows");
    WorkflowReplayer::new(options.build()).expect("a replayer")
}

async fn replay(history: &[u8]) -> Result<(), String> {
    let history = WorkflowHistory::from_json(history).expect("a history");
    replayer().replay_workflow(history).await.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn recorded_histories_replay() {
    let all = histories();
    assert!(all.len() >= 8, "there are {}", all.len());
    for (name, history) in all {
        if let Err(error) = replay(&history).await {
            panic!("{name}: {error}");
        }
    }
}

/// That replaying finds a difference: a history in which another activity was called.
#[tokio::test]
async fn a_history_of_other_code_does_not_replay() {
    let (_, history) =
        histories().into_iter().find(|(name, _)| name.ends_with("/pipeline.json")).expect("the pipeline's");
    let text = String::from_utf8(history).expect("JSON");
    let other = text.replace("tarn_branch", "tarn_vacuum");
    assert_ne!(text, other);
    assert!(replay(other.as_bytes()).await.is_err());
}
