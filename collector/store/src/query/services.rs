//! Services and operations by their rollups: rates, errors and latency, without looking at a single span.

use super::{Budget, LogBucket};
use crate::batch::Interner;
use crate::rollup::{self, Cell, CellSum, ITEMS, Level, MINUTE, REQUESTS, ROOTS, WINDOW};
use crate::value::{Resource, Stored, text_of};
use crate::{Error, Reader, Service, Signal};
use hashbrown::HashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

#[derive(Clone, Debug, Default)]
pub struct ServiceQuestion {
    /// Nanoseconds; widened to whole windows.
    pub from: u64,
    pub to: u64,
    pub service: Option<String>,
    pub namespace: Option<String>,
    pub environment: Option<String>,
    /// Width of the points of a series; rounded up to whole windows. 0: no series.
    pub step: u64,
    /// Requests that ended from here on are counted beside the whole range too, for a verdict on how things are. Nanoseconds.
    pub recent_from: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Point {
    pub start: u64,
    pub cell: Cell,
}

#[derive(Clone, Debug)]
pub struct ServiceSummary {
    pub service: Service,
    /// Requests of the service: its SERVER spans and processing CONSUMER spans; root spans where it has neither.
    pub requests: Cell,
    /// Those of them since `recent_from`.
    pub recent: Cell,
    /// What the requests are: true when roots stand in for them.
    pub by_roots: bool,
    /// All spans and log records, requests or not.
    pub items: u64,
    pub points: Vec<Point>,
    pub instances: Vec<Instance>,
    /// From when on it can have been heard in the range: the first window in which it was, or when the store began, if that was earlier.
    pub since: u64,
    /// Time of the latest item of any signal.
    pub last_seen: u64,
    /// It sends metrics, so it is heard also when nobody asks anything of it.
    pub speaks_unasked: bool,
}

impl ServiceSummary {
    /// How much of a range it can have been heard in: without the time in which nobody listened yet, a minute at least. An hour's page says in the first minute
    /// what goes on, and of a job that runs once an hour what it is over the hour.
    pub fn heard(&self, from: u64, to: u64) -> u64 {
        to.saturating_sub(self.since.max(from)).max(MINUTE).min(to.saturating_sub(from))
    }

    /// So many of something in a second of that.
    pub fn rate(&self, count: u64, from: u64, to: u64) -> f64 {
        count as f64 / self.heard(from, to).max(1) as f64 * 1e9
    }

    pub fn versions(&self) -> Vec<String> {
        let versions: BTreeSet<&String> = self.instances.iter().map(|i| &i.version).filter(|v| !v.is_empty()).collect();
        versions.into_iter().cloned().collect()
    }
}

/// A process of a service, by `service.instance.id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pub id: String,
    pub version: String,
    pub last_seen: u64,
    /// What speaks for it, such as `firstfall-agent 0.1.0` or `opentelemetry python 1.38.0`; empty where it does not say.
    pub agent: String,
}

fn agent_of(resource: &Resource) -> String {
    let text = |key| text_of(&resource.attributes, key).unwrap_or("");
    let parts = match text("telemetry.distro.name") {
        "" => [text("telemetry.sdk.name"), text("telemetry.sdk.language"), text("telemetry.sdk.version")],
        distro => [distro, text("telemetry.distro.version"), ""],
    };
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

#[derive(Clone, Debug)]
pub struct Operation {
    pub name: String,
    /// Span kind.
    pub kind: u8,
    pub cell: Cell,
}

impl ServiceQuestion {
    fn wants(&self, service: &Service) -> bool {
        let equal = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|w| w == is);
        equal(&self.service, &service.name) && equal(&self.namespace, &service.namespace) && equal(&self.environment, &service.environment)
    }

    fn range(&self) -> (u64, u64) {
        (self.from / WINDOW * WINDOW, self.to.div_ceil(WINDOW).saturating_mul(WINDOW))
    }
}

impl Reader {
    /// Every service heard in the range, by name.
    pub fn services(&self, question: &ServiceQuestion, budget: &Budget) -> Result<Vec<ServiceSummary>, Error> {
        struct Draft {
            by_class: [CellSum; 3],
            recent: [CellSum; 3],
            points: [BTreeMap<u64, Cell>; 2],
            instances: Vec<Instance>,
            first_seen: u64,
            last_seen: u64,
            speaks_unasked: bool,
            logs: u64,
        }
        let step = question.step.div_ceil(WINDOW) * WINDOW;
        let mut drafts: BTreeMap<Service, Draft> = BTreeMap::new();
        let draft = |drafts: &mut BTreeMap<Service, Draft>, service: &Service, change: &mut dyn FnMut(&mut Draft)| {
            if let Some(draft) = drafts.get_mut(service) {
                change(draft);
                return;
            }
            let mut new = Draft {
                by_class: Default::default(),
                recent: Default::default(),
                points: Default::default(),
                instances: Vec::new(),
                first_seen: u64::MAX,
                last_seen: 0,
                speaks_unasked: false,
                logs: 0,
            };
            change(&mut new);
            drafts.insert(service.clone(), new);
        };
        for signal in [Signal::Traces, Signal::Logs] {
            self.cells(signal, Level::Service, question, budget, |window, service, kind, _, cell| {
                draft(&mut drafts, service, &mut |draft| {
                    draft.first_seen = draft.first_seen.min(window);
                    if signal == Signal::Logs {
                        draft.logs += cell.calls;
                        return;
                    }
                    let class = usize::from(kind.min(ITEMS));
                    draft.by_class[class].add(cell);
                    if window >= question.recent_from {
                        draft.recent[class].add(cell);
                    }
                    if step > 0 && kind < ITEMS {
                        draft.points[usize::from(kind)].entry(window / step * step).or_default().merge(cell);
                    }
                });
            })?;
        }
        for signal in Signal::ALL {
            self.seen(signal, question, |service, resource, latest| {
                draft(&mut drafts, service, &mut |draft| {
                    draft.last_seen = draft.last_seen.max(latest);
                    draft.speaks_unasked |= signal == Signal::Metrics;
                    let id = text_of(&resource.attributes, "service.instance.id").unwrap_or("").to_owned();
                    let version = text_of(&resource.attributes, "service.version").unwrap_or("").to_owned();
                    match draft.instances.iter_mut().find(|i| i.id == id && i.version == version) {
                        Some(instance) => instance.last_seen = instance.last_seen.max(latest),
                        None => draft.instances.push(Instance { id, version, last_seen: latest, agent: agent_of(resource) }),
                    }
                });
            })?;
        }
        let began = {
            let view = self.shared.view.read().unwrap_or_else(PoisonError::into_inner);
            let partitions = view.partitions.iter().flatten().chain(view.rollups.iter());
            partitions.map(|partition| partition.created).min().unwrap_or(u64::MAX)
        };
        Ok(drafts
            .into_iter()
            .map(|(service, draft)| {
                let items = draft.by_class.iter().map(|c| c.calls).sum::<u64>() + draft.logs;
                let by_roots = draft.by_class[usize::from(REQUESTS)].calls == 0;
                let [requests, roots, _] = draft.by_class;
                let [request_points, root_points] = draft.points;
                let points = if by_roots { root_points } else { request_points };
                ServiceSummary {
                    service,
                    requests: if by_roots { roots.finish() } else { requests.finish() },
                    recent: draft.recent[usize::from(if by_roots { ROOTS } else { REQUESTS })].finish(),
                    by_roots,
                    items,
                    points: points.into_iter().map(|(start, cell)| Point { start, cell }).collect(),
                    instances: draft.instances,
                    since: draft.first_seen.min(began),
                    last_seen: draft.last_seen,
                    speaks_unasked: draft.speaks_unasked,
                }
            })
            .collect())
    }

    /// The operations of the services that the question names, busiest first.
    pub fn operations(&self, question: &ServiceQuestion, budget: &Budget) -> Result<Vec<Operation>, Error> {
        let mut names = Interner::default();
        let mut cells: HashMap<(u32, u8), CellSum> = HashMap::new();
        self.cells(Signal::Traces, Level::Operation, question, budget, |_, _, kind, name, cell| {
            cells.entry((names.intern(name.as_bytes()), kind)).or_default().add(cell);
        })?;
        let operation =
            |((name, kind), sum): ((u32, u8), CellSum)| Operation { name: names.arena().str(name).to_owned(), kind, cell: sum.finish() };
        let mut operations: Vec<Operation> = cells.into_iter().map(operation).collect();
        operations.sort_by(|a, b| b.cell.calls.cmp(&a.cell.calls).then_with(|| a.name.cmp(&b.name)));
        Ok(operations)
    }

    /// Log records over time by severity, `step` wide.
    pub fn log_buckets(&self, question: &ServiceQuestion, budget: &Budget) -> Result<Vec<LogBucket>, Error> {
        let step = (question.step.div_ceil(WINDOW) * WINDOW).max(WINDOW);
        let mut buckets: BTreeMap<u64, LogBucket> = BTreeMap::new();
        self.cells(Signal::Logs, Level::Operation, question, budget, |window, _, severity, _, cell| {
            let start = window / step * step;
            let bucket = buckets.entry(start).or_insert(LogBucket { start, ..LogBucket::default() });
            match severity {
                17.. => bucket.errors += cell.calls,
                13..=16 => bucket.warnings += cell.calls,
                _ => bucket.fine += cell.calls,
            }
        })?;
        Ok(buckets.into_values().collect())
    }

    /// Every cell of a level in the range: from sealed generations, dropped partitions, and the live one.
    fn cells(
        &self,
        signal: Signal,
        level: Level,
        question: &ServiceQuestion,
        budget: &Budget,
        mut each: impl FnMut(u64, &Service, u8, &str, &Cell),
    ) -> Result<(), Error> {
        debug_assert!([REQUESTS, ROOTS, ITEMS] == [0, 1, 2], "classes index arrays");
        let (from, to) = question.range();
        let view = self.shared.view.read().unwrap_or_else(PoisonError::into_inner);
        let mut partitions = view.partitions[signal as usize].clone();
        if signal == Signal::Traces {
            partitions.extend(view.rollups.clone());
        }
        // The live cells are read under the same lock: a generation that is sealed meanwhile is in one place only.
        for generation in &view.live {
            let content = generation.content.read().unwrap_or_else(PoisonError::into_inner);
            for (key, service, name, cell) in content.rollups[signal as usize].iter() {
                if key.level == level && key.window >= from && key.window < to && question.wants(service) {
                    each(key.window, service, key.kind, name, cell);
                }
            }
        }
        let held: Vec<_> = partitions.iter().map(|partition| (partition, partition.hold_rollups(), partition.rollups_end())).collect();
        drop(view);
        for (partition, _held, end) in held {
            let mut services = partition.services_by_id();
            services.retain(|_, service| question.wants(service));
            for (level, from, to) in stretches(level, question.step, from, to) {
                for (minute, body) in partition.rollups(level, from / MINUTE * MINUTE, to, end)? {
                    budget.check()?;
                    let wanted = |service| services.contains_key(&service);
                    let read = rollup::decode_cells(minute, &body, wanted, |window, service, kind, name, cell| {
                        if window >= from && window < to {
                            each(window, &services[&service], kind, name, cell);
                        }
                    });
                    read.map_err(Error::damaged(&partition.path))?;
                }
            }
        }
        Ok(())
    }

    fn seen(&self, signal: Signal, question: &ServiceQuestion, mut each: impl FnMut(&Service, &Resource, u64)) -> Result<(), Error> {
        let partitions = {
            let view = self.shared.view.read().unwrap_or_else(PoisonError::into_inner);
            for generation in &view.live {
                let content = generation.content.read().unwrap_or_else(PoisonError::into_inner);
                let rollups = &content.rollups[signal as usize];
                for (body, (service, latest)) in &rollups.seen {
                    let service = &rollups.services[*service as usize];
                    if *latest >= question.from && question.wants(service) {
                        each(service, &Resource::from_bytes(body).unwrap_or_default(), *latest);
                    }
                }
            }
            view.partitions[signal as usize].clone()
        };
        for partition in partitions {
            for (resource, service, latest) in partition.seen(question.from)? {
                let service = partition.service(service)?;
                if question.wants(&service) {
                    each(&service, &*partition.resource(resource)?, latest);
                }
            }
        }
        Ok(())
    }
}

/// A range as whole minutes, read from the coarser cells, and what is left of a minute at either end.
fn stretches(level: Level, step: u64, from: u64, to: u64) -> Vec<(Level, u64, u64)> {
    let (first, last) = (from.div_ceil(MINUTE).saturating_mul(MINUTE), to / MINUTE * MINUTE);
    if !step.is_multiple_of(MINUTE) || first >= last {
        return vec![(level, from, to)];
    }
    let all = [(level, from, first), (level.by_minute(), first, last), (level, last, to)];
    all.into_iter().filter(|(_, from, to)| from < to).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_over_the_time_in_which_somebody_listened_and_over_a_minute_at_least() {
        const HOUR: u64 = 60 * MINUTE;
        let check = |heard_ago: u64, count: u64, expected: f64| {
            let summary = ServiceSummary {
                service: Service::named("shop"),
                requests: Cell::default(),
                recent: Cell::default(),
                by_roots: false,
                items: 0,
                points: Vec::new(),
                instances: Vec::new(),
                since: 5 * HOUR - heard_ago,
                last_seen: 5 * HOUR,
                speaks_unasked: false,
            };
            assert_eq!(summary.rate(count, 4 * HOUR, 5 * HOUR), expected);
        };
        check(2 * HOUR, 3600, 1.0);
        check(2 * MINUTE, 240, 2.0);
        check(MINUTE / 6, 60, 1.0);
    }
}
