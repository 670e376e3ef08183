//! A row taken out of its columns: what pages, the API and exports draw.

use crate::batch::{Batch, Field, Kind, marks};
use crate::builder::{BatchBuilder, NotUtf8};
use crate::pack::unzigzag;
use crate::partition::{BlockInfo, Partition};
use crate::segment::{Parent, Segment, SegmentValue, TraceTable};
use crate::value::{Event, Link, Pairs, Resource, Scope, Stored, Value, pairs_to_json};
use crate::{Damaged, Error, Service, SpanId, TraceId};
use serde_json::{Value as Json, json};
use std::borrow::Cow;
use std::sync::Arc;

/// A span, log record or metric point with everything that the client sent.
#[derive(Clone, Debug)]
pub struct Item {
    pub service: Service,
    pub resource: Arc<Resource>,
    pub scope: Arc<Scope>,
    /// Span kind, severity number, or metric type.
    pub kind: u8,
    /// Span name, event name, or metric name.
    pub name: String,
    pub trace_id: Option<TraceId>,
    pub span_id: SpanId,
    pub parent_span_id: SpanId,
    /// Spans: start. Others: time.
    pub time: u64,
    /// Spans: end − start. Logs: observed − time. Points: time − start.
    pub duration: i64,
    pub marks: u8,
    pub attributes: Pairs,
    fields: Vec<(Field, Value, Vec<u8>)>,
}

impl Item {
    /// Spans: their end. Logs: when they were observed.
    pub fn end(&self) -> u64 {
        self.time.wrapping_add_signed(self.duration)
    }

    /// 0 unset, 1 ok, 2 error.
    pub fn status(&self) -> u8 {
        self.marks & marks::STATUS
    }

    /// Counts as failed, by its status or by what its attributes say where the status is unset.
    pub fn is_error(&self) -> bool {
        self.marks & marks::ERROR != 0
    }

    pub fn field(&self, field: Field) -> Option<&Value> {
        self.fields.iter().find(|(f, ..)| *f == field).map(|(_, value, _)| value)
    }

    pub fn text(&self, field: Field) -> &str {
        match self.field(field) {
            Some(Value::Str(text)) => text,
            _ => "",
        }
    }

    pub fn int(&self, field: Field) -> i64 {
        match self.field(field) {
            Some(Value::Int(value)) => *value,
            _ => 0,
        }
    }

    pub fn events(&self) -> Vec<Event> {
        self.list(Field::Events)
    }

    pub fn links(&self) -> Vec<Link> {
        self.list(Field::Links)
    }

    pub fn events_json(&self) -> Json {
        let event = |e: Event| json!({"time": e.time, "name": e.name, "attributes": pairs_to_json(&e.attributes), "dropped_attributes_count": e.dropped_attributes});
        Json::Array(self.events().into_iter().map(event).collect())
    }

    pub fn links_json(&self) -> Json {
        let link = |l: Link| {
            json!({"trace_id": l.trace_id.to_string(), "span_id": l.span_id.to_string(), "trace_state": l.trace_state,
                "attributes": pairs_to_json(&l.attributes), "dropped_attributes_count": l.dropped_attributes, "flags": l.flags})
        };
        Json::Array(self.links().into_iter().map(link).collect())
    }

    fn list<T: Stored>(&self, field: Field) -> Vec<T> {
        self.fields.iter().find(|(f, ..)| *f == field).and_then(|(_, _, bytes)| Vec::from_bytes(bytes).ok()).unwrap_or_default()
    }

    /// Writes its values into a row, as they came.
    pub(crate) fn push_values(&self, builder: &mut BatchBuilder) -> Result<(), NotUtf8> {
        let attributes = self.attributes.iter().map(|(key, value)| (Field::Attribute, key.as_str(), value, &[][..]));
        let fields = self.fields.iter().map(|(field, value, raw)| (*field, "", value, raw.as_slice()));
        for (field, key, value, raw) in attributes.chain(fields) {
            let key = key.as_bytes();
            match value {
                _ if matches!(field, Field::Events | Field::Links) => builder.push_nested(field, key, raw)?,
                Value::Str(text) => builder.push_str(field, key, text.as_bytes())?,
                Value::Int(value) => builder.push_int(field, key, *value)?,
                Value::Double(value) => builder.push_double(field, key, *value)?,
                Value::Bool(value) => builder.push_bool(field, key, *value)?,
                Value::Bytes(bytes) => builder.push_bytes(field, key, bytes)?,
                Value::Empty => builder.push_empty(field, key)?,
                nested => {
                    let mut encoded = Vec::new();
                    nested.encode(&mut encoded);
                    builder.push_nested(field, key, &encoded)?;
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, field: Field, key: &str, value: Value, raw: &[u8]) {
        if field == Field::Attribute {
            self.attributes.push((key.to_owned(), value));
        } else {
            let raw = if matches!(field, Field::Events | Field::Links) { raw.to_vec() } else { Vec::new() };
            self.fields.push((field, value, raw));
        }
    }
}

pub(crate) fn from_batch(batch: &Batch, row: usize) -> Result<Item, Error> {
    let lane = batch.lanes[batch.lane[row] as usize];
    let (resource, scope) = batch.contexts[lane.context as usize];
    let in_memory = |found: Damaged| Error::Damaged { path: "the live generation".into(), found };
    let mut item = Item {
        service: batch.service(resource),
        resource: Arc::new(Resource::from_bytes(batch.blobs.get(batch.resources[resource as usize].body)).map_err(in_memory)?),
        scope: Arc::new(Scope::from_bytes(batch.blobs.get(batch.scopes[scope as usize])).map_err(in_memory)?),
        kind: lane.kind,
        name: batch.strings.str(lane.name).to_owned(),
        trace_id: batch.trace_id(row),
        span_id: batch.span_id(row),
        parent_span_id: SpanId(batch.parent[row]),
        time: batch.time[row],
        duration: batch.duration[row],
        marks: batch.marks[row],
        attributes: Vec::new(),
        fields: Vec::new(),
    };
    for (column, cell) in batch.values_of(row) {
        let raw = match cell {
            crate::batch::ValueRef::Nested(bytes) => bytes,
            _ => &[],
        };
        let value = if matches!(column.field, Field::Events | Field::Links) { Value::Empty } else { cell.value() };
        item.push(column.field, batch.strings.str(column.key), value, raw);
    }
    Ok(item)
}

/// Takes rows (ascending ordinals within the segment) out of a segment. `span_of` finds the span id of the n-th row of a
/// trace in the block, to which parents refer.
pub(crate) fn from_segment(
    partition: &Partition,
    block: &BlockInfo,
    number: usize,
    segment: &Segment,
    traces: &TraceTable,
    rows: &[u32],
    mut span_of: impl FnMut(u32, u64) -> Result<SpanId, Error>,
) -> Result<Vec<Item>, Error> {
    let damaged = Error::damaged(&partition.path);
    // A few rows are taken out one by one; most of a segment is read column by column.
    if rows.len() > segment.rows / WHOLE_FROM {
        for column in 0..segment.columns.len() {
            segment.values(column).map_err(&damaged)?;
        }
    }
    let contexts = segment.contexts().map_err(&damaged)?;
    let times = segment.times().map_err(&damaged)?;
    let durations = segment.durations().map_err(&damaged)?;
    let row_marks = segment.marks().map_err(&damaged)?;
    let shapes = segment.row_shapes().map_err(&damaged)?;
    let start = block.directory.segments[number].rows.start;
    let missing = || damaged(Damaged("a row without its values"));
    let mut items = Vec::with_capacity(rows.len());
    // How many values of each column the rows before have used up; and the rows of each shape that are not yet in that.
    let mut used = vec![0usize; segment.columns.len()];
    let mut passed = vec![0usize; segment.shapes.len()];
    let mut counted = 0;
    for row in rows.iter().map(|row| *row as usize) {
        for shape in &shapes[counted..row] {
            passed[*shape as usize] += 1;
        }
        counted = row;
        for (shape, rows) in segment.shapes.iter().zip(&mut passed).filter(|(_, rows)| **rows > 0) {
            shape.iter().for_each(|column| used[*column as usize] += *rows);
            *rows = 0;
        }
        let shape = &segment.shapes[shapes[row] as usize];
        let context = contexts.get(row).ok_or_else(missing)? as usize;
        let (service, resource, scope) =
            *block.directory.contexts.get(context).ok_or_else(|| damaged(Damaged("a row without its context")))?;
        let parent_span_id = match segment.parent(row).map_err(&damaged)? {
            Parent::None => SpanId(0),
            Parent::Stranger(id) => id,
            Parent::Rank(rank) => span_of(traces.of_row().map_err(&damaged)?[start + row], rank)?,
        };
        let lane = segment.lane_of(row);
        let mut item = Item {
            service: partition.service(service)?,
            resource: partition.resource(resource)?,
            scope: partition.scope(scope)?,
            kind: lane.kind,
            name: lane.name.clone(),
            trace_id: traces.id_of(start + row).map_err(&damaged)?,
            span_id: segment.span(row).map_err(&damaged)?,
            parent_span_id,
            time: times[row],
            duration: unzigzag(durations.get(row).ok_or_else(missing)?),
            marks: row_marks.get(row).ok_or_else(missing)? as u8,
            attributes: Vec::with_capacity(shape.len()),
            fields: Vec::new(),
        };
        for (at, column) in shape.iter().enumerate() {
            // A key that the client sent twice stands twice in the shape: each takes the next value.
            let nth = shape[..at].iter().filter(|c| *c == column).count();
            let column = *column as usize;
            let (value, raw) = value_at(segment, column, used[column] + nth).map_err(&damaged)?;
            item.push(segment.columns[column].field, &segment.columns[column].key, value, &raw);
        }
        items.push(item);
    }
    Ok(items)
}

/// A column is read whole when more than one row in this many is wanted.
const WHOLE_FROM: usize = 32;

fn value_at(segment: &Segment, column: usize, at: usize) -> Result<(Value, Cow<'_, [u8]>), Damaged> {
    let info = &segment.columns[column];
    Ok(match segment.value(column, at)? {
        SegmentValue::Number(number) => {
            let value = match info.kind {
                Kind::Double => Value::Double(f64::from_bits(number)),
                Kind::Bool => Value::Bool(number != 0),
                Kind::Empty => Value::Empty,
                _ => Value::Int(number as i64),
            };
            (value, Cow::Borrowed(&[]))
        }
        SegmentValue::Bytes(raw) => {
            let value = match info.kind {
                Kind::Str => Value::Str(std::str::from_utf8(&raw).map_err(|_| Damaged("a string that is not UTF-8"))?.to_owned()),
                Kind::Bytes => Value::Bytes(raw.to_vec()),
                _ if matches!(info.field, Field::Events | Field::Links) => Value::Empty,
                _ => Value::decode(&mut crate::pack::Cursor::new(&raw), 0)?,
            };
            (value, raw)
        }
    })
}
