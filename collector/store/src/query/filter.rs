//! Which rows a question wants. All conditions must hold on one row.
//!
//! A segment is asked from cheap to dear: its lanes, its facts in the directory, its times, durations and marks, and only then
//! the columns of the attributes that are named. A value is compared once for each distinct text, not once a row.

use crate::batch::{Batch, Field, Kind, ValueRef, marks};
use crate::pack::unzigzag;
use crate::partition::{BlockInfo, Partition};
use crate::segment::{Segment, TraceTable, Values};
use crate::value::{Resource, Stored};
use crate::{Error, Service, SpanId, TraceId};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct Filter {
    /// Rows whose time (spans: start) lies in `from..to`, nanoseconds.
    pub from: u64,
    pub to: u64,
    pub service: Option<String>,
    pub namespace: Option<String>,
    pub environment: Option<String>,
    /// Span name.
    pub name: Option<String>,
    pub error: Option<bool>,
    pub duration_min: Option<u64>,
    pub duration_max: Option<u64>,
    /// Key and value, of the item or its resource. Numbers and booleans are compared as text.
    pub attributes: Vec<(String, String)>,
    pub trace_id: Option<TraceId>,
    pub span_id: Option<SpanId>,
    /// Smallest severity number (logs).
    pub kind_min: u8,
    /// On the body (logs).
    pub words: Vec<Word>,
}

impl Default for Filter {
    fn default() -> Self {
        Filter {
            from: 0,
            to: u64::MAX,
            service: None,
            namespace: None,
            environment: None,
            name: None,
            error: None,
            duration_min: None,
            duration_max: None,
            attributes: Vec::new(),
            trace_id: None,
            span_id: None,
            kind_min: 0,
            words: Vec::new(),
        }
    }
}

/// A word or phrase that must occur, or must not, whatever its case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    text: String,
    wanted: bool,
}

/// Reads `timeout "connection refused" -retry`.
pub fn words(query: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = query.trim_start();
    while !rest.is_empty() {
        let wanted = !(rest.starts_with('-') && rest[1..].starts_with(|c: char| !c.is_whitespace()));
        if !wanted {
            rest = &rest[1..];
        }
        let text;
        if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find('"').unwrap_or(quoted.len());
            text = &quoted[..end];
            rest = quoted.get(end + 1..).unwrap_or("");
        } else {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            (text, rest) = rest.split_at(end);
        }
        if !text.is_empty() {
            words.push(Word { text: text.to_lowercase(), wanted });
        }
        rest = rest.trim_start();
    }
    words
}

impl Word {
    /// Whether it stands in a text as a whole word: not inside of a longer one.
    fn occurs(&self, lower: &str) -> bool {
        let inside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let (first, last) = (inside(self.text.chars().next()), inside(self.text.chars().next_back()));
        lower.match_indices(&self.text).any(|(at, _)| {
            let cut_before = first && inside(lower[..at].chars().next_back());
            let cut_after = last && inside(lower[at + self.text.len()..].chars().next());
            !cut_before && !cut_after
        })
    }
}

impl Filter {
    pub(crate) fn wants_service(&self, service: &Service) -> bool {
        let equal = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|w| w == is);
        equal(&self.service, &service.name) && equal(&self.namespace, &service.namespace) && equal(&self.environment, &service.environment)
    }

    pub(crate) fn names_service(&self) -> bool {
        self.service.is_some() || self.namespace.is_some() || self.environment.is_some()
    }

    fn wants_text(&self, text: &str) -> bool {
        let lower = text.to_lowercase();
        self.words.iter().all(|word| word.occurs(&lower) == word.wanted)
    }

    fn wants_numbers(&self, time: u64, duration: i64, row_marks: u8) -> bool {
        time >= self.from
            && time < self.to
            && self.duration_min.is_none_or(|min| duration.max(0) as u64 >= min)
            && self.duration_max.is_none_or(|max| duration.max(0) as u64 <= max)
            && self.error.is_none_or(|error| (row_marks & marks::ERROR != 0) == error)
    }

    /// The rows of a batch that pass.
    pub(crate) fn batch_rows(&self, batch: &Batch) -> Result<Vec<u32>, Error> {
        let resources: Vec<bool> = (0..batch.resources.len() as u32).map(|r| self.wants_service(&batch.service(r))).collect();
        let lanes: Vec<bool> = batch
            .lanes
            .iter()
            .map(|lane| {
                resources[batch.contexts[lane.context as usize].0 as usize]
                    && lane.kind >= self.kind_min
                    && self.name.as_ref().is_none_or(|name| batch.strings.str(lane.name) == name)
            })
            .collect();
        let in_resource: Vec<Vec<bool>> = self
            .attributes
            .iter()
            .map(|(key, value)| {
                let has = |body: u32| Resource::from_bytes(batch.blobs.get(body)).is_ok_and(|r| resource_has(&r, key, value));
                batch.resources.iter().map(|resource| has(resource.body)).collect()
            })
            .collect();
        let mut rows = Vec::new();
        for row in 0..batch.rows() {
            if !lanes[batch.lane[row] as usize]
                || !self.wants_numbers(batch.time[row], batch.duration[row], batch.marks[row])
                || self.trace_id.is_some_and(|id| batch.trace_id(row) != Some(id))
                || self.span_id.is_some_and(|id| batch.span_id(row) != id)
            {
                continue;
            }
            let resource = batch.resource_of(row) as usize;
            let attributes_match = self.attributes.iter().enumerate().all(|(n, (key, value))| {
                in_resource[n][resource]
                    || batch.values_of(row).any(|(column, cell)| {
                        column.field == Field::Attribute && batch.strings.str(column.key) == key && cell_is(cell, value)
                    })
            });
            if !attributes_match {
                continue;
            }
            if !self.words.is_empty() {
                let body = batch.values_of(row).find(|(column, _)| column.field == Field::Body).map(|(_, cell)| cell_text(cell));
                if !self.wants_text(body.as_deref().unwrap_or("")) {
                    continue;
                }
            }
            rows.push(row as u32);
        }
        Ok(rows)
    }

    /// Whether a segment can hold such rows, by what its directory says.
    pub(crate) fn may_be_in(&self, block: &BlockInfo, number: usize, services: Option<&[u32]>) -> bool {
        let info = &block.directory.segments[number];
        info.time_min < self.to
            && info.time_max >= self.from
            && self.duration_min.is_none_or(|min| info.duration_max >= min)
            && (self.error != Some(true) || info.errors > 0)
            && services.is_none_or(|wanted| info.services.iter().any(|s| wanted.contains(s)))
    }

    /// The rows of a segment that pass; ordinals within the segment. `services` are the partition's ids that pass.
    pub(crate) fn segment_rows(
        &self,
        partition: &Partition,
        block: &BlockInfo,
        number: usize,
        segment: &Segment,
        services: Option<&[u32]>,
        traces: Option<&TraceTable>,
    ) -> Result<Vec<u32>, Error> {
        let damaged = Error::damaged(&partition.path);
        let mut rows: Vec<u32> = Vec::new();
        for lane in &segment.lanes {
            if services.is_none_or(|wanted| wanted.contains(&lane.service))
                && lane.kind >= self.kind_min
                && self.name.as_ref().is_none_or(|name| *name == lane.name)
            {
                rows.extend(lane.rows.start as u32..lane.rows.end as u32);
            }
        }
        if rows.is_empty() {
            return Ok(rows);
        }
        let times = segment.times().map_err(&damaged)?;
        rows.retain(|row| times[*row as usize] >= self.from && times[*row as usize] < self.to);
        if !rows.is_empty() && (self.duration_min.is_some() || self.duration_max.is_some()) {
            let durations = segment.durations().map_err(&damaged)?.to_vec();
            rows.retain(|row| {
                let duration = unzigzag(durations[*row as usize]).max(0) as u64;
                self.duration_min.is_none_or(|min| duration >= min) && self.duration_max.is_none_or(|max| duration <= max)
            });
        }
        if let Some(error) = self.error
            && !rows.is_empty()
        {
            let row_marks = segment.marks().map_err(&damaged)?.to_vec();
            rows.retain(|row| (row_marks[*row as usize] as u8 & marks::ERROR != 0) == error);
        }
        if let (Some(id), Some(traces)) = (self.trace_id, traces) {
            let start = block.directory.segments[number].rows.start;
            match traces.find(&id) {
                None => rows.clear(),
                Some(ordinal) => {
                    let of_row = traces.of_row().map_err(&damaged)?;
                    rows.retain(|row| of_row[start + *row as usize] == ordinal);
                }
            }
        }
        if let Some(id) = self.span_id
            && !rows.is_empty()
        {
            let mut matching = Vec::new();
            for row in rows {
                if segment.span(row as usize).map_err(&damaged)? == id {
                    matching.push(row);
                }
            }
            rows = matching;
        }
        for (key, value) in &self.attributes {
            if rows.is_empty() {
                break;
            }
            let mut matching = vec![false; segment.rows];
            let contexts = segment.contexts().map_err(&damaged)?.to_vec();
            let mut has: Vec<Option<bool>> = vec![None; block.directory.contexts.len()];
            for row in &rows {
                let context = contexts[*row as usize] as usize;
                let resource = block.directory.contexts.get(context).ok_or_else(|| damaged(crate::Damaged("a row without its context")))?.1;
                let known = match has[context] {
                    Some(known) => known,
                    None => {
                        let known = resource_has(&*partition.resource(resource)?, key, value);
                        has[context] = Some(known);
                        known
                    }
                };
                matching[*row as usize] = known;
            }
            for (number, column) in segment.columns.iter().enumerate() {
                if column.field == Field::Attribute && column.key == *key {
                    mark_equal(segment, number, value, &mut matching).map_err(&damaged)?;
                }
            }
            rows.retain(|row| matching[*row as usize]);
        }
        if !self.words.is_empty() && !rows.is_empty() {
            let mut matching = vec![self.wants_text(""); segment.rows];
            for (number, column) in segment.columns.iter().enumerate() {
                if column.field != Field::Body {
                    continue;
                }
                let (distinct, codes) = match segment.values(number).map_err(&damaged)? {
                    Values::Texts { distinct, codes } => (distinct, codes),
                    Values::Numbers(numbers) => {
                        for (row, number) in segment.rows_of(number).map_err(&damaged)?.into_iter().zip(numbers) {
                            let cell = match column.kind {
                                Kind::Double => ValueRef::Double(f64::from_bits(*number)),
                                Kind::Bool => ValueRef::Bool(*number != 0),
                                Kind::Empty => ValueRef::Empty,
                                _ => ValueRef::Int(*number as i64),
                            };
                            matching[row as usize] = self.wants_text(&cell_text(cell));
                        }
                        continue;
                    }
                };
                let mut known: Vec<Option<bool>> = vec![None; distinct.len()];
                for (row, code) in segment.rows_of(number).map_err(&damaged)?.into_iter().zip(codes) {
                    let wanted = known[*code as usize].get_or_insert_with(|| {
                        let text = distinct.get(*code);
                        match column.kind {
                            Kind::Str => std::str::from_utf8(text).is_ok_and(|t| self.wants_text(t)),
                            Kind::Bytes => self.wants_text(&cell_text(ValueRef::Bytes(text))),
                            _ => self.wants_text(&cell_text(ValueRef::Nested(text))),
                        }
                    });
                    matching[row as usize] = *wanted;
                }
            }
            rows.retain(|row| matching[*row as usize]);
        }
        Ok(rows)
    }

    /// The partition's services that pass; `None` when all do.
    pub(crate) fn services_in(&self, partition: &Arc<Partition>) -> Option<Vec<u32>> {
        self.names_service().then(|| partition.services_where(|service| self.wants_service(service)))
    }
}

fn mark_equal(segment: &Segment, column: usize, value: &str, matching: &mut [bool]) -> Result<(), crate::Damaged> {
    let kind = segment.columns[column].kind;
    match segment.values(column)? {
        Values::Texts { distinct, codes } => {
            let equal: Vec<bool> = (0..distinct.len() as u32)
                .map(|at| match kind {
                    Kind::Str => distinct.get(at) == value.as_bytes(),
                    Kind::Bytes => cell_is(ValueRef::Bytes(distinct.get(at)), value),
                    _ => cell_is(ValueRef::Nested(distinct.get(at)), value),
                })
                .collect();
            if equal.contains(&true) {
                for (row, code) in segment.rows_of(column)?.into_iter().zip(codes) {
                    matching[row as usize] |= equal[*code as usize];
                }
            }
        }
        Values::Numbers(numbers) => {
            let wanted = match kind {
                Kind::Small | Kind::Wide => value.parse::<i64>().ok().map(|v| v as u64),
                Kind::Double => value.parse::<f64>().ok().map(f64::to_bits),
                Kind::Bool => value.parse::<bool>().ok().map(u64::from),
                _ => value.is_empty().then_some(0),
            };
            if let Some(wanted) = wanted.filter(|w| numbers.contains(w)) {
                for (row, number) in segment.rows_of(column)?.into_iter().zip(numbers) {
                    matching[row as usize] |= *number == wanted;
                }
            }
        }
    }
    Ok(())
}

fn resource_has(resource: &Resource, key: &str, value: &str) -> bool {
    resource.attributes.iter().any(|(k, v)| k == key && v.text() == value)
}

fn cell_is(cell: ValueRef<'_>, wanted: &str) -> bool {
    match cell {
        ValueRef::Str(text) => text == wanted,
        ValueRef::Int(value) => wanted.parse() == Ok(value),
        ValueRef::Double(value) => wanted.parse() == Ok(value),
        ValueRef::Bool(value) => wanted.parse() == Ok(value),
        other => cell_text(other) == wanted,
    }
}

fn cell_text(cell: ValueRef<'_>) -> String {
    cell.value().text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_as_words_phrases_and_exclusions() {
        let read = words(r#"timeout "connection refused" -retry - """#);
        let word = |text: &str, wanted| Word { text: text.into(), wanted };
        assert_eq!(read, [word("timeout", true), word("connection refused", true), word("retry", false), word("-", true)]);
    }

    #[test]
    fn a_word_is_found_whole_and_in_any_case() {
        let filter = |q: &str| Filter { words: words(q), ..Filter::default() };
        assert!(filter("timeout").wants_text("Read Timeout: timed out"));
        assert!(!filter("time").wants_text("Read Timeout"));
        assert!(filter("order-17").wants_text("see order-17."));
        assert!(!filter("-refused").wants_text("connection refused"));
        assert!(filter("\"connection refused\"").wants_text("Connection refused by peer"));
    }
}
