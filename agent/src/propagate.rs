//! Context between processes: W3C Trace Context (level 2, as OpenTelemetry asks) to the letter, W3C Baggage, and B3 coming in.
//!
//! `traceparent` that breaks a rule begins a new trace, and its `tracestate` is not looked at; a `tracestate` that breaks one is left out, and the
//! trace goes on. Several `tracestate` headers are one list, in their order.

use crate::settings::Propagator;
use opentelemetry::Context;
use opentelemetry::propagation::text_map_propagator::FieldIter;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::propagation::BaggagePropagator;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const BAGGAGE: &str = "baggage";
/// More members than this make the list invalid.
const MEMBERS_MAX: usize = 32;
const KEY_MAX: usize = 256;
/// Sampled, and: the trace id is random (level 2). Other flags are not known, and not passed on.
const FLAGS_KNOWN: u8 = 0x03;

/// What goes in and out with a request. `OTEL_PROPAGATORS` chooses.
#[derive(Debug)]
pub(crate) struct Propagation {
    trace_context: bool,
    b3: bool,
    baggage: Option<BaggagePropagator>,
    fields: Vec<String>,
}

impl Propagation {
    pub fn new(list: &[Propagator]) -> Propagation {
        let has = |wanted| list.contains(&wanted);
        let mut fields = Vec::new();
        if has(Propagator::TraceContext) {
            fields.extend([TRACEPARENT.to_owned(), TRACESTATE.to_owned()]);
        }
        if has(Propagator::Baggage) {
            fields.push(BAGGAGE.to_owned());
        }
        Propagation {
            trace_context: has(Propagator::TraceContext),
            b3: has(Propagator::B3),
            baggage: has(Propagator::Baggage).then(BaggagePropagator::new),
            fields,
        }
    }
}

impl TextMapPropagator for Propagation {
    fn inject_context(&self, context: &Context, injector: &mut dyn Injector) {
        if self.trace_context {
            let span = context.span();
            let span = span.span_context();
            if span.is_valid() {
                let flags = span.trace_flags().to_u8() & FLAGS_KNOWN;
                injector.set(TRACEPARENT, written(span.trace_id(), span.span_id(), flags));
                let mut state = span.trace_state().header();
                if let Some(came) = context.get::<Members>().filter(|came| came.trace == span.trace_id()) {
                    state = came.with(&state);
                }
                if !state.is_empty() {
                    injector.set(TRACESTATE, state);
                }
            }
        }
        if let Some(baggage) = &self.baggage {
            baggage.inject_context(context, injector);
        }
    }

    fn extract_with_context(&self, context: &Context, extractor: &dyn Extractor) -> Context {
        let trace_context = self.trace_context.then(|| parent(extractor)).flatten();
        let context = match trace_context {
            Some((remote, None)) => context.with_remote_span_context(remote),
            Some((remote, Some(members))) => context.with_remote_span_context(remote).with_value(members),
            None => match self.b3.then(|| b3(extractor)).flatten() {
                Some(remote) => context.with_remote_span_context(remote),
                None => context.clone(),
            },
        };
        match &self.baggage {
            Some(baggage) => baggage.extract_with_context(&context, extractor),
            None => context,
        }
    }

    fn fields(&self) -> FieldIter<'_> {
        FieldIter::new(&self.fields)
    }
}

/// A `tracestate` as it came, with members that are as the specification has them and that `TraceState` does not take: it knows an `@` in a key by the rules of
/// level 1 only. The others are in the span's state, where samplers find them.
#[derive(Debug)]
struct Members {
    trace: TraceId,
    text: String,
}

/// The members of a list that is known to be sound.
fn pairs(list: &str) -> impl Iterator<Item = (&str, &str)> {
    list.split(',').filter_map(|member| member.split_once('='))
}

fn is_taken(member: (&str, &str)) -> bool {
    TraceState::from_key_value([member]).is_ok()
}

impl Members {
    /// The whole list, with what has become of those that the span's state knows: what was changed stands first, as the specification asks, and what was left out is
    /// gone.
    fn with(&self, state: &str) -> String {
        let came = || pairs(&self.text);
        let changed = pairs(state).filter(|member| !came().any(|other| other == *member));
        let rest = came().filter(|member| !is_taken(*member) || pairs(state).any(|other| other == *member));
        joined(changed.chain(rest).take(MEMBERS_MAX))
    }
}

fn joined<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    members.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn parent(extractor: &dyn Extractor) -> Option<(SpanContext, Option<Members>)> {
    let found = extractor.get_all(TRACEPARENT)?;
    // Two of them: nobody can say which one is meant.
    let [value] = found[..] else { return None };
    let (trace, span, flags) = traceparent(value.trim_matches([' ', '\t']))?;
    let members = tracestate(&extractor.get_all(TRACESTATE).unwrap_or_default()).unwrap_or_default();
    let all = || members.iter().copied();
    let (state, beside) = match TraceState::from_key_value(all()) {
        Ok(state) => (state, None),
        Err(_) => {
            let taken = TraceState::from_key_value(all().filter(|member| is_taken(*member))).unwrap_or_default();
            (taken, Some(Members { trace, text: joined(all()) }))
        }
    };
    Some((SpanContext::new(trace, span, flags, true, state), beside))
}

/// As a header of version 00.
fn written(trace: TraceId, span: SpanId, flags: u8) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(55);
    let mut put = |bytes: &[u8]| {
        for byte in bytes {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        text.push('-');
    };
    put(&[0]);
    put(&trace.to_bytes());
    put(&span.to_bytes());
    put(&[flags]);
    text.pop();
    text
}

fn hex(text: &str) -> Option<u128> {
    let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    lower.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// `version "-" trace-id "-" parent-id "-" flags`, in lower-case hexadecimal digits; later versions may add to the end.
fn traceparent(value: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    if !value.is_ascii() || value.len() < 55 {
        return None;
    }
    let (known, rest) = value.split_at(55);
    let mut parts = known.split('-');
    let mut part = |length: usize| hex(parts.next().filter(|part| part.len() == length)?);
    let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let end_fits = rest.is_empty() || (version > 0 && rest.starts_with('-'));
    if version == 0xff || !end_fits || trace == 0 || span == 0 {
        return None;
    }
    Some((TraceId::from(trace), SpanId::from(span as u64), TraceFlags::new(flags as u8 & FLAGS_KNOWN)))
}

/// Members with commas between them, in their order. `None` when one of them is not as the specification has it.
fn tracestate<'a>(headers: &[&'a str]) -> Option<Vec<(&'a str, &'a str)>> {
    let mut members = Vec::new();
    for member in headers.iter().flat_map(|header| header.split(',')).map(|member| member.trim_matches([' ', '\t'])) {
        if member.is_empty() {
            continue;
        }
        let (key, value) = member.split_once('=')?;
        if !is_key(key) || !is_value(value) || members.len() == MEMBERS_MAX {
            return None;
        }
        members.push((key, value));
    }
    Some(members)
}

fn is_key(key: &str) -> bool {
    let first = key.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'*' | b'/' | b'@');
    first && key.bytes().all(rest) && key.len() <= KEY_MAX
}

fn is_value(value: &str) -> bool {
    let printable = value.bytes().all(|b| (0x20..=0x7e).contains(&b) && b != b',' && b != b'=');
    printable && !value.is_empty() && value.len() <= 256 && !value.ends_with(' ')
}

/// B3 in one header (`b3: trace-span-sampled-parent`) or in several (`x-b3-…`). Without a decision of the caller's there is nothing to follow but the ids, and
/// these count as sampled.
fn b3(extractor: &dyn Extractor) -> Option<SpanContext> {
    let one = extractor.get("b3").map(|value| value.split('-').map(str::to_owned).collect::<Vec<_>>());
    let (trace, span, sampled) = match one {
        Some(parts) => (parts.first()?.clone(), parts.get(1)?.clone(), parts.get(2).cloned().unwrap_or_default()),
        None => {
            // Most requests have none of them.
            extractor.get("x-b3-traceid")?;
            let get = |key| extractor.get(key).unwrap_or("").to_owned();
            let sampled = if get("x-b3-flags") == "1" { "d".to_owned() } else { get("x-b3-sampled") };
            (get("x-b3-traceid"), get("x-b3-spanid"), sampled)
        }
    };
    if !matches!(trace.len(), 16 | 32) || span.len() != 16 {
        return None;
    }
    let (trace, span) = (hex(&trace.to_ascii_lowercase())?, hex(&span.to_ascii_lowercase())?);
    let flags = if matches!(sampled.as_str(), "0" | "false") { TraceFlags::default() } else { TraceFlags::SAMPLED };
    let context = SpanContext::new(TraceId::from(trace), SpanId::from(span as u64), flags, true, TraceState::NONE);
    context.is_valid().then_some(context)
}

const KNOWN: usize = 5;
/// The names that every request has, or is asked for: they are not read anew each time.
static NAMES: [http::HeaderName; KNOWN] = [
    http::HeaderName::from_static(TRACEPARENT),
    http::HeaderName::from_static(TRACESTATE),
    http::HeaderName::from_static(BAGGAGE),
    http::HeaderName::from_static("b3"),
    http::HeaderName::from_static("x-b3-traceid"),
];

/// Reads headers, all values of a name. Those that every request is asked for are found in one pass.
pub(crate) struct Headers<'a> {
    all: &'a http::HeaderMap,
    /// How many values each of [`NAMES`] has, and the first one.
    known: [(u32, Option<&'a http::HeaderValue>); KNOWN],
}

impl<'a> Headers<'a> {
    pub fn of(all: &'a http::HeaderMap) -> Headers<'a> {
        let mut known = [(0, None); KNOWN];
        for (name, value) in all {
            let at = match name.as_str() {
                TRACEPARENT => 0,
                TRACESTATE => 1,
                BAGGAGE => 2,
                "b3" => 3,
                "x-b3-traceid" => 4,
                _ => continue,
            };
            let (count, first) = &mut known[at];
            *count += 1;
            first.get_or_insert(value);
        }
        Headers { all, known }
    }

    fn known(&self, key: &str) -> Option<(u32, Option<&'a http::HeaderValue>)> {
        NAMES.iter().position(|name| name.as_str() == key).map(|at| self.known[at])
    }
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match self.known(key) {
            Some((_, first)) => first?.to_str().ok(),
            None => self.all.get(key)?.to_str().ok(),
        }
    }

    fn keys(&self) -> Vec<&str> {
        self.all.keys().map(http::HeaderName::as_str).collect()
    }

    fn get_all(&self, key: &str) -> Option<Vec<&str>> {
        // One that is no text is a broken one: as text it is none that any rule takes.
        match self.known(key) {
            Some((0, _)) => None,
            Some((1, Some(value))) => Some(vec![value.to_str().unwrap_or("\u{0}")]),
            _ => {
                let all: Vec<&str> = self.all.get_all(key).iter().map(|value| value.to_str().unwrap_or("\u{0}")).collect();
                (!all.is_empty()).then_some(all)
            }
        }
    }
}

pub(crate) struct HeadersMut<'a>(pub &'a mut http::HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        let known = NAMES.iter().find(|name| name.as_str() == key).cloned();
        if let (Some(name), Ok(value)) = (known.or_else(|| key.parse().ok()), http::HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderName, HeaderValue};

    const PARENT: &str = "00-12345678901234567890123456789012-1234567890123456-01";

    fn extracted(headers: &[(&str, &str)]) -> Context {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_bytes(name.as_bytes()).expect("a name"), HeaderValue::from_str(value).expect("a value"));
        }
        let all = Propagation::new(&[Propagator::TraceContext, Propagator::Baggage, Propagator::B3]);
        all.extract_with_context(&Context::new(), &Headers::of(&map))
    }

    fn extract(headers: &[(&str, &str)]) -> Option<SpanContext> {
        let span = extracted(headers).span().span_context().clone();
        span.is_valid().then_some(span)
    }

    fn state(headers: &[&str]) -> String {
        let mut all = vec![("traceparent", PARENT)];
        all.extend(headers.iter().map(|value| ("tracestate", *value)));
        let mut out = HeaderMap::new();
        Propagation::new(&[Propagator::TraceContext]).inject_context(&extracted(&all), &mut HeadersMut(&mut out));
        assert_eq!(out["traceparent"], PARENT, "the trace goes on");
        out.get("tracestate").map(|state| state.to_str().expect("text").to_owned()).unwrap_or_default()
    }

    #[test]
    fn a_traceparent_that_breaks_a_rule_begins_a_new_trace() {
        assert!(extract(&[("traceparent", PARENT)]).is_some_and(|c| c.is_sampled() && c.is_remote()));
        for good in [
            format!(" {PARENT}\t"),
            PARENT.replacen("00", "cc", 1),
            format!("{}-what-the-future-brings", PARENT.replacen("00", "cc", 1)),
            PARENT.replacen("-01", "-ff", 1),
        ] {
            assert!(extract(&[("Traceparent", &good)]).is_some(), "{good}");
        }
        for bad in [
            PARENT.replacen("00", "ff", 1),
            PARENT.replacen("00", "0", 1),
            PARENT.replacen("00", "000", 1),
            PARENT.replacen("00", ".0", 1),
            PARENT.replacen("00", "0.", 1),
            format!("{PARENT}-00"),
            format!("{PARENT}."),
            format!("{}.what", PARENT.replacen("00", "cc", 1)),
            PARENT.replacen("12345678901234567890123456789012", "00000000000000000000000000000000", 1),
            PARENT.replacen("12345678901234567890123456789012", "1234567890123456789012345678901A", 1),
            PARENT.replacen("12345678901234567890123456789012", ".2345678901234567890123456789012", 1),
            PARENT.replacen("12345678901234567890123456789012", "1234567890123456789012345678901", 1),
            PARENT.replacen("12345678901234567890123456789012", "123456789012345678901234567890123", 1),
            PARENT.replacen("-1234567890123456-", "-0000000000000000-", 1),
            PARENT.replacen("-1234567890123456-", "-123456789012345-", 1),
            PARENT.replacen("-1234567890123456-", "-12345678901234567-", 1),
            PARENT.replacen("-1234567890123456-", "-123456789012345.-", 1),
            PARENT.replacen("-01", "-1", 1),
            PARENT.replacen("-01", "-001", 1),
            PARENT.replacen("-01", "-.0", 1),
            PARENT.replacen("-01", "-0.", 1),
            String::new(),
        ] {
            assert!(extract(&[("traceparent", &bad)]).is_none(), "{bad}");
        }
        assert!(extract(&[("traceparent", PARENT), ("traceparent", PARENT)]).is_none(), "two of them");
        let other = PARENT.replacen("1234567890123456-", "1234567890123457-", 1);
        assert!(extract(&[("traceparent", PARENT), ("traceparent", &other)]).is_none(), "two of them");
        for near in ["trace-parent", "trace.parent"] {
            assert!(extract(&[(near, PARENT)]).is_none(), "{near}");
        }
        assert!(extract(&[("tracestate", "foo=1")]).is_none());
    }

    #[test]
    fn a_tracestate_is_one_list_and_is_left_out_when_it_breaks_a_rule() {
        assert_eq!(state(&["foo=1,bar=2", "rojo=1,congo=2", "baz=3"]), "foo=1,bar=2,rojo=1,congo=2,baz=3");
        assert_eq!(state(&["", "foo=1 \t , \t bar=2, \t baz=3", ",,"]), "foo=1,bar=2,baz=3");
        assert_eq!(state(&["foo=1,foo=1", "foo=2"]), "foo=1,foo=1,foo=2", "whose key it is must say which one counts");
        let all = format!("{}=1", ('a'..='z').chain('0'..='9').chain("_-*/@".chars()).collect::<String>());
        let printable: String = (' '..='~').filter(|c| !matches!(c, ',' | '=')).collect();
        for good in ["0a=1", "foo@=1,bar=2", "foo@@bar=1,bar=2", "foo@bar@baz=1,bar=2", "foo@1=1", &all, &format!("foo={printable}")] {
            assert_eq!(state(&[good]), good);
        }
        let long = |key: usize, vendor: usize| format!("{}@{}=1", "t".repeat(key), "v".repeat(vendor));
        for good in [long(241, 14), long(242, 1), long(1, 15), format!("{}=1", "z".repeat(256))] {
            assert_eq!(state(&["foo=1", &good]), format!("foo=1,{good}"));
        }
        for bad in [
            "foo",
            "foo=",
            "foo =1",
            "FOO=1",
            "foo.bar=1",
            "@foo=1,bar=2",
            "_foo=1",
            "foo=bar=baz",
            &long(241, 15),
            &format!("{}=1", "z".repeat(257)),
            &format!("foo={}", "v".repeat(257)),
        ] {
            assert_eq!(state(&["bar=0", bad]), "", "{bad}");
        }
        let many = |n: usize| (0..n).map(|n| format!("k{n}={n}")).collect::<Vec<_>>().join(",");
        assert_eq!(state(&[&many(32)]), many(32));
        assert_eq!(state(&[&many(33)]), "");
        assert_eq!(state(&[&many(20), &many(13)]), "", "of all headers together");
    }

    #[test]
    fn what_opentelemetrys_type_does_not_take_goes_on_beside_what_was_changed() {
        let came = extracted(&[("traceparent", PARENT), ("tracestate", "a=1,t@@v=2,ot=th:8,b=3")]);
        let span = came.span().span_context().clone();
        assert_eq!(span.trace_state().get("ot"), Some("th:8"), "samplers see it");
        let sent = |state: TraceState| {
            let span = SpanContext::new(span.trace_id(), SpanId::from(9), span.trace_flags(), false, state);
            let mut out = HeaderMap::new();
            Propagation::new(&[Propagator::TraceContext]).inject_context(&came.with_remote_span_context(span), &mut HeadersMut(&mut out));
            out["tracestate"].to_str().expect("text").to_owned()
        };
        assert_eq!(sent(span.trace_state().clone()), "a=1,t@@v=2,ot=th:8,b=3");
        assert_eq!(sent(span.trace_state().insert("ot", "th:c").expect("valid")), "ot=th:c,a=1,t@@v=2,b=3");
        assert_eq!(sent(span.trace_state().delete("ot").expect("valid")), "a=1,t@@v=2,b=3");
        let full = format!("t@@v=1,{}", (1..32).map(|n| format!("k{n}={n}")).collect::<Vec<_>>().join(","));
        let came = extracted(&[("traceparent", PARENT), ("tracestate", &full)]);
        let members = came.get::<Members>().expect("some are not taken");
        let changed = members.with("ot=th:c,k1=1,k2=2");
        assert_eq!(changed, "ot=th:c,t@@v=1,k1=1,k2=2");
        let more = members.with(&format!("ot=th:c,{}", &full["t@@v=1,".len()..]));
        assert!(more.starts_with("ot=th:c,t@@v=1,k1=1") && more.split(',').count() == 32 && !more.contains("k31"));
    }

    #[test]
    fn known_flags_go_on() {
        for (came, goes) in [("00", "00"), ("01", "01"), ("02", "02"), ("03", "03"), ("ff", "03")] {
            let context = extracted(&[("traceparent", &PARENT.replacen("-01", &format!("-{came}"), 1))]);
            let mut out = HeaderMap::new();
            Propagation::new(&[Propagator::TraceContext]).inject_context(&context, &mut HeadersMut(&mut out));
            assert_eq!(out["traceparent"], PARENT.replacen("-01", &format!("-{goes}"), 1).as_str());
        }
    }

    #[test]
    fn b3_is_read_when_there_is_nothing_better() {
        let one = extract(&[("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90")]).expect("b3");
        assert!(one.is_sampled() && one.trace_id() == TraceId::from(0x80f198ee56343ba864fe8b2a57d3eff7));
        let short = extract(&[("X-B3-TraceId", "64fe8b2a57d3eff7"), ("X-B3-SpanId", "e457b5a2e4d86bd1"), ("X-B3-Sampled", "0")]);
        assert!(short.is_some_and(|c| !c.is_sampled() && c.trace_id() == TraceId::from(0x64fe8b2a57d3eff7)));
        assert!(extract(&[("b3", "0")]).is_none());
        let both = extract(&[("traceparent", PARENT), ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1")]).expect("a trace");
        assert_eq!(both.trace_id(), TraceId::from(0x12345678901234567890123456789012));
    }

    #[test]
    fn what_goes_out_reads_back() {
        let span = extract(&[("traceparent", PARENT), ("tracestate", "foo=1")]).expect("a trace");
        let context = Context::new().with_remote_span_context(span);
        let mut out = HeaderMap::new();
        Propagation::new(&[Propagator::TraceContext]).inject_context(&context, &mut HeadersMut(&mut out));
        assert_eq!((out["traceparent"].to_str().expect("text"), out["tracestate"].to_str().expect("text")), (PARENT, "foo=1"));
    }
}
