//! How long a service waits for its agent: `PROBE_COUNT` spans named `probe-0`, `probe-1`, … at `PROBE_RATE` a second, sent to
//! `OTEL_EXPORTER_OTLP_ENDPOINT`; then one line of JSON: the 99th percentile and the longest of the times that the calling thread spent on one, in
//! microseconds, how many were emitted, and how many of these did not reach the collector.

use firstfall_agent::{Agent, Signal};
use std::time::{Duration, Instant};

fn number(name: &str, default: f64) -> Result<f64, String> {
    match std::env::var(name) {
        Err(_) => Ok(default),
        Ok(text) => text.parse().ok().filter(|n| *n > 0.0).ok_or_else(|| format!("{name}: {text:?} is not a number above 0")),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (count, rate) = (number("PROBE_COUNT", 1000.0)? as u64, number("PROBE_RATE", 1000.0)?);
    let telemetry = Agent::new("agent-probe").version(env!("CARGO_PKG_VERSION")).without_runtime_metrics().init();
    let started = Instant::now();
    let mut times = Vec::with_capacity(count as usize);
    for n in 0..count {
        let due = started + Duration::from_secs_f64(n as f64 / rate);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let name = format!("probe-{n}");
        let before = Instant::now();
        drop(tracing::info_span!("probe", "otel.name" = name, probe.number = n as i64).entered());
        times.push(before.elapsed());
    }
    times.sort_unstable();
    let micros = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e6);
    let p99 = micros(times.get((times.len() * 99 / 100).min(times.len().saturating_sub(1))));
    let ended = telemetry.shutdown(Duration::from_secs(5)).account(Signal::Spans);
    let dropped = count.saturating_sub(ended.exported + ended.kept);
    println!("{{\"p99_emit_us\":{p99:.2},\"max_emit_us\":{:.2},\"emitted\":{count},\"dropped\":{dropped}}}", micros(times.last()));
    Ok(())
}
