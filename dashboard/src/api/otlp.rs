//! Spans as OTLP/JSON `TracesData`: everything that the client sent, with its types, in its order.

use firstfall_store::batch::Field;
use firstfall_store::query::Item;
use firstfall_store::value::{Pairs, Value};
use firstfall_store::{SpanId, TraceId};
use serde_json::{Map, Value as Json, json};

pub fn traces(spans: &[Item]) -> Json {
    // Spans of one resource and scope side by side, as they came.
    let mut groups: Vec<Json> = Vec::new();
    let mut at = 0;
    let mut order: Vec<&Item> = spans.iter().collect();
    order.sort_by_key(|s| (format!("{:?}", s.resource), format!("{:?}", s.scope), s.time));
    while at < order.len() {
        let first = order[at];
        let end = at + order[at..].iter().take_while(|s| s.resource == first.resource && s.scope == first.scope).count();
        let mut resource = json!({"attributes": pairs(&first.resource.attributes)});
        count(&mut resource, "droppedAttributesCount", first.resource.dropped_attributes.into());
        let mut scope = json!({"name": first.scope.name, "version": first.scope.version, "attributes": pairs(&first.scope.attributes)});
        count(&mut scope, "droppedAttributesCount", first.scope.dropped_attributes.into());
        groups.push(json!({
            "resource": resource,
            "schemaUrl": first.resource.schema_url,
            "scopeSpans": [{"scope": scope, "schemaUrl": first.scope.schema_url, "spans": order[at..end].iter().map(|s| span(s)).collect::<Vec<_>>()}],
        }));
        at = end;
    }
    json!({"resourceSpans": groups})
}

fn count(object: &mut Json, name: &str, count: i64) {
    if count != 0 {
        object[name] = json!(count);
    }
}

fn span(span: &Item) -> Json {
    let mut out = json!({
        "traceId": span.trace_id.unwrap_or_default().to_string(),
        "spanId": span.span_id.to_string(),
        "name": span.name,
        "kind": span.kind,
        "startTimeUnixNano": span.time.to_string(),
        "endTimeUnixNano": span.end().to_string(),
        "attributes": pairs(&span.attributes),
    });
    if span.parent_span_id != SpanId(0) {
        out["parentSpanId"] = json!(span.parent_span_id.to_string());
    }
    for (field, name) in [(Field::TraceState, "traceState")] {
        if !span.text(field).is_empty() {
            out[name] = json!(span.text(field));
        }
    }
    for (field, name) in [
        (Field::Flags, "flags"),
        (Field::DroppedAttributes, "droppedAttributesCount"),
        (Field::DroppedEvents, "droppedEventsCount"),
        (Field::DroppedLinks, "droppedLinksCount"),
    ] {
        count(&mut out, name, span.int(field));
    }
    let mut status = Map::new();
    if span.status() != 0 {
        status.insert("code".into(), json!(span.status()));
    }
    if !span.text(Field::StatusMessage).is_empty() {
        status.insert("message".into(), json!(span.text(Field::StatusMessage)));
    }
    if !status.is_empty() {
        out["status"] = Json::Object(status);
    }
    let events: Vec<Json> = span
        .events()
        .iter()
        .map(|e| {
            let mut event = json!({"timeUnixNano": e.time.to_string(), "name": e.name, "attributes": pairs(&e.attributes)});
            count(&mut event, "droppedAttributesCount", e.dropped_attributes.into());
            event
        })
        .collect();
    if !events.is_empty() {
        out["events"] = Json::Array(events);
    }
    let links: Vec<Json> = span
        .links()
        .iter()
        .map(|l| {
            let mut link = json!({"attributes": pairs(&l.attributes)});
            if l.trace_id != TraceId::default() {
                link["traceId"] = json!(l.trace_id.to_string());
            }
            if l.span_id != SpanId(0) {
                link["spanId"] = json!(l.span_id.to_string());
            }
            if !l.trace_state.is_empty() {
                link["traceState"] = json!(l.trace_state);
            }
            count(&mut link, "flags", l.flags.into());
            count(&mut link, "droppedAttributesCount", l.dropped_attributes.into());
            link
        })
        .collect();
    if !links.is_empty() {
        out["links"] = Json::Array(links);
    }
    out
}

fn pairs(pairs: &Pairs) -> Json {
    Json::Array(pairs.iter().map(|(key, value)| json!({"key": key, "value": any(value)})).collect())
}

fn any(value: &Value) -> Json {
    use base64::Engine;
    match value {
        Value::Empty => json!({}),
        Value::Str(text) => json!({"stringValue": text}),
        Value::Bool(value) => json!({"boolValue": value}),
        Value::Int(value) => json!({"intValue": value.to_string()}),
        Value::Double(value) if value.is_nan() => json!({"doubleValue": "NaN"}),
        Value::Double(value) if value.is_infinite() => json!({"doubleValue": if *value > 0.0 { "Infinity" } else { "-Infinity" }}),
        Value::Double(value) => json!({"doubleValue": value}),
        Value::Bytes(bytes) => json!({"bytesValue": base64::engine::general_purpose::STANDARD.encode(bytes)}),
        Value::Array(values) => json!({"arrayValue": {"values": values.iter().map(any).collect::<Vec<_>>()}}),
        Value::Map(map) => json!({"kvlistValue": {"values": pairs(map)}}),
    }
}
