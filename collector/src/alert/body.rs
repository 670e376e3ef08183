//! The body of a notification: Alertmanager's webhook format, version 4, so that whatever understands Alertmanager understands us, and beside
//! it `cascade` with all that Alertmanager has no words for. Telemetry is hostile text: every string is cut, and the whole stays small.

use super::event::Event;
use firstfall_dashboard::times::rfc3339;
use firstfall_store::incident::Incident;
use serde_json::{Value as Json, json};

/// Chat systems and pagers refuse bodies beyond a few tens of kilobytes.
pub const BODY_BYTES_MAX: usize = 20_000;
/// Longest string of a body, but for the sentence.
const TEXT_MAX: usize = 200;
const SENTENCE_MAX: usize = 600;
const HOPS_MAX: usize = 20;
const REJECTED_MAX: usize = 5;
const ENTRY_POINTS_MAX: usize = 10;
const PATTERNS_MAX: usize = 5;
/// What Alertmanager writes where an alert has not ended.
const NOT_ENDED: &str = "0001-01-01T00:00:00Z";

fn cut_to(text: &str, max: usize) -> String {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    // Control characters have no business in a message for people; JSON would make six bytes of each.
    let mut out: String = text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if end < text.len() {
        out.push('…');
    }
    out
}

pub fn cut(text: &str) -> String {
    cut_to(text, TEXT_MAX)
}

/// As Prometheus reckons it: FNV-1a over the sorted labels, each part ended by 0xff.
fn fingerprint(labels: &[(String, String)]) -> String {
    let bytes = labels.iter().flat_map(|(name, value)| [name, value]).flat_map(|part| part.bytes().chain([0xff]));
    format!("{:016x}", bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// The body as text. What is signed is exactly this.
pub fn of(incident: &Incident, event: Event, labels: &[(String, String)], receiver: &str, external_url: &str) -> String {
    let sentence = cut_to(&incident.title, SENTENCE_MAX);
    let status = if event == Event::Resolved { "resolved" } else { "firing" };
    let page = format!("{external_url}/incidents/{}", incident.id);
    let labels_json: serde_json::Map<String, Json> = labels.iter().map(|(k, v)| (k.clone(), Json::from(v.as_str()))).collect();
    let mut annotations = serde_json::Map::from_iter([
        ("summary".to_owned(), Json::from(sentence.as_str())),
        ("confidence".to_owned(), Json::from(incident.diagnosis.confidence.as_str())),
    ]);
    if let Some(origin) = incident.diagnosis.origins.first() {
        annotations.insert("origin".to_owned(), cut(&origin.service).into());
        let reasons: Vec<String> = origin.reasons.iter().take(3).map(|r| cut(r)).collect();
        annotations.insert("description".to_owned(), reasons.join("\n").into());
    }
    let alert = json!({
        "status": status,
        "labels": labels_json,
        "annotations": annotations,
        "startsAt": rfc3339(incident.onset),
        "endsAt": incident.closed_at.map_or(NOT_ENDED.to_owned(), rfc3339),
        "generatorURL": page,
        "fingerprint": fingerprint(labels),
    });
    let mut body = json!({
        "version": "4",
        "groupKey": format!("{{}}:{{incident={:?}}}", incident.id),
        "truncatedAlerts": 0,
        "status": status,
        "receiver": receiver,
        "groupLabels": {"incident": incident.id},
        "commonLabels": labels_json,
        "commonAnnotations": annotations,
        "externalURL": external_url,
        "alerts": [alert],
        "cascade": cascade(incident, event, &sentence, &page, external_url),
    });
    // Each string is short, but there may be many; what is longest goes first, a piece at a time.
    let mut text = body.to_string();
    while text.len() > BODY_BYTES_MAX {
        let longest = ["hops", "rejected", "log_patterns", "traces"]
            .into_iter()
            .max_by_key(|list| body["cascade"][list].to_string().len())
            .expect("there are four");
        match body["cascade"][longest].as_array_mut() {
            Some(list) if !list.is_empty() => list.truncate(list.len() - 1),
            _ => break,
        }
        text = body.to_string();
    }
    text
}

fn cascade(incident: &Incident, event: Event, sentence: &str, page: &str, external_url: &str) -> Json {
    let diagnosis = &incident.diagnosis;
    let origin = diagnosis.origins.first().map(|origin| {
        let symptom = diagnosis.symptoms.iter().find(|s| s.node == origin.node);
        json!({
            "service": cut(&origin.service),
            "namespace": cut(&origin.namespace),
            "environment": cut(&origin.environment),
            "kind": origin.kind,
            "operation": origin.operation.as_deref().map(cut),
            "version": origin.version.as_deref().map(cut),
            "signal": symptom.map(|s| s.signal.as_str()),
            "onset": rfc3339(incident.onset),
            "now": symptom.map(|s| s.after),
            "baseline": symptom.map(|s| s.before),
            "unit": symptom.map(|s| s.unit.as_str()),
            "n": symptom.map(|s| s.n_after),
        })
    });
    let hops: Vec<Json> = diagnosis
        .hops
        .iter()
        .take(HOPS_MAX)
        .map(|hop| {
            // What is not known of an edge is null rather than a guess.
            json!({"from": cut(&hop.from), "to": cut(&hop.to), "lag_s": hop.lag_s, "errors": hop.errors, "attempts_per_call": hop.attempts_per_call, "breaker": null})
        })
        .collect();
    let patterns: Vec<String> = diagnosis
        .symptoms
        .iter()
        .filter_map(|s| s.what.split_once('“').and_then(|(_, rest)| rest.split_once('”')).map(|(pattern, _)| cut(pattern)))
        .take(PATTERNS_MAX)
        .collect();
    let rejected: Vec<Json> =
        diagnosis.rejected.iter().take(REJECTED_MAX).map(|r| json!({"service": cut(&r.service), "reason": cut(&r.reason)})).collect();
    let window = format!(
        "from={}&to={}",
        incident.onset.saturating_sub(60_000_000_000) / 1_000_000_000,
        incident.closed_at.map_or("now".to_owned(), |closed| (closed / 1_000_000_000 + 60).to_string())
    );
    json!({
        "id": incident.id,
        "revision": incident.revision,
        "event": event.word(),
        "sentence": sentence,
        "severity": incident.severity.word(),
        "confidence": diagnosis.confidence,
        "trigger": incident.trigger.as_deref().map(cut),
        "origin": origin,
        "hops": hops,
        "impact": {
            "entry_points": incident.impact.entry_points.iter().take(ENTRY_POINTS_MAX).map(|e| cut(e)).collect::<Vec<_>>(),
            "requests": incident.impact.requests,
            "failed": incident.impact.failed,
            "share": incident.impact.share,
        },
        "rejected": rejected,
        "traces": incident.traces,
        "log_patterns": patterns,
        "absorbed_by": incident.absorbed_by,
        "links": {
            "incident": page,
            "failed_traces": format!("{external_url}/traces?status=error&{window}"),
            "logs": format!("{external_url}/logs?min_severity=error&{window}"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use firstfall_store::incident::{Diagnosis, Hop, Impact, Origin, Rejected, Severity, Symptom};
    use proptest::prelude::*;

    fn labels() -> Vec<(String, String)> {
        vec![("alertname".into(), "FailureCascade".into()), ("incident".into(), "abc".into()), ("severity".into(), "warning".into())]
    }

    #[test]
    fn a_fingerprint_is_the_one_that_prometheus_would_give() {
        // The empty set of labels is FNV-1a's offset basis.
        assert_eq!(fingerprint(&[]), "cbf29ce484222325");
        // hash64a("a\xffb\xff"), reckoned by hand with the published constants.
        let by_hand =
            [b'a', 0xff, b'b', 0xff].iter().fold(14_695_981_039_346_656_037u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(1_099_511_628_211));
        assert_eq!(fingerprint(&[("a".into(), "b".into())]), format!("{by_hand:016x}"));
    }

    #[test]
    fn firing_and_resolved_are_the_same_alert_to_alertmanager() {
        let mut incident =
            Incident { id: "abc".into(), onset: 1_700_000_000_000_000_000, severity: Severity::Critical, ..Incident::default() };
        let firing: Json = serde_json::from_str(&of(&incident, Event::Opened, &labels(), "oncall", "http://ff")).expect("JSON");
        incident.closed_at = Some(1_700_000_100_000_000_000);
        let resolved: Json = serde_json::from_str(&of(&incident, Event::Resolved, &labels(), "oncall", "http://ff")).expect("JSON");
        assert_eq!(firing["groupKey"], resolved["groupKey"]);
        assert_eq!(firing["alerts"][0]["fingerprint"], resolved["alerts"][0]["fingerprint"]);
        assert_eq!(firing["alerts"][0]["labels"], resolved["alerts"][0]["labels"]);
        assert_eq!((&firing["status"], &resolved["status"]), (&"firing".into(), &"resolved".into()));
        assert_eq!(firing["alerts"][0]["endsAt"], NOT_ENDED);
        assert_eq!(resolved["alerts"][0]["endsAt"], "2023-11-14T22:15:00.000000000Z");
        assert_eq!(firing["version"], "4");
        assert_eq!(firing["cascade"]["severity"], "critical", "the present severity is no label");
    }

    proptest! {
        #[test]
        fn whatever_services_call_themselves_a_body_stays_small_and_is_json(text in any::<String>(), times in 0usize..3000, hops in 0usize..100) {
            let long = text.repeat(times.min(100_000 / (text.len() + 1)));
            let incident = Incident {
                id: "abc".into(),
                title: long.clone(),
                diagnosis: Diagnosis {
                    origins: vec![Origin { service: long.clone(), reasons: vec![long.clone(); 5], ..Origin::default() }],
                    hops: vec![Hop { from: long.clone(), to: long.clone(), ..Hop::default() }; hops],
                    symptoms: vec![Symptom { what: format!("“{long}” in x"), ..Symptom::default() }; 40],
                    rejected: vec![Rejected { service: long.clone(), reason: long.clone() }; 10],
                    confidence: "low".into(),
                },
                impact: Impact { entry_points: vec![long.clone(); 20], ..Impact::default() },
                trigger: Some(long),
                ..Incident::default()
            };
            let body = of(&incident, Event::Opened, &labels(), "oncall", "http://ff");
            prop_assert!(body.len() <= BODY_BYTES_MAX, "{} bytes", body.len());
            prop_assert!(serde_json::from_str::<Json>(&body).is_ok());
        }
    }
}
