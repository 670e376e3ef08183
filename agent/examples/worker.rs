//! A worker that takes jobs from a channel, each in the trace of whoever sent it: `cargo run -p firstfall-agent --example worker`, then look at the
//! service `worker`.

use firstfall_agent::resilience::{Retry, Timeout};
use firstfall_agent::{Agent, Carried, spawn};
use std::time::Duration;
use tower::{Service, ServiceBuilder, ServiceExt};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let _telemetry = Agent::new("worker").init();
    let (send, mut jobs) = tokio::sync::mpsc::channel::<Carried<u32>>(16);
    let bill = tower::service_fn(|job: u32| async move {
        tokio::time::sleep(Duration::from_millis(u64::from(job))).await;
        if job.is_multiple_of(3) { Err("the bank does not answer") } else { Ok(job) }
    });
    let mut bill = ServiceBuilder::new().layer(Retry::new("bill")).layer(Timeout::new("bill", Duration::from_millis(50))).service(bill);
    let worker = spawn(async move {
        while let Some(job) = jobs.recv().await {
            let outcome = job.work_async(async |number| bill.ready().await?.call(number).await).await;
            println!("{outcome:?}");
        }
    });
    for number in 1..=5 {
        let span = tracing::info_span!("order", number);
        let job = span.in_scope(|| Carried::new(number));
        send.send(job).await?;
    }
    drop(send);
    worker.await?;
    Ok(())
}
