//! `tarn health`: whether a node serves, where there is no other client, as in its container.

use std::time::Duration;

use anyhow::{Context, anyhow};

/// A node that takes longer does not serve.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(clap::Args)]
pub(super) struct Args {
    /// What to ask.
    #[arg(default_value = "http://127.0.0.1:8642/healthz")]
    url: String,
    /// Take any certificate: one for the node's name is not one for loopback.
    #[arg(long)]
    any_certificate: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(PATIENCE).danger_accept_invalid_certs(args.any_certificate);
    let answer = client.build().context("can't make a client")?.get(&args.url).send().await;
    let status = answer.map_err(|error| anyhow!("no answer from {}: {}", args.url, error.without_url()))?.status();
    if status.is_success() { Ok(()) } else { Err(anyhow!("{} answers {status}", args.url)) }
}
