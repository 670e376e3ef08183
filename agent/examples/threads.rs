//! A program without any runtime: plain threads, spans, logs, a counter. `cargo run -p firstfall-agent --example threads`, then
//! look at the service `threads`.

use firstfall_agent::{Agent, spawn_thread};
use opentelemetry::{KeyValue, global};

fn main() {
    let _telemetry = Agent::new("threads").init();
    let counted = global::meter("threads").u64_counter("numbers").with_unit("{number}").build();
    let _whole = tracing::info_span!("whole").entered();
    let parts: Vec<_> = (0..4u64)
        .map(|part| {
            let counted = counted.clone();
            spawn_thread(move || {
                let _part = tracing::info_span!("part", part).entered();
                let sum: u64 = (0..1_000_000).filter(|n| n % 4 == part).sum();
                counted.add(250_000, &[KeyValue::new("part", part as i64)]);
                tracing::warn!(sum, "part {part} is done");
                sum
            })
        })
        .collect();
    let sum: u64 = parts.into_iter().filter_map(|part| part.join().ok()).sum();
    println!("{sum}");
}
