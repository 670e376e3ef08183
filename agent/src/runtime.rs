//! Metrics that every service should have and nobody should write: the process, the tokio runtime, and the agent itself.

use crate::export::{Exporter, Loss, Signal};
use opentelemetry::metrics::Meter;
use opentelemetry::{KeyValue, global};
use std::sync::Mutex;
use std::time::Instant;

fn meter() -> Meter {
    global::meter("firstfall-agent")
}

/// Seconds of processor time as user and in the kernel, threads.
fn stat() -> Option<(f64, f64, u64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // After the name, which may hold anything, in parentheses; Linux counts these times in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((number(11)? as f64 / 100.0, number(12)? as f64 / 100.0, number(17)?))
}

/// Virtual and resident memory, bytes.
fn memory() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
    Some((kib("VmSize:")? * 1024, kib("VmRSS:")? * 1024))
}

/// `process.*`, by OpenTelemetry's conventions; where the system does not tell them (only Linux does), they are absent.
pub(crate) fn process_metrics() {
    if stat().is_none() {
        return;
    }
    let meter = meter();
    meter
        .f64_observable_counter("process.cpu.time")
        .with_unit("s")
        .with_callback(|out| {
            if let Some((user, system, _)) = stat() {
                out.observe(user, &[KeyValue::new("cpu.mode", "user")]);
                out.observe(system, &[KeyValue::new("cpu.mode", "system")]);
            }
        })
        .build();
    let last = Mutex::new((Instant::now(), stat().map_or(0.0, |(user, system, _)| user + system)));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
    meter
        .f64_observable_gauge("process.cpu.utilization")
        .with_unit("1")
        .with_callback(move |out| {
            let (Some((user, system, _)), Ok(mut last)) = (stat(), last.lock()) else { return };
            let (passed, used) = (last.0.elapsed().as_secs_f64(), user + system - last.1);
            if passed > 0.0 {
                *last = (Instant::now(), user + system);
                out.observe((used / passed / cores).max(0.0), &[]);
            }
        })
        .build();
    let observe = |name: &'static str, unit: &'static str, read: fn() -> Option<i64>| {
        meter
            .i64_observable_up_down_counter(name)
            .with_unit(unit)
            .with_callback(move |out| {
                if let Some(value) = read() {
                    out.observe(value, &[]);
                }
            })
            .build();
    };
    observe("process.memory.usage", "By", || Some(memory()?.1 as i64));
    observe("process.memory.virtual", "By", || Some(memory()?.0 as i64));
    observe("process.thread.count", "{thread}", || Some(stat()?.2 as i64));
    observe("process.unix.file_descriptor.count", "{file_descriptor}", || Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as i64));
    let started = Instant::now();
    meter
        .f64_observable_gauge("process.uptime")
        .with_unit("s")
        .with_callback(move |out| out.observe(started.elapsed().as_secs_f64(), &[]))
        .build();
}

/// Of the runtime in which the agent is set up, if it is.
pub(crate) fn tokio_metrics() {
    if let Ok(handle) = tokio::runtime::Handle::try_current() {
        watch_runtime(&handle);
    }
}

/// Exports metrics of a tokio runtime: workers, tasks alive, the queue of tasks that wait for a worker, and how busy workers are. Done already for the
/// runtime in which the agent is set up.
pub fn watch_runtime(handle: &tokio::runtime::Handle) {
    let meter = meter();
    let metrics = handle.metrics();
    let observe = |name: &'static str, unit: &'static str, read: fn(&tokio::runtime::RuntimeMetrics) -> usize| {
        let metrics = metrics.clone();
        meter.u64_observable_gauge(name).with_unit(unit).with_callback(move |out| out.observe(read(&metrics) as u64, &[])).build();
    };
    observe("tokio.runtime.workers", "{worker}", |m| m.num_workers());
    observe("tokio.runtime.alive_tasks", "{task}", |m| m.num_alive_tasks());
    observe("tokio.runtime.global_queue_depth", "{task}", |m| m.global_queue_depth());
    let busy = metrics.clone();
    meter
        .f64_observable_counter("tokio.runtime.worker.busy_time")
        .with_unit("s")
        .with_callback(move |out| {
            for worker in 0..busy.num_workers() {
                out.observe(busy.worker_total_busy_duration(worker).as_secs_f64(), &[KeyValue::new("tokio.worker", worker as i64)]);
            }
        })
        .build();
    let parked = metrics;
    meter
        .u64_observable_counter("tokio.runtime.worker.parks")
        .with_unit("{park}")
        .with_callback(move |out| out.observe((0..parked.num_workers()).map(|worker| parked.worker_park_count(worker)).sum(), &[]))
        .build();
}

/// The agent's account: what was exported, and what was dropped for which reason.
pub(crate) fn export_metrics(exporter: &Exporter) {
    let meter = meter();
    for signal in Signal::ALL {
        let unit = match signal {
            Signal::Spans => "{span}",
            Signal::Logs => "{log_record}",
            Signal::Metrics => "{data_point}",
        };
        let of = exporter.clone();
        meter
            .u64_observable_counter(format!("otel.sdk.exporter.{}.exported", signal.name()))
            .with_unit(unit)
            .with_callback(move |out| {
                let account = of.account(signal);
                out.observe(account.exported, &[]);
                for loss in Loss::ALL {
                    let items = account.dropped(*loss);
                    if items > 0 && *loss != Loss::QueueFull {
                        out.observe(items, &[KeyValue::new("error.type", loss.name())]);
                    }
                }
            })
            .build();
        let of = exporter.clone();
        meter
            .u64_observable_counter(format!("otel.sdk.processor.{}.processed", signal.name()))
            .with_unit(unit)
            .with_callback(move |out| {
                let account = of.account(signal);
                let full = account.dropped(Loss::QueueFull);
                out.observe(account.accepted - full, &[]);
                if full > 0 {
                    out.observe(full, &[KeyValue::new("error.type", Loss::QueueFull.name())]);
                }
            })
            .build();
    }
    let of = exporter.clone();
    meter
        .u64_observable_gauge("firstfall.agent.queue.usage")
        .with_unit("By")
        .with_callback(move |out| out.observe(of.waiting().0 as u64, &[]))
        .build();
    let of = exporter.clone();
    meter
        .u64_observable_gauge("firstfall.agent.queue.limit")
        .with_unit("By")
        .with_callback(move |out| out.observe(of.waiting().1 as u64, &[]))
        .build();
    let of = exporter.clone();
    meter
        .f64_observable_counter("firstfall.agent.cpu.time")
        .with_unit("s")
        .with_callback(move |out| out.observe(of.cpu().as_secs_f64(), &[]))
        .build();
}
