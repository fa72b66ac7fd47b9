//! `tarn snapshot`, `restore`, `branch`, `vacuum`, `archive`, `history`, `sweep`: a mart's past on the command line.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::Client;
use super::dsn::{BadUsage, Dsn};
use super::mart::print_list;

#[derive(Subcommand)]
pub(super) enum SnapshotCommand {
    /// Name the present moment, or an earlier one.
    #[command(after_help = "Example:\n  tarn snapshot create before-import tarn://127.0.0.1:8642/default/dev")]
    Create {
        /// A letter, then letters, digits, `-`, `_`, `.`.
        name: String,
        /// The mart (default: TARN_DSN).
        dsn: Option<String>,
        /// The moment: a time, a snapshot or a position (default: now).
        #[arg(long, value_name = "MOMENT")]
        at: Option<String>,
    },
    /// List snapshots with their times, sizes, and how much of that the mart shares.
    #[command(after_help = "Example:\n  tarn snapshot list tarn://127.0.0.1:8642/default/dev")]
    List {
        /// The mart (default: TARN_DSN).
        dsn: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Forget a name. Its moment stays as long as the retention window does.
    #[command(after_help = "Example:\n  tarn snapshot delete before-import tarn://127.0.0.1:8642/default/dev")]
    Delete {
        /// Which.
        name: String,
        /// The mart (default: TARN_DSN).
        dsn: Option<String>,
    },
}

pub(super) async fn snapshot(command: SnapshotCommand) -> anyhow::Result<()> {
    match command {
        SnapshotCommand::Create { name, dsn, at } => {
            let mart = Mart::find(dsn.as_deref())?;
            let made = mart.post("snapshots", json!({"name": name, "at": at.or(mart.at())})).await?;
            eprintln!("snapshot `{name}` is {}", text(&made["position"]));
        }
        SnapshotCommand::List { dsn, json } => {
            let listed = Mart::find(dsn.as_deref())?.get("snapshots").await?;
            print_list(&listed["snapshots"], &["name", "time", "bytes", "shared_bytes", "position"], json)?;
        }
        SnapshotCommand::Delete { name, dsn } => {
            let mart = Mart::find(dsn.as_deref())?;
            mart.client.send(mart.request(Method::DELETE, &format!("snapshots/{}", escape(&name)))).await?;
            eprintln!("snapshot `{name}` deleted");
        }
    }
    Ok(())
}

#[derive(clap::Args)]
pub(super) struct HistoryArgs {
    /// The mart (default: TARN_DSN).
    dsn: Option<String>,
    /// From this time on (RFC 3339).
    #[arg(long)]
    from: Option<String>,
    /// Before this time.
    #[arg(long)]
    to: Option<String>,
    /// At most so many, the newest.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn history(args: HistoryArgs) -> anyhow::Result<()> {
    let mart = Mart::find(args.dsn.as_deref())?;
    let mut query = format!("history?limit={}", args.limit);
    for (name, value) in [("from", &args.from), ("to", &args.to)] {
        if let Some(value) = value {
            query.push_str(&format!("&{name}={}", escape(value)));
        }
    }
    let listed = mart.get(&query).await?;
    print_list(&listed["moments"], &["time", "position", "what", "bytes"], args.json)
}

#[derive(clap::Args)]
pub(super) struct RestoreArgs {
    /// The mart (default: TARN_DSN).
    dsn: Option<String>,
    /// The moment: a time, a snapshot or a position.
    #[arg(long, value_name = "MOMENT")]
    at: Option<String>,
    /// Only say, per table, how many rows would come and go.
    #[arg(long)]
    dry_run: bool,
    /// Do nothing if the mart has moved on from this position.
    #[arg(long, value_name = "POSITION")]
    expected_position: Option<String>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn restore(args: RestoreArgs) -> anyhow::Result<()> {
    let mart = Mart::find(args.dsn.as_deref())?;
    let Some(at) = args.at.or(mart.at()) else {
        return Err(BadUsage("say `--at MOMENT`: a time, a snapshot or a position".into()).into());
    };
    if args.dry_run {
        let compared = mart.post("restore", json!({"at": at, "dry_run": true})).await?;
        return print_list(&compared["tables"], &["schema", "table", "rows_added", "rows_removed"], args.json);
    }
    let question = format!("make `{}` what it was at {at}? What it is now stays in its history.", mart.id);
    if !args.yes && !super::mart::confirmed(&question)? {
        anyhow::bail!("not restored");
    }
    let mut body = json!({ "at": at });
    if let Some(expected) = args.expected_position {
        body["expected_position"] = json!(expected);
    }
    let done = mart.post("restore", body).await?;
    if args.json {
        println!("{done}");
    }
    let (restored, before) = (text(&done["restored"]), text(&done["before"]));
    eprintln!("`{}` is what it was at {restored}; `tarn restore --at {before}` undoes it", mart.id);
    Ok(())
}

#[derive(clap::Args)]
pub(super) struct BranchArgs {
    /// The new mart, of the same tenant.
    name: String,
    /// The mart to branch from (default: TARN_DSN).
    dsn: Option<String>,
    /// The moment: a time, a snapshot or a position (default: now).
    #[arg(long, value_name = "MOMENT")]
    at: Option<String>,
}

pub(super) async fn branch(args: BranchArgs) -> anyhow::Result<()> {
    let mart = Mart::find(args.dsn.as_deref())?;
    let mut body = json!({"name": args.name});
    if let Some(at) = args.at.or(mart.at()) {
        body["at"] = json!(at);
    }
    let made = mart.post("branches", body).await?;
    eprintln!("mart `{}` branched from `{}` at {}", args.name, mart.id, text(&made["from"]));
    Ok(())
}

#[derive(clap::Args)]
pub(super) struct VacuumArgs {
    /// The mart (default: TARN_DSN).
    dsn: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn vacuum(args: VacuumArgs) -> anyhow::Result<()> {
    let mart = Mart::find(args.dsn.as_deref())?;
    let done = mart.post("vacuum", json!({})).await?;
    if args.json {
        println!("{done}");
    }
    eprintln!(
        "`{}`: {} bytes before, {} after; {} rows in {} tables are the same",
        mart.id, done["bytes_before"], done["bytes_after"], done["rows"], done["tables"]
    );
    Ok(())
}

#[derive(clap::Args)]
pub(super) struct ArchiveArgs {
    /// The mart (default: TARN_DSN).
    dsn: Option<String>,
    /// The moment: a time, a snapshot or a position (default: now).
    #[arg(long, value_name = "MOMENT")]
    at: Option<String>,
    /// The object's storage class, such as STANDARD_IA or GLACIER_IR (default: the bucket's).
    #[arg(long)]
    storage_class: Option<String>,
    /// Instead: archive the newest moment of each day older than so many days that has no archive yet.
    #[arg(long, value_name = "DAYS", conflicts_with = "at")]
    older_than: Option<f64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn archive(args: ArchiveArgs) -> anyhow::Result<()> {
    let mart = Mart::find(args.dsn.as_deref())?;
    let mut body = json!({});
    for (name, value) in [("at", args.at.or(mart.at())), ("storage_class", args.storage_class)] {
        if let Some(value) = value {
            body[name] = json!(value);
        }
    }
    if let Some(days) = args.older_than {
        body["older_than_days"] = json!(days);
    }
    let done = mart.post("archives", body).await?;
    print_list(&done["archives"], &["url", "time", "bytes", "rows"], args.json)
}

#[derive(clap::Args)]
pub(super) struct RetentionArgs {
    /// The mart (default: TARN_DSN).
    dsn: Option<String>,
    /// Keep every moment so many days.
    #[arg(long, required_unless_present = "default")]
    days: Option<f64>,
    /// As long as the server's setting says.
    #[arg(long, conflicts_with = "days")]
    default: bool,
}

pub(super) async fn retention(args: RetentionArgs) -> anyhow::Result<()> {
    let mart = Mart::find(args.dsn.as_deref())?;
    let body = json!({"days": args.days.filter(|_| !args.default)});
    let kept = mart.client.json(mart.request(Method::PUT, "retention").json(&body)).await?;
    eprintln!("every moment of `{}` is kept for {} days", mart.id, kept["days"]);
    Ok(())
}

#[derive(clap::Args)]
pub(super) struct SweepArgs {
    /// The mart (default: TARN_DSN).
    dsn: Option<String>,
    /// Only say what would go, and which objects nothing names.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn sweep(args: SweepArgs) -> anyhow::Result<()> {
    let mart = Mart::find(args.dsn.as_deref())?;
    let done = mart.post("sweep", json!({"dry_run": args.dry_run})).await?;
    println!("{}", serde_json::to_string_pretty(&done)?);
    Ok(())
}

/// A mart to ask.
struct Mart {
    client: Client,
    id: crate::names::MartId,
}

impl Mart {
    fn find(dsn: Option<&str>) -> anyhow::Result<Self> {
        let client = Client::new(Dsn::find(dsn)?)?;
        let id = client.dsn().mart_id()?;
        Ok(Self { client, id })
    }

    /// The DSN's moment.
    fn at(&self) -> Option<String> {
        self.client.dsn().at.clone()
    }

    fn request(&self, method: Method, call: &str) -> reqwest::RequestBuilder {
        self.client.request(method, &format!("/v1/tenants/{}/marts/{}/{call}", self.id.tenant, self.id.mart))
    }

    async fn post(&self, call: &str, body: Value) -> anyhow::Result<Value> {
        self.client.json(self.request(Method::POST, call).json(&body)).await
    }

    async fn get(&self, call: &str) -> anyhow::Result<Value> {
        self.client.json(self.request(Method::GET, call)).await
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// For a path or query.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}
