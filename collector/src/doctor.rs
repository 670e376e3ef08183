//! `firstfall doctor`: sends one of each signal as the agent would, and looks for them where they should have arrived.

use crate::cli::DoctorOptions;
use firstfall_agent::Agent;
use serde_json::{Value as Json, json};
use std::time::Duration;

/// What is acknowledged is visible to the next question; a collector elsewhere may have a queue before it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Prints what was found, a line for each thing that was looked at. Returns how many of them were wrong.
pub async fn run(options: &DoctorOptions) -> Result<usize, String> {
    let token = options.token.clone().or_else(|| std::env::var("FIRSTFALL_TOKEN").ok()).filter(|token| !token.is_empty());
    let mut agent = Agent::new("firstfall-doctor").version(env!("CARGO_PKG_VERSION"));
    if let Some(endpoint) = &options.endpoint {
        agent = agent.endpoint(endpoint).without_environment();
    }
    if let Some(token) = &token {
        agent = agent.header("authorization", &format!("Bearer {token}"));
    }
    let checkup = tokio::task::spawn_blocking(move || agent.doctor()).await.map_err(|error| error.to_string())?;
    print!("{checkup}");
    let mut wrong = checkup.checks.iter().filter(|check| check.problem.is_some()).count();
    if wrong > 0 {
        return Ok(wrong);
    }
    let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build().map_err(|error| error.to_string())?;
    let web = options.web.trim_end_matches('/');
    let id = &checkup.trace_id;
    let points = json!({"query": "SELECT count(*) FROM points WHERE service = 'firstfall-doctor' AND metric = 'firstfall.doctor'"});
    let find = async |what: &str, path: String, body: Option<&Json>, is_there: fn(&Json) -> bool| {
        let started = tokio::time::Instant::now();
        let problem = loop {
            let request = match body {
                Some(body) => http.post(format!("{web}{path}")).header("content-type", "application/json").body(body.to_string()),
                None => http.get(format!("{web}{path}")),
            };
            let request = match &token {
                Some(token) => request.bearer_auth(token),
                None => request,
            };
            let problem = match request.send().await {
                Err(error) if error.is_connect() => format!("nobody answers at {web}; name the address of the pages with --web"),
                Err(error) => error.to_string(),
                Ok(answer) if answer.status().as_u16() == 401 => "401: name the token with --token or FIRSTFALL_TOKEN".to_owned(),
                Ok(answer) => {
                    let body = answer.bytes().await.map_err(|error| error.to_string()).unwrap_or_default();
                    match serde_json::from_slice(&body) {
                        Ok(found) if is_there(&found) => break None,
                        _ => format!("it was acknowledged and is not at {web}{path}; is that the same collector?"),
                    }
                }
            };
            if started.elapsed() > PATIENCE {
                break Some(problem);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        match &problem {
            None => println!("ok      {what} can be read back"),
            Some(problem) => println!("wrong   {what} read back: {problem}"),
        }
        usize::from(problem.is_some())
    };
    wrong += find("the span", format!("/api/v1/traces/{id}"), None, |found| found["spans"].as_array().is_some_and(|s| s.len() == 1)).await;
    wrong += find("the log record", format!("/api/v1/logs?trace_id={id}"), None, |found| {
        found["logs"].as_array().is_some_and(|logs| logs.len() == 1)
    })
    .await;
    wrong +=
        find("the data point", "/api/v1/sql".to_owned(), Some(&points), |found| found["rows"][0][0].as_u64().is_some_and(|n| n > 0)).await;
    if wrong == 0 {
        println!("all is well: {web}/traces/{id}");
    }
    Ok(wrong)
}
