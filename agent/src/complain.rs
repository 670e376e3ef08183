//! Where the agent says what went wrong with telemetry itself.

/// Tells on stderr what went wrong with telemetry itself, five times in ten seconds at most: there is nowhere else to tell it.
pub(crate) fn complain(what: &str) {
    use std::io::Write;
    use std::sync::Mutex;
    use std::time::{Duration, Instant};
    static LAST: Mutex<Option<(Instant, u64)>> = Mutex::new(None);
    if std::env::var_os("OTEL_LOG_LEVEL").is_some_and(|level| level == "none") {
        return;
    }
    let Ok(mut last) = LAST.lock() else { return };
    match &mut *last {
        // At the start there may be several things to say at once.
        Some((since, said)) if since.elapsed() < Duration::from_secs(10) && *said >= 5 => return,
        Some((since, said)) if since.elapsed() < Duration::from_secs(10) => *said += 1,
        _ => *last = Some((Instant::now(), 1)),
    }
    // Not `eprintln!`, which panics when nobody reads.
    let _ = writeln!(std::io::stderr(), "firstfall-agent: {what}");
}
