//! Panics as records: what was said, where, and the stack, in the span in which it happened.

use std::backtrace::Backtrace;
use std::panic::PanicHookInfo;
use std::sync::Once;

pub(crate) const TARGET: &str = "panic";

/// Stacks beyond this are cut: their ends are the runtime's.
const STACK_MAX: usize = 16 << 10;

/// From now on each panic is an ERROR record; then the hook that was there goes on.
pub(crate) fn report() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            record(panic);
            before(panic);
        }));
    });
}

fn record(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let said = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic");
    let place = panic.location().map(|place| format!("{}:{}:{}", place.file(), place.line(), place.column())).unwrap_or_default();
    let stack = Backtrace::force_capture().to_string();
    let stack = &stack[..stack.floor_char_boundary(STACK_MAX)];
    let thread = std::thread::current();
    tracing::error!(
        target: TARGET,
        {
            "exception.type" = "panic",
            "exception.message" = said,
            "exception.stacktrace" = stack,
            "code.location" = place,
            "thread.name" = thread.name().unwrap_or(""),
        },
        "panicked at {place}: {said}",
    );
}
