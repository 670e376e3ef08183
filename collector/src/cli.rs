//! The command line of `firstfall`.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

#[derive(Parser)]
#[command(name = "firstfall", version, about = "See which service fell first, and what it took down.", disable_version_flag = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub options: ServeOptions,
}

#[derive(Subcommand)]
pub enum Command {
    /// Receive telemetry and show it (also without a subcommand)
    Serve(ServeOptions),
    /// A collector, a small shop of real services, load, and faults that come and go
    Demo(DemoOptions),
    /// Ask the store in SQL: tables spans, logs, points, services, operations, rollups, edges, incidents, changes
    Sql(SqlOptions),
    /// Check a configuration file and the environment, and print every setting with its meaning
    CheckConfig { file: Option<PathBuf> },
    /// Receivers of notifications
    #[command(subcommand)]
    Webhook(WebhookCommand),
    /// Send one of each signal to an endpoint, and read it back
    Doctor(DoctorOptions),
    /// Print the version
    Version,
    /// One service of the demo's shop
    #[command(hide = true)]
    DemoService {
        name: String,
        #[arg(long)]
        version: String,
        #[arg(long)]
        port: u16,
        #[arg(long)]
        peers: String,
        #[arg(long)]
        otlp: String,
    },
}

#[derive(Subcommand)]
pub enum WebhookCommand {
    /// Send a test incident, opened and resolved, and print what is answered
    Test {
        /// Settings in TOML
        #[arg(long)]
        config: Option<PathBuf>,
        /// Only this receiver; else all of them
        receiver: Option<String>,
    },
}

#[derive(Args, Clone, Default)]
pub struct ServeOptions {
    /// Settings in TOML
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Directory of the store
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// error, warn, info, debug, trace
    #[arg(long)]
    pub log_level: Option<String>,
    /// Address of OTLP/gRPC
    #[arg(long)]
    pub otlp_grpc: Option<String>,
    /// Address of OTLP/HTTP
    #[arg(long)]
    pub otlp_http: Option<String>,
    /// Address of the pages and APIs
    #[arg(long)]
    pub web: Option<String>,
    /// Listen beyond loopback without a token
    #[arg(long)]
    pub insecure_no_auth: bool,
}

#[derive(Args, Clone)]
pub struct DemoOptions {
    #[command(flatten)]
    pub serve: ServeOptions,
    /// Requests a second to the shop
    #[arg(long, default_value_t = 25)]
    pub rate: u32,
    /// Seconds between faults
    #[arg(long, default_value_t = 45)]
    pub pause: u64,
}

#[derive(Args, Clone)]
pub struct DoctorOptions {
    /// OTLP over HTTP; without it OTEL_EXPORTER_OTLP_ENDPOINT, else http://127.0.0.1:4318
    #[arg(long)]
    pub endpoint: Option<String>,
    /// Where the pages are, to read it back
    #[arg(long, default_value = "http://127.0.0.1:4380")]
    pub web: String,
    /// The token of a collector that asks for one; without it FIRSTFALL_TOKEN
    #[arg(long)]
    pub token: Option<String>,
}

#[derive(Args, Clone)]
pub struct SqlOptions {
    /// A SELECT
    pub query: String,
    #[arg(long)]
    pub config: Option<PathBuf>,
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Rows printed at most
    #[arg(long, default_value_t = 1000)]
    pub limit: usize,
}
