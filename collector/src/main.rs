//! `firstfall`: the one binary. Reads the command line and the settings, and starts the part that was asked for.

use clap::Parser;
use collector::alert;
use collector::app::{CannotStart, Server};
use collector::cli::{Cli, Command, DemoOptions, DoctorOptions, ServeOptions, SqlOptions, WebhookCommand};
use collector::config::{self, Config};
use collector::demo;
use collector::doctor;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

const FAILURE: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // Every HTTP client of this process needs one, the demo's too. It can be chosen once only, and this is the first line.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        None => serve(cli.options),
        Some(Command::Serve(options)) => serve(options),
        Some(Command::Sql(options)) => sql(&options),
        Some(Command::CheckConfig { file }) => check_config(file),
        Some(Command::Webhook(WebhookCommand::Test { config, receiver })) => webhook_test(config.as_deref(), receiver.as_deref()),
        Some(Command::Doctor(options)) => doctor(&options),
        Some(Command::Version) => {
            println!("firstfall {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Some(Command::Demo(options)) => demo(options),
        Some(Command::DemoService { name, version, port, peers, otlp }) => {
            runtime().and_then(|runtime| runtime.block_on(demo::run_service(name, version, port, &peers, &otlp)))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("firstfall: {}", error.message);
            ExitCode::from(if error.usage { USAGE } else { FAILURE })
        }
    }
}

fn usage(message: String) -> CannotStart {
    CannotStart { message, usage: true }
}

fn failure(message: String) -> CannotStart {
    CannotStart { message, usage: false }
}

fn read_config(file: Option<&std::path::Path>) -> Result<Config, CannotStart> {
    let text = match file {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| usage(format!("read settings from {}: {error}", path.display())))?;
            Some((path.display().to_string(), text))
        }
    };
    let environment = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    Config::read(text.as_ref().map(|(name, text)| (name.as_str(), text.as_str())), environment)
        .map_err(|mistakes| usage(format!("the settings have mistakes:\n{mistakes}")))
}

fn settings(options: ServeOptions) -> Result<Config, CannotStart> {
    let mut config = read_config(options.config.as_deref())?;
    config.data_dir = options.data_dir.unwrap_or(config.data_dir);
    config.log_level = options.log_level.unwrap_or(config.log_level);
    config.otlp_grpc = options.otlp_grpc.unwrap_or(config.otlp_grpc);
    config.otlp_http = options.otlp_http.unwrap_or(config.otlp_http);
    config.web = options.web.unwrap_or(config.web);
    config.insecure_no_auth |= options.insecure_no_auth;
    Ok(config)
}

/// Sets how much is logged from now on.
type SetLevel = Box<dyn Fn(&str) -> Result<(), String>>;

fn log_to_stderr(level: &str) -> Result<SetLevel, CannotStart> {
    let filter = |level: &str| EnvFilter::try_new(level).map_err(|error| format!("log level {level:?}: {error}"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter(level).map_err(usage)?).with_writer(std::io::stderr);
    let builder = builder.with_filter_reloading();
    let handle = builder.reload_handle();
    builder.init();
    Ok(Box::new(move |level| handle.reload(filter(level)?).map_err(|error| error.to_string())))
}

fn runtime() -> Result<tokio::runtime::Runtime, CannotStart> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| failure(format!("start the runtime: {error}")))
}

fn serve(options: ServeOptions) -> Result<(), CannotStart> {
    let mut config = settings(options.clone())?;
    let set_level = log_to_stderr(&config.log_level)?;
    runtime()?.block_on(async {
        // Before anything is bound, so that a signal right after the start ends it in good order too.
        let mut stop = Signals::listen()?;
        let server = Server::start(&config).await?;
        server.announce();
        stop.wait(|| match settings(options.clone()) {
            Ok(newer) => take_over(&server, &mut config, newer, &set_level),
            Err(error) => tracing::error!("SIGHUP: {}\nthe server goes on as before", error.message),
        })
        .await;
        tracing::info!("stopping: answering what is in flight and sealing what is live");
        server.stop().await;
        Ok(())
    })
}

/// Takes over what can change while the server runs, and says what waits for a restart. `config` stays what is in force.
fn take_over(server: &Server, config: &mut Config, newer: Config, set_level: &SetLevel) {
    let changed = config.changed(&newer);
    config.limits = newer.limits;
    config.store.retention = newer.store.retention;
    config.objectives = newer.objectives;
    server.change(config);
    if config.log_level != newer.log_level {
        match set_level(&newer.log_level) {
            Ok(()) => config.log_level = newer.log_level,
            Err(mistake) => tracing::error!("SIGHUP: {mistake}; it stays {}", config.log_level),
        }
    }
    let list = |paths: &[&str]| if paths.is_empty() { "nothing".to_owned() } else { paths.join(", ") };
    tracing::info!("SIGHUP: changed: {}; waits for a restart: {}", list(&changed.live), list(&changed.at_restart));
}

fn demo(options: DemoOptions) -> Result<(), CannotStart> {
    let own_directory = options.serve.data_dir.is_some() || options.serve.config.is_some();
    let mut config = settings(options.serve)?;
    // Demo data do not mix with real ones: a directory of its own, gone at the end.
    let scratch = std::env::temp_dir().join(format!("firstfall-demo-{}", std::process::id()));
    if !own_directory {
        config.data_dir = scratch.clone();
    }
    let _ = log_to_stderr("warn")?;
    let result = runtime()?.block_on(async {
        let mut stop = Signals::listen()?;
        demo::run(config, options.rate, options.pause, stop.wait(|| ())).await
    });
    if !own_directory {
        let _ = std::fs::remove_dir_all(&scratch);
    }
    result
}

struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    hup: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Signals, CannotStart> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).map_err(|error| failure(format!("listen for signals: {error}")));
        Ok(Signals { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())?, hup: listen(SignalKind::hangup())? })
    }

    /// Returns when it is time to stop; SIGHUP calls `reload` meanwhile.
    async fn wait(&mut self, mut reload: impl FnMut()) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                _ = self.hup.recv() => reload(),
            }
        }
    }
}

fn sql(options: &SqlOptions) -> Result<(), CannotStart> {
    let config = read_config(options.config.as_deref())?;
    let directory = options.data_dir.clone().unwrap_or(config.data_dir);
    let reader = firstfall_store::Reader::open(&directory).map_err(|error| failure(error.to_string()))?;
    let budget = firstfall_store::query::Budget::new(std::time::Duration::from_secs(3600));
    let answer = reader.sql(&options.query, options.limit, &budget).map_err(|error| failure(error.to_string()))?;
    println!("{}", answer.columns.join("\t"));
    for row in answer.rows {
        let cells: Vec<String> = row
            .iter()
            .map(|value| match value {
                serde_json::Value::String(text) => text.replace(['\t', '\n', '\r'], " "),
                serde_json::Value::Null => String::new(),
                other => other.to_string(),
            })
            .collect();
        println!("{}", cells.join("\t"));
    }
    if answer.truncated {
        eprintln!("firstfall: more rows than {}; ask for more with --limit", options.limit);
    }
    Ok(())
}

fn check_config(file: Option<std::path::PathBuf>) -> Result<(), CannotStart> {
    print!("{}", config::reference(&read_config(file.as_deref())?));
    Ok(())
}

fn doctor(options: &DoctorOptions) -> Result<(), CannotStart> {
    let problems = runtime()?.block_on(doctor::run(options)).map_err(failure)?;
    if problems > 0 { Err(failure(format!("{problems} of the checks found something wrong"))) } else { Ok(()) }
}

fn webhook_test(config: Option<&std::path::Path>, receiver: Option<&str>) -> Result<(), CannotStart> {
    let config = read_config(config)?;
    let chosen: Vec<_> = config.receivers.iter().filter(|r| receiver.is_none_or(|name| r.name == name)).cloned().collect();
    if chosen.is_empty() {
        let names: Vec<&str> = config.receivers.iter().map(|r| r.name.as_str()).collect();
        return Err(usage(match receiver {
            Some(name) if !names.is_empty() => format!("there is no receiver {name:?}; the settings have {}", names.join(", ")),
            _ => "the settings have no receiver; put a section [receivers.NAME] with a url into the file, and name it with --config"
                .to_owned(),
        }));
    }
    let external_url = if config.external_url.is_empty() { format!("http://{}", config.web) } else { config.external_url.clone() };
    let failed = runtime()?.block_on(alert::trial::run(&chosen, external_url)).map_err(failure)?;
    if failed > 0 { Err(failure(format!("{failed} of {} receivers did not accept it", chosen.len()))) } else { Ok(()) }
}
