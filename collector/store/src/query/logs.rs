//! The search for log records, newest first.

use super::source::OpenBlocks;
use super::{Budget, Filter, Item, Source, again_if_moved, item};
use crate::{Error, Reader, Signal};
use hashbrown::HashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

#[derive(Clone, Debug)]
pub struct LogQuestion {
    pub filter: Filter,
    pub limit: usize,
    /// Where the page before ended: records of that very time which it already showed, and the time.
    pub after: Option<(u64, usize)>,
}

#[derive(Clone, Debug, Default)]
pub struct LogAnswer {
    pub logs: Vec<Item>,
    pub next: Option<(u64, usize)>,
    pub scanned: u64,
}

/// Records of a stretch of time, by what their severity number says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogBucket {
    pub start: u64,
    pub fine: u64,
    pub warnings: u64,
    pub errors: u64,
}

impl Reader {
    pub fn search_logs(&self, question: &LogQuestion, budget: &Budget) -> Result<LogAnswer, Error> {
        self.search_items(Signal::Logs, question, budget)
    }

    /// The newest rows of any signal that pass; also behind the virtual tables.
    pub(crate) fn search_items(&self, signal: Signal, question: &LogQuestion, budget: &Budget) -> Result<LogAnswer, Error> {
        again_if_moved(|| self.search_items_once(signal, question, budget))
    }

    fn search_items_once(&self, signal: Signal, question: &LogQuestion, budget: &Budget) -> Result<LogAnswer, Error> {
        let mut filter = question.filter.clone();
        let (skip_time, skip) = question.after.unwrap_or((u64::MAX, 0));
        filter.to = filter.to.min(skip_time.saturating_add(1));
        let keep = question.limit + skip + 1;
        let mut sources: Vec<(u64, usize, Source)> = self
            .sources(signal)
            .into_iter()
            .enumerate()
            .map(|(number, source)| (source.times(), number, source))
            .filter(|((min, max), ..)| *max >= filter.from && *min < filter.to)
            .map(|((_, max), number, source)| (max, number, source))
            .collect();
        sources.sort_by_key(|(max, number, _)| Reverse((*max, *number)));
        let mut answer = LogAnswer::default();
        let mut blocks = OpenBlocks::default();
        // The `keep` newest rows so far, the oldest of them on top: (time, source, row).
        let mut newest: BinaryHeap<Reverse<(u64, usize, u32)>> = BinaryHeap::new();
        for (at, (max, _, source)) in sources.iter().enumerate() {
            if newest.len() == keep && newest.peek().is_some_and(|Reverse((oldest, ..))| max < oldest) {
                break;
            }
            budget.check()?;
            let mut found = |time: u64, row: u32| {
                if newest.len() < keep {
                    newest.push(Reverse((time, at, row)));
                } else if newest.peek().is_some_and(|Reverse(oldest)| (time, at, row) > *oldest) {
                    newest.pop();
                    newest.push(Reverse((time, at, row)));
                }
            };
            match source {
                Source::Live(batch) => {
                    answer.scanned += batch.rows() as u64;
                    for row in filter.batch_rows(batch)? {
                        found(batch.time[row as usize], row);
                    }
                }
                Source::Block { partition, block } => {
                    if filter.trace_id.is_some_and(|id| !block.filter.may_contain(&id.0)) {
                        continue;
                    }
                    let open = blocks.get(partition, block);
                    let mut rows = Vec::new();
                    answer.scanned += open.matching(&filter, |row, time| rows.push((time, row)))?;
                    if rows.is_empty() {
                        blocks.close(partition, block);
                    }
                    rows.into_iter().for_each(|(time, row)| found(time, row));
                }
            }
        }
        let mut order: Vec<(u64, usize, u32)> = newest.into_iter().map(|Reverse(at)| at).collect();
        order.sort_unstable_by_key(|at| Reverse(*at));
        let already = order.iter().take_while(|(time, ..)| *time == skip_time).count().min(skip);
        order.drain(..already);
        if order.len() > question.limit {
            order.truncate(question.limit);
            if let Some((time, ..)) = order.last().copied() {
                let same = order.iter().rev().take_while(|(t, ..)| *t == time).count();
                answer.next = Some((time, if time == skip_time { same + skip } else { same }));
            }
        }
        let mut by_source: HashMap<usize, Vec<(u32, usize)>> = HashMap::new();
        for (position, (_, source, row)) in order.iter().enumerate() {
            by_source.entry(*source).or_default().push((*row, position));
        }
        let mut items: Vec<(usize, Item)> = Vec::with_capacity(order.len());
        for (source, mut rows) in by_source {
            rows.sort_unstable();
            match &sources[source].2 {
                Source::Live(batch) => {
                    for (row, position) in rows {
                        items.push((position, item::from_batch(batch, row as usize)?));
                    }
                }
                Source::Block { partition, block } => {
                    let taken = blocks.get(partition, block).items(&rows.iter().map(|(row, _)| *row).collect::<Vec<_>>())?;
                    items.extend(rows.into_iter().map(|(_, position)| position).zip(taken));
                }
            }
        }
        items.sort_unstable_by_key(|(position, _)| *position);
        answer.logs = items.into_iter().map(|(_, item)| item).collect();
        Ok(answer)
    }
}
