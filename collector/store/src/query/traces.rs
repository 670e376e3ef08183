//! A trace by its id, and the search for traces.

use super::source::{OpenBlock, OpenBlocks};
use super::{Budget, Filter, Item, Source, again_if_moved, item};
use crate::batch::marks;
use crate::{Error, Reader, Service, Signal, TraceId};
use hashbrown::HashMap;
use std::cmp::Reverse;

#[derive(Clone, Debug)]
pub struct SearchQuestion {
    pub filter: Filter,
    pub limit: usize,
    /// Only traces older than this, as the answer before said.
    pub before: Option<(u64, TraceId)>,
}

/// One trace as a row of a list.
#[derive(Clone, Debug)]
pub struct TraceSummary {
    pub trace_id: TraceId,
    /// The span without a parent, or the earliest one.
    pub root_service: Service,
    pub root_operation: String,
    pub start: u64,
    /// From the first start to the last end, nanoseconds. Longer than its root where work went on after the answer.
    pub duration: u64,
    pub spans: usize,
    pub errors: usize,
    pub services: Vec<Service>,
}

#[derive(Clone, Debug, Default)]
pub struct SearchAnswer {
    pub traces: Vec<TraceSummary>,
    /// Where the next page begins.
    pub next: Option<(u64, TraceId)>,
    /// Rows that were looked at.
    pub scanned: u64,
}

#[derive(Clone, Debug, Default)]
pub struct TraceAnswer {
    /// By start; spans of equal start in the order of their ids.
    pub spans: Vec<Item>,
    /// Spans of the whole trace, of which `spans` is a part.
    pub total: usize,
    pub errors: usize,
    pub start: u64,
    pub end: u64,
}

/// Traces that are remembered while searching. A question that matches more looks no further back.
const CANDIDATES_MAX: usize = 200_000;

impl Reader {
    /// The spans of a trace, `limit` of them from the `offset`-th on. Empty when it is unknown.
    pub fn trace(&self, id: TraceId, offset: usize, limit: usize, budget: &Budget) -> Result<TraceAnswer, Error> {
        again_if_moved(|| self.trace_once(id, offset, limit, budget))
    }

    fn trace_once(&self, id: TraceId, offset: usize, limit: usize, budget: &Budget) -> Result<TraceAnswer, Error> {
        // First where each span is and when it started, then the chosen part in full: a trace of a million spans is read in parts.
        let sources = self.sources(Signal::Traces);
        let mut places: Vec<(u64, u64, usize, u32)> = Vec::new();
        let mut open: HashMap<usize, OpenBlock> = HashMap::new();
        let mut answer = TraceAnswer { start: u64::MAX, ..TraceAnswer::default() };
        let mut count = |start: u64, duration: i64, row_marks: u8| {
            answer.total += 1;
            answer.errors += usize::from(row_marks & marks::ERROR != 0);
            answer.start = answer.start.min(start);
            answer.end = answer.end.max(start.saturating_add_signed(duration));
        };
        for (number, source) in sources.iter().enumerate() {
            match source {
                Source::Live(batch) => {
                    let Some(ordinal) = batch.trace_ids.iter().position(|t| *t == id.0) else {
                        continue;
                    };
                    for row in 0..batch.rows() {
                        if batch.trace[row] == ordinal as u32 + 1 {
                            count(batch.time[row], batch.duration[row], batch.marks[row]);
                            places.push((batch.time[row], batch.span[row], number, row as u32));
                        }
                    }
                }
                Source::Block { partition, block } => {
                    if !block.filter.may_contain(&id.0) {
                        continue;
                    }
                    budget.check()?;
                    let mut block = OpenBlock::new(partition, block);
                    let Some(ordinal) = block.traces()?.find(&id) else {
                        continue;
                    };
                    for row in block.family(ordinal)?.iter() {
                        let (at, local) = block.place_of(*row);
                        let segment = block.segment(at)?;
                        let damaged = Error::damaged(&partition.path);
                        let (time, duration, row_marks) = segment.facts(local as usize).map_err(&damaged)?;
                        count(time, duration, row_marks);
                        places.push((time, segment.span(local as usize).map_err(&damaged)?.0, number, *row));
                    }
                    open.insert(number, block);
                }
            }
        }
        places.sort_unstable();
        let chosen = &places[offset.min(places.len())..offset.saturating_add(limit).min(places.len())];
        let mut by_source: HashMap<usize, Vec<u32>> = HashMap::new();
        for (_, _, source, row) in chosen {
            by_source.entry(*source).or_default().push(*row);
        }
        for (number, mut rows) in by_source {
            budget.check()?;
            rows.sort_unstable();
            match &sources[number] {
                Source::Live(batch) => {
                    for row in rows {
                        answer.spans.push(item::from_batch(batch, row as usize)?);
                    }
                }
                Source::Block { .. } => answer.spans.extend(open.get_mut(&number).expect("it was opened above").items(&rows)?),
            }
        }
        answer.spans.sort_by_key(|span| (span.time, span.span_id));
        Ok(answer)
    }

    /// Traces with a span that passes the filter, newest first by that span.
    pub fn search_traces(&self, question: &SearchQuestion, budget: &Budget) -> Result<SearchAnswer, Error> {
        again_if_moved(|| self.search_once(question, budget))
    }

    fn search_once(&self, question: &SearchQuestion, budget: &Budget) -> Result<SearchAnswer, Error> {
        let filter = &question.filter;
        let mut sources: Vec<(u64, u64, Source)> = self
            .sources(Signal::Traces)
            .into_iter()
            .map(|source| {
                let (min, max) = source.times();
                (max, min, source)
            })
            .filter(|(max, min, _)| *max >= filter.from && *min < filter.to)
            .collect();
        sources.sort_by_key(|(max, ..)| Reverse(*max));
        // The newest matching span of each trace.
        let mut newest: HashMap<TraceId, u64> = HashMap::new();
        let mut answer = SearchAnswer::default();
        let mut blocks = OpenBlocks::default();
        // The limit-th newest so far: sources that end before it can add nothing.
        let mut enough_at = 0;
        for (max, _, source) in &sources {
            if *max < enough_at || newest.len() > CANDIDATES_MAX {
                break;
            }
            budget.check()?;
            let mut found = |id: Option<TraceId>, time: u64| {
                if let Some(id) = id {
                    let slot = newest.entry(id).or_insert(time);
                    *slot = (*slot).max(time);
                }
            };
            match source {
                Source::Live(batch) => {
                    answer.scanned += batch.rows() as u64;
                    for row in filter.batch_rows(batch)? {
                        found(batch.trace_id(row as usize), batch.time[row as usize]);
                    }
                }
                Source::Block { partition, block } => {
                    let open = blocks.get(partition, block);
                    let mut rows = Vec::new();
                    answer.scanned += open.matching(filter, |row, time| rows.push((row, time)))?;
                    if rows.is_empty() {
                        blocks.close(partition, block);
                        continue;
                    }
                    let traces = open.traces()?;
                    let damaged = Error::damaged(&partition.path);
                    for (row, time) in rows {
                        found(traces.id_of(row as usize).map_err(&damaged)?, time);
                    }
                }
            }
            let older = |(id, time): (&TraceId, &u64)| question.before.is_none_or(|before| (*time, *id) < before).then_some(*time);
            if newest.len() >= question.limit {
                let mut times: Vec<u64> = newest.iter().filter_map(older).collect();
                if times.len() > question.limit {
                    let (_, nth, _) = times.select_nth_unstable_by_key(question.limit, |t| Reverse(*t));
                    enough_at = *nth;
                }
            }
        }
        let mut order: Vec<(u64, TraceId)> =
            newest.into_iter().map(|(id, time)| (time, id)).filter(|at| question.before.is_none_or(|before| *at < before)).collect();
        order.sort_unstable_by_key(|at| Reverse(*at));
        if order.len() > question.limit {
            order.truncate(question.limit);
            answer.next = order.last().copied();
        }
        answer.traces = self.summaries(&order.iter().map(|(_, id)| *id).collect::<Vec<_>>(), &mut blocks, budget)?;
        answer.traces.sort_by_key(|t| Reverse((t.start, t.trace_id)));
        Ok(answer)
    }

    /// What each trace is as a whole, from the columns that say so.
    fn summaries(&self, ids: &[TraceId], blocks: &mut OpenBlocks, budget: &Budget) -> Result<Vec<TraceSummary>, Error> {
        struct Draft {
            start: u64,
            end: u64,
            spans: usize,
            errors: usize,
            services: Vec<Service>,
            /// (has a parent, start) and who it is: the smallest is the root.
            root: Option<((bool, u64), Service, String)>,
        }
        let mut drafts: HashMap<TraceId, Draft> = HashMap::new();
        let mut add = |id: TraceId, start: u64, duration: i64, row_marks: u8, service: &Service, name: &str| {
            let draft = drafts.entry(id).or_insert_with(|| Draft {
                start: u64::MAX,
                end: 0,
                spans: 0,
                errors: 0,
                services: Vec::new(),
                root: None,
            });
            draft.start = draft.start.min(start);
            draft.end = draft.end.max(start.saturating_add_signed(duration));
            draft.spans += 1;
            draft.errors += usize::from(row_marks & marks::ERROR != 0);
            if !draft.services.contains(service) {
                draft.services.push(service.clone());
            }
            let rank = (row_marks & marks::ROOT == 0, start);
            if draft.root.as_ref().is_none_or(|(best, ..)| rank < *best) {
                draft.root = Some((rank, service.clone(), name.to_owned()));
            }
        };
        for source in self.sources(Signal::Traces) {
            match source {
                Source::Live(batch) => {
                    let wanted: HashMap<u32, TraceId> = batch
                        .trace_ids
                        .iter()
                        .enumerate()
                        .filter(|(_, t)| ids.contains(&TraceId(**t)))
                        .map(|(n, t)| (n as u32 + 1, TraceId(*t)))
                        .collect();
                    if wanted.is_empty() {
                        continue;
                    }
                    for row in 0..batch.rows() {
                        if let Some(id) = wanted.get(&batch.trace[row]) {
                            let service = batch.service(batch.resource_of(row));
                            let name = batch.strings.str(batch.lanes[batch.lane[row] as usize].name);
                            add(*id, batch.time[row], batch.duration[row], batch.marks[row], &service, name);
                        }
                    }
                }
                Source::Block { partition, block } => {
                    let likely: Vec<TraceId> = ids.iter().filter(|id| block.filter.may_contain(&id.0)).copied().collect();
                    if likely.is_empty() {
                        continue;
                    }
                    budget.check()?;
                    let opened = blocks.get(&partition, &block);
                    let traces = opened.traces()?;
                    let damaged = Error::damaged(&partition.path);
                    let mut wanted: HashMap<u32, TraceId> = HashMap::new();
                    for id in likely {
                        if let Some(ordinal) = traces.find(&id) {
                            wanted.insert(ordinal, id);
                        }
                    }
                    if wanted.is_empty() {
                        blocks.close(&partition, &block);
                        continue;
                    }
                    let of_row = traces.of_row().map_err(&damaged)?;
                    let rows: Vec<(u32, TraceId)> =
                        of_row.iter().enumerate().filter_map(|(row, trace)| wanted.get(trace).map(|id| (row as u32, *id))).collect();
                    let mut services: HashMap<u32, Service> = HashMap::new();
                    for (row, id) in rows {
                        let (number, local) = opened.place_of(row);
                        let segment = opened.segment(number)?;
                        let lane = segment.lane_of(local as usize);
                        let (time, duration, row_marks) = segment.facts(local as usize).map_err(&damaged)?;
                        if !services.contains_key(&lane.service) {
                            services.insert(lane.service, partition.service(lane.service)?);
                        }
                        add(id, time, duration, row_marks, &services[&lane.service], &lane.name);
                    }
                }
            }
        }
        Ok(drafts
            .into_iter()
            .map(|(trace_id, draft)| {
                let (_, root_service, root_operation) = draft.root.expect("a draft begins with a span");
                TraceSummary {
                    trace_id,
                    root_service,
                    root_operation,
                    start: draft.start,
                    duration: draft.end.saturating_sub(draft.start),
                    spans: draft.spans,
                    errors: draft.errors,
                    services: draft.services,
                }
            })
            .collect())
    }
}
