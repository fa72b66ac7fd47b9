//! `tarn serve`.

use std::io::Write;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::flags::Settings;
use crate::config::Config;
use crate::server::Server;

pub(super) fn run(settings: &Settings) -> anyhow::Result<()> {
    let config = settings.load()?;
    start_log(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("node")
        .build()
        .context("can't start threads")?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    // Before anything else, so that an early signal is not lost.
    let stop = stop_on_signal()?;
    let server = Server::start(config).await?;
    let mut stderr = std::io::stderr().lock();
    if let Some(token) = server.new_admin_token() {
        writeln!(stderr, "admin token, shown only now: {token}")?;
    }
    let scheme = if server.has_tls() { "https" } else { "http" };
    writeln!(stderr, "tarn serves on {scheme}://{}", server.address())?;
    drop(stderr);
    server.run(stop).await;
    tracing::info!("stopped");
    Ok(())
}

/// The first SIGTERM or SIGINT asks for an orderly end, a second one ends at once.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut term = signal(SignalKind::terminate()).context("can't listen to signals")?;
    let mut int = signal(SignalKind::interrupt()).context("can't listen to signals")?;
    let asked = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if asked.is_cancelled() {
                std::process::exit(1);
            }
            tracing::info!("stopping: finishing what runs, shipping what is left; once more ends at once");
            asked.cancel();
        }
    });
    Ok(stop)
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(&config.log).with_context(|| format!("setting `log`: `{}` is not a filter", config.log))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if config.log_json {
        log.json().init();
    } else {
        log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
    Ok(())
}
