//! Whether there is news of an incident for somebody who was told of it before, or never. Told once is the rule: an event for the opening, a
//! changed origin, a raised severity, a further entry point, the end, and for nothing else.

use firstfall_store::Nanos;
use firstfall_store::delivery::Told;
use firstfall_store::incident::Incident;

/// After a telling, a changed origin or a further entry point waits so long (30 s and 60 s): what comes at once is told at once, and an origin
/// that goes back and forth while the evidence grows is not told each time.
const ORIGIN_REST: Nanos = 30 * 1_000_000_000;
const SPREAD_REST: Nanos = 60 * 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Opened,
    OriginChanged,
    Spread,
    SeverityChanged,
    Resolved,
}

impl Event {
    pub fn word(self) -> &'static str {
        match self {
            Event::Opened => "opened",
            Event::OriginChanged => "origin_changed",
            Event::Spread => "spread",
            Event::SeverityChanged => "severity_changed",
            Event::Resolved => "resolved",
        }
    }
}

/// The news at event time `at`, if there is any. One at a time; what else changed is in the body.
pub fn news(incident: &Incident, told: Option<&Told>, at: Nanos) -> Option<Event> {
    let closed = incident.closed_at.is_some();
    let Some(told) = told else { return (!closed).then_some(Event::Opened) };
    match (told.resolved, closed) {
        (true, true) => return None,
        // It came again within the time in which it is the same incident.
        (true, false) => return Some(Event::Opened),
        (false, true) => return Some(Event::Resolved),
        (false, false) => {}
    }
    let rested = |rest: Nanos| at >= told.at.saturating_add(rest);
    if incident.severity.word() != told.severity && incident.severity == firstfall_store::incident::Severity::Critical {
        Some(Event::SeverityChanged)
    } else if !incident.origin_node().is_empty() && incident.origin_node() != told.origin && rested(ORIGIN_REST) {
        Some(Event::OriginChanged)
    } else if incident.impact.entry_points.iter().any(|entry| !told.entry_points.contains(entry)) && rested(SPREAD_REST) {
        Some(Event::Spread)
    } else {
        None
    }
}

/// What the receiver knows after it was told.
pub fn told_after(incident: &Incident, before: Option<&Told>, receiver: &str, at: Nanos) -> Told {
    let mut entry_points = before.map_or_else(Vec::new, |told| told.entry_points.clone());
    for entry in &incident.impact.entry_points {
        if !entry_points.contains(entry) {
            entry_points.push(entry.clone());
        }
    }
    Told {
        receiver: receiver.to_owned(),
        origin: incident.origin_node().to_owned(),
        severity: incident.severity.word().to_owned(),
        entry_points,
        resolved: incident.closed_at.is_some(),
        at,
        labels: before.map_or_else(|| labels(incident), |told| told.labels.clone()),
    }
}

/// Sorted by name. They never change while an incident lasts, so that whoever groups or deduplicates by them keeps it together.
fn labels(incident: &Incident) -> Vec<(String, String)> {
    let mut labels = vec![("alertname".to_owned(), "FailureCascade".to_owned())];
    if let Some(origin) = incident.diagnosis.origins.first().filter(|o| !o.environment.is_empty()) {
        labels.push(("environment".to_owned(), super::body::cut(&origin.environment)));
    }
    labels.push(("incident".to_owned(), incident.id.clone()));
    labels.push(("severity".to_owned(), incident.severity.word().to_owned()));
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use firstfall_store::incident::{Diagnosis, Impact, Origin, Severity};

    const SECOND: Nanos = 1_000_000_000;

    /// Second, origin, entry points, critical, open; and the event that is told.
    type Step<'a> = (u64, &'a str, &'a [&'a str], bool, bool, Option<Event>);

    fn check(steps: &[Step<'_>]) {
        let mut told: Option<Told> = None;
        for (second, origin, entries, critical, open, expected) in steps {
            let incident = Incident {
                id: "1".into(),
                closed_at: (!open).then_some(second * SECOND),
                severity: if *critical { Severity::Critical } else { Severity::Warning },
                diagnosis: Diagnosis { origins: vec![Origin { node: (*origin).into(), ..Origin::default() }], ..Diagnosis::default() },
                impact: Impact { entry_points: entries.iter().map(|e| (*e).to_owned()).collect(), ..Impact::default() },
                ..Incident::default()
            };
            let event = news(&incident, told.as_ref(), second * SECOND);
            assert_eq!(event, *expected, "at {second} s");
            if event.is_some() {
                told = Some(told_after(&incident, told.as_ref(), "r", second * SECOND));
            }
        }
    }

    #[test]
    fn a_failure_is_told_at_its_beginning_and_its_end() {
        check(&[
            (0, "a", &["x"], false, true, Some(Event::Opened)),
            (10, "a", &["x"], false, true, None),
            (90, "a", &["x"], false, true, None),
            (100, "a", &["x"], false, false, Some(Event::Resolved)),
            (110, "a", &["x"], false, false, None),
        ]);
    }

    #[test]
    fn an_origin_that_goes_back_and_forth_is_told_when_it_has_settled() {
        check(&[
            (0, "a", &[], false, true, Some(Event::Opened)),
            (10, "b", &[], false, true, None),
            (20, "a", &[], false, true, None),
            (30, "b", &[], false, true, Some(Event::OriginChanged)),
            (40, "a", &[], false, true, None),
            (50, "b", &[], false, true, None),
            (60, "b", &[], false, true, None),
        ]);
    }

    #[test]
    fn entry_points_that_fall_together_are_told_together_and_never_again() {
        check(&[
            (0, "a", &["x"], false, true, Some(Event::Opened)),
            (10, "a", &["x", "y"], false, true, None),
            (20, "a", &["x", "y", "z"], false, true, None),
            (60, "a", &["x", "y", "z"], false, true, Some(Event::Spread)),
            (120, "a", &["x"], false, true, None),
            (180, "a", &["x", "z"], false, true, None),
        ]);
    }

    #[test]
    fn a_raised_severity_is_told_at_once_and_a_lower_one_is_not() {
        check(&[
            (0, "a", &["x"], false, true, Some(Event::Opened)),
            (10, "a", &["x"], true, true, Some(Event::SeverityChanged)),
            (20, "a", &["x"], true, true, None),
            (30, "a", &["x"], false, true, None),
        ]);
    }

    #[test]
    fn what_opens_again_is_told_again_and_what_was_never_told_does_not_end() {
        check(&[(0, "a", &[], false, false, None)]);
        check(&[
            (0, "a", &[], false, true, Some(Event::Opened)),
            (100, "a", &[], false, false, Some(Event::Resolved)),
            (200, "a", &[], false, true, Some(Event::Opened)),
            (300, "a", &[], false, false, Some(Event::Resolved)),
        ]);
    }

    #[test]
    fn labels_stay_as_they_were_at_the_opening() {
        let mut incident = Incident { id: "7".into(), ..Incident::default() };
        let first = told_after(&incident, None, "r", 0);
        incident.severity = Severity::Critical;
        assert_eq!(told_after(&incident, Some(&first), "r", 1).labels, first.labels);
    }
}
