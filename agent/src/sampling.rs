//! Head sampling that keeps counts true. A trace is taken when the randomness of its id lies at or above a threshold, and the threshold travels
//! with it (`tracestate: ot=th:…`, OpenTelemetry's probability sampling), so that whoever counts its spans knows how many each stands for.
//!
//! Requests, errors and durations are counted before sampling, by metrics. Spans that fail or take long are kept although their trace is not taken: they are
//! recorded, decided on when they end, and go out with a threshold of zero, as each stands for itself.

use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};
use std::time::Duration;

/// Thresholds and randomness are 56 bits wide.
const WHOLE: u64 = 1 << 56;

/// Which traces are taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    ratio: f64,
    /// A trace is taken when its randomness is at or above it.
    threshold: u64,
    follows_parent: bool,
    keep_failures: bool,
    keep_slower_than: Option<Duration>,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling::ratio(1.0)
    }
}

impl Sampling {
    /// Of all traces that begin here this part, from 0 to 1 (what lies outside is the nearer of these); a request that comes with a decision keeps it.
    pub fn ratio(ratio: f64) -> Sampling {
        let ratio = ratio.clamp(0.0, 1.0);
        let threshold = ((1.0 - ratio) * WHOLE as f64).round() as u64;
        Sampling { ratio, threshold, follows_parent: true, keep_failures: true, keep_slower_than: None }
    }

    /// Decides by itself also where the caller has decided.
    pub fn alone(mut self) -> Sampling {
        self.follows_parent = false;
        self
    }

    /// Whether spans that fail are kept although their trace is not taken; on unless told otherwise.
    pub fn keep_failures(mut self, keep: bool) -> Sampling {
        self.keep_failures = keep;
        self
    }

    /// Keeps spans that take longer, although their trace is not taken.
    pub fn keep_slower_than(mut self, limit: Duration) -> Sampling {
        self.keep_slower_than = Some(limit);
        self
    }

    pub(crate) fn follows_parent(&self) -> bool {
        self.follows_parent
    }

    pub(crate) fn records_the_rest(&self) -> bool {
        self.keep_failures || self.keep_slower_than.is_some()
    }

    /// Whether a span that was not taken is kept for what became of it.
    pub(crate) fn keeps(&self, failed: bool, took: Duration) -> bool {
        failed && self.keep_failures || self.keep_slower_than.is_some_and(|limit| took > limit)
    }
}

/// The last 56 bits of a trace id are random (W3C Trace Context, level 2), unless its state brings randomness of its own.
fn randomness(trace: TraceId, state: Option<&TraceState>) -> u64 {
    let own = state.and_then(|state| field(state.get("ot")?, "rv")).and_then(|rv| u64::from_str_radix(rv, 16).ok());
    own.unwrap_or_else(|| {
        let id = trace.to_bytes();
        u64::from_be_bytes([0, id[9], id[10], id[11], id[12], id[13], id[14], id[15]])
    })
}

/// A field of the `ot` entry, such as `th:8`.
fn field<'a>(entry: &'a str, name: &str) -> Option<&'a str> {
    entry.split(';').find_map(|pair| pair.split_once(':').filter(|(key, _)| *key == name).map(|(_, value)| value))
}

/// The threshold as it is written: hexadecimal, without zeros at the end.
fn written(threshold: u64) -> String {
    let digits = format!("{threshold:014x}");
    let short = digits.trim_end_matches('0');
    if short.is_empty() { "0".to_owned() } else { short.to_owned() }
}

/// A state with another threshold, or none; what else is in it stays.
pub(crate) fn with_threshold(state: &TraceState, threshold: Option<u64>) -> TraceState {
    let entry = state.get("ot").unwrap_or("");
    let mut fields: Vec<String> = entry.split(';').filter(|pair| !pair.is_empty() && !pair.starts_with("th:")).map(str::to_owned).collect();
    if let Some(threshold) = threshold {
        fields.insert(0, format!("th:{}", written(threshold)));
    }
    match fields.is_empty() {
        true if entry.is_empty() => Ok(state.clone()),
        true => state.delete("ot"),
        false => state.insert("ot", fields.join(";")),
    }
    .unwrap_or_else(|_| state.clone())
}

impl Sampling {
    /// Whether a trace that begins here is taken, and the state that says by which part.
    pub(crate) fn takes(&self, trace: TraceId, state: &TraceState) -> (bool, TraceState) {
        let known = state.get("ot");
        if self.ratio >= 1.0 && known.is_none() {
            return (true, state.clone());
        }
        let taken = self.ratio > 0.0 && randomness(trace, Some(state)) >= self.threshold;
        // Everything is taken unless told otherwise, and then there is nothing to tell.
        let threshold = (taken && self.ratio < 1.0).then_some(self.threshold);
        (taken, if threshold.is_none() && known.is_none() { state.clone() } else { with_threshold(state, threshold) })
    }

    /// The same part of other traces: a sampler that the environment names keeps what code says about failures.
    pub(crate) fn as_named(&self, ratio: f64, follows_parent: bool, keeps: bool) -> Sampling {
        let keep_slower_than = self.keep_slower_than.filter(|_| keeps);
        Sampling { follows_parent, keep_failures: self.keep_failures && keeps, keep_slower_than, ..Sampling::ratio(ratio) }
    }
}

/// For OpenTelemetry's SDK.
#[derive(Clone, Debug)]
pub(crate) struct Sampler(pub Sampling);

impl ShouldSample for Sampler {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        _name: &str,
        _kind: &SpanKind,
        _attributes: &[KeyValue],
        _links: &[Link],
    ) -> SamplingResult {
        let parent = parent.filter(|context| context.has_active_span()).map(|context| context.span().span_context().clone());
        let parent = parent.filter(|parent| parent.is_valid());
        let state = parent.as_ref().map(|parent| parent.trace_state().clone()).unwrap_or_default();
        let (taken, state) = match &parent {
            Some(parent) if self.0.follows_parent => (parent.is_sampled(), state),
            _ => self.0.takes(trace, &state),
        };
        let decision = match taken {
            true => SamplingDecision::RecordAndSample,
            false if self.0.records_the_rest() => SamplingDecision::RecordOnly,
            false => SamplingDecision::Drop,
        };
        SamplingResult { decision, attributes: Vec::new(), trace_state: state }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::{SpanContext, SpanId, TraceFlags};

    fn decide(sampling: &Sampling, parent: Option<&Context>, trace: u128) -> SamplingResult {
        Sampler(sampling.clone()).should_sample(parent, TraceId::from(trace), "", &SpanKind::Internal, &[], &[])
    }

    #[test]
    fn a_part_is_taken_and_says_how_large_the_part_is() {
        let sampling = Sampling::ratio(0.25);
        let mut taken = 0;
        for n in 0..4000u64 {
            let trace = u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1 << 100;
            let result = decide(&sampling, None, trace);
            if result.decision == SamplingDecision::RecordAndSample {
                taken += 1;
                assert_eq!(result.trace_state.get("ot"), Some("th:c"));
            }
        }
        assert!((900..1100).contains(&taken), "{taken} of 4000");
        assert_eq!(decide(&Sampling::ratio(1.0), None, 1).trace_state.get("ot"), None);
        assert_eq!(decide(&Sampling::ratio(0.0).keep_failures(false), None, 1).decision, SamplingDecision::Drop);
    }

    #[test]
    fn a_parents_decision_and_state_are_kept() {
        for (flags, expected) in
            [(TraceFlags::SAMPLED, SamplingDecision::RecordAndSample), (TraceFlags::default(), SamplingDecision::RecordOnly)]
        {
            let state = TraceState::from_key_value([("ot", "th:8;rv:ffffffffffffff"), ("x", "y")]).expect("valid");
            let parent = Context::new().with_remote_span_context(SpanContext::new(TraceId::from(5), SpanId::from(6), flags, true, state));
            let result = decide(&Sampling::ratio(0.5), Some(&parent), 5);
            assert_eq!(result.decision, expected);
            assert_eq!(result.trace_state.header(), "ot=th:8;rv:ffffffffffffff,x=y");
            // Alone it decides by the randomness that came with it, and says by which part.
            let alone = decide(&Sampling::ratio(0.5).alone(), Some(&parent), 5);
            assert_eq!(alone.decision, SamplingDecision::RecordAndSample);
            assert_eq!(alone.trace_state.header(), "ot=th:8;rv:ffffffffffffff,x=y");
        }
    }

    #[test]
    fn what_fails_or_is_slow_is_kept() {
        let sampling = Sampling::ratio(0.1).keep_slower_than(Duration::from_secs(1));
        assert!(sampling.keeps(true, Duration::ZERO) && sampling.keeps(false, Duration::from_secs(2)));
        assert!(!sampling.keeps(false, Duration::from_millis(10)));
        let state = TraceState::from_key_value([("ot", "th:c"), ("x", "y")]).expect("valid");
        assert_eq!(with_threshold(&state, Some(0)).header(), "ot=th:0,x=y");
        assert_eq!(with_threshold(&state, None).header(), "x=y");
    }
}
