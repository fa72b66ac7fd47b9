//! `tarn token create|list|revoke`.

use std::io::Write;

use clap::{Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::json;

use super::client::Client;
use super::dsn::Dsn;
use super::mart::print_list;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Make a token and print it; it is never shown again.
    #[command(
        after_help = "Examples:\n  tarn token create tarn://127.0.0.1:8642/acme --role writer --name etl --expires 30d\n  tarn token create tarn://127.0.0.1:8642/acme --mart sales --role reader --profile notebook"
    )]
    Create {
        /// The tenant; without one the token is for the whole node (default: TARN_DSN).
        dsn: Option<String>,
        /// The one mart that it reaches; without it, all of the tenant.
        #[arg(long)]
        mart: Option<String>,
        /// It ends by itself after so long, as `12h` or `30d`, or at an RFC 3339 time.
        #[arg(long)]
        expires: Option<String>,
        /// A profile that it may ask for; several times for several. Without it, any.
        #[arg(long = "profile")]
        profiles: Vec<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// What it may do.
        #[arg(long, value_enum)]
        role: Role,
        /// What it is for.
        #[arg(long, default_value = "")]
        name: String,
    },
    /// List tokens (not their texts).
    #[command(after_help = "Example:\n  tarn token list tarn://127.0.0.1:8642")]
    List {
        /// The node (default: TARN_DSN).
        dsn: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a token worthless, on every node within 2 seconds.
    #[command(after_help = "Example:\n  tarn token revoke 5f0c… tarn://127.0.0.1:8642")]
    Revoke {
        /// Its id, as `token list` shows it.
        id: String,
        /// The node (default: TARN_DSN).
        dsn: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Role {
    Reader,
    Writer,
    Admin,
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create { dsn, mart, expires, profiles, json, role, name } => {
            let client = Client::new(Dsn::find(dsn.as_deref())?)?;
            let role = match role {
                Role::Reader => "reader",
                Role::Writer => "writer",
                Role::Admin => "admin",
            };
            let mut body = json!({"tenant": client.dsn().tenant, "role": role, "name": name});
            if let Some(mart) = mart {
                body["mart"] = mart.into();
            }
            if let Some(expires) = expires {
                let field = if expires.contains(':') { "expires_at" } else { "expires_in" };
                body[field] = expires.into();
            }
            if !profiles.is_empty() {
                body["profiles"] = profiles.into();
            }
            let made = client.json(client.request(Method::POST, "/v1/tokens").json(&body)).await?;
            if json {
                return Ok(writeln!(std::io::stdout(), "{made:#}")?);
            }
            eprintln!("token {} made; this is its only showing:", made["id"].as_str().unwrap_or_default());
            println!("{}", made["token"].as_str().unwrap_or_default());
        }
        Command::List { dsn, json } => {
            let client = Client::new(Dsn::find(dsn.as_deref())?)?;
            let answer = client.json(client.request(Method::GET, "/v1/tokens")).await?;
            print_list(
                &answer["tokens"],
                &["id", "tenant", "mart", "role", "name", "profiles", "created", "expires"],
                json,
            )?;
        }
        Command::Revoke { id, dsn, json } => {
            let client = Client::new(Dsn::find(dsn.as_deref())?)?;
            let id: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
            let answer = client.json(client.request(Method::DELETE, &format!("/v1/tokens/{id}"))).await?;
            if json {
                return Ok(writeln!(std::io::stdout(), "{answer:#}")?);
            }
            eprintln!("token {id} revoked");
        }
    }
    Ok(())
}
