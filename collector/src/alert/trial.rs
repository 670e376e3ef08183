//! `firstfall webhook test`: an incident that never was, opened and resolved, sent as a real one would be, so that nothing stays open at a pager.

use super::receiver::Receiver;
use super::{Outbox, deliver};
use crate::ingest::now;
use firstfall_store::incident::{Diagnosis, Hop, Impact, Incident, Origin, Symptom};

const SECOND: u64 = 1_000_000_000;

fn incident(id: String, now: u64) -> Incident {
    let onset = now - 60 * SECOND;
    Incident {
        id,
        opened_at: now,
        onset,
        revision: 1,
        title: "This is a test: payments fails 38 % of its requests by itself (0 % before); nothing is wrong".to_owned(),
        diagnosis: Diagnosis {
            origins: vec![Origin {
                rank: 1,
                node: "service:payments".to_owned(),
                service: "payments".to_owned(),
                kind: "service".to_owned(),
                score: 3.8,
                reasons: vec!["this is a test".to_owned()],
                ..Origin::default()
            }],
            hops: vec![Hop {
                from: "payments".to_owned(),
                to: "orders".to_owned(),
                onset: onset + 10 * SECOND,
                lag_s: 10.0,
                what: "38 % of its calls fail (0 % before)".to_owned(),
                errors: 0.38,
                attempts_per_call: Some(1.0),
            }],
            symptoms: vec![Symptom {
                node: "service:payments".to_owned(),
                service: "payments".to_owned(),
                signal: "errors".to_owned(),
                what: "this is a test".to_owned(),
                after: 0.38,
                unit: "of requests".to_owned(),
                n_before: 1000,
                n_after: 100,
                ..Symptom::default()
            }],
            rejected: Vec::new(),
            confidence: "high".to_owned(),
        },
        impact: Impact { entry_points: vec!["gateway GET /buy".to_owned()], requests: 100, failed: 38, share: 0.38 },
        ..Incident::default()
    }
}

/// Sends to each receiver and prints what it answered. Returns how many did not accept both.
pub async fn run(receivers: &[Receiver], external_url: String) -> Result<usize, String> {
    let outbox = Outbox::new(receivers, external_url);
    let mut incident = incident(format!("test-{}", &outbox.new_id()[4..12]), now());
    let mut refused = vec![false; receivers.len()];
    let mut told = Vec::new();
    for _ in 0..2 {
        let notices = outbox.tell(&incident, &told, now(), now());
        for notice in &notices {
            let at = receivers.iter().position(|r| r.name == notice.told.receiver).expect("it was told of one of them");
            let sent = deliver::send(&deliver::client(&receivers[at])?, &receivers[at], &notice.id, &notice.body).await;
            let status = sent.attempt.status.map_or("no answer".to_owned(), |status| status.to_string());
            println!(
                "{} {} {status} in {} ms: {}",
                receivers[at].name,
                notice.event,
                sent.attempt.took_ns / 1_000_000,
                sent.attempt.answer
            );
            refused[at] |= !sent.is_delivered();
        }
        told = notices.into_iter().map(|notice| notice.told).collect();
        incident.closed_at = Some(now());
        incident.revision += 1;
    }
    Ok(refused.iter().filter(|refused| **refused).count())
}
