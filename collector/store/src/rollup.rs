//! *Rollups*: calls, errors and a latency histogram of a service or an operation in a window of ten seconds of event time.
//! Pages about health and latency read nothing else, so their cost depends on the range and not on the traffic.
//!
//! They are counted from every row when it becomes visible and written in the transaction that stores the rows. Each
//! generation writes its own additive deltas; a reader adds them up, so late items need no special case.
//!
//! A span counts in the window in which it **ends**.
//!
//! ```text
//! body(version 2) := zstd( count of names, names, groups )
//! group           := service, length of its cells in bytes, cells
//! cell            := window in the minute (+ 128: estimated, as some of its spans stand for others), kind, name, calls, errors, sum ns, count of buckets, buckets(delta, count)
//! ```
//!
//! Version 1 is the same, with no cell estimated.
//!
//! A question about one service steps over the groups of the others.

use crate::batch::{Batch, Interner, marks};
use crate::histogram::{Histogram, Sum};
use crate::pack::{Cursor, Writer, corrupt, frame};
use crate::sampling::Weights;
use crate::{Damaged, NANOS_PER_SECOND, Service, Signal};
use hashbrown::HashMap;
use std::collections::BTreeMap;

pub const ROLLUP_VERSION: u32 = 2;
/// In the byte of the window, of which there are six in a minute.
const ESTIMATED: u8 = 0x80;
pub const WINDOW: u64 = 10 * NANOS_PER_SECOND;
/// Rollups of a minute are one BLOB.
pub const MINUTE: u64 = 60 * NANOS_PER_SECOND;

/// What a cell of the level `service` counts.
pub const REQUESTS: u8 = 0;
/// Root spans that are not requests: by these a batch program is judged.
pub const ROOTS: u8 = 1;
/// All items, whatever they are; it shows that a service is alive.
pub const ITEMS: u8 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    /// kind: `REQUESTS`, `ROOTS` or `ITEMS`; no name.
    Service = 0,
    /// kind: span kind; name: span name. For logs kind is the severity number.
    Operation = 1,
    /// The same by the minute: written beside the others, since most questions are about an hour or more and need no finer ones.
    ServiceMinute = 2,
    OperationMinute = 3,
}

impl Level {
    pub fn by_minute(self) -> Level {
        match self {
            Level::Service | Level::ServiceMinute => Level::ServiceMinute,
            Level::Operation | Level::OperationMinute => Level::OperationMinute,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    pub calls: u64,
    pub errors: u64,
    pub sum_ns: u64,
    pub histogram: Histogram,
    /// Some of its spans were sampled, and stand for others.
    pub estimated: bool,
}

impl Cell {
    pub fn merge(&mut self, other: &Cell) {
        self.calls = self.calls.saturating_add(other.calls);
        self.errors = self.errors.saturating_add(other.errors);
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.histogram.merge(&other.histogram);
        self.estimated |= other.estimated;
    }
}

/// A cell that many others are added to.
#[derive(Default)]
pub struct CellSum {
    pub calls: u64,
    pub errors: u64,
    sum_ns: u64,
    histogram: Sum,
    estimated: bool,
}

impl CellSum {
    pub fn add(&mut self, cell: &Cell) {
        self.calls = self.calls.saturating_add(cell.calls);
        self.errors = self.errors.saturating_add(cell.errors);
        self.sum_ns = self.sum_ns.saturating_add(cell.sum_ns);
        self.histogram.add(&cell.histogram);
        self.estimated |= cell.estimated;
    }

    pub fn finish(&self) -> Cell {
        Cell { calls: self.calls, errors: self.errors, sum_ns: self.sum_ns, histogram: self.histogram.finish(), estimated: self.estimated }
    }
}

/// Whose cell it is. `service` and `name` are ordinals of the `Rollups` that hold it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Key {
    pub window: u64,
    pub level: Level,
    pub service: u32,
    pub kind: u8,
    pub name: u32,
}

/// How many services and operations get cells of their own; what comes later is counted under `(other)`.
#[derive(Clone, Copy, Debug)]
pub struct Cardinality {
    pub services_max: usize,
    pub operations_per_service_max: usize,
}

impl Default for Cardinality {
    fn default() -> Self {
        Cardinality { services_max: 5_000, operations_per_service_max: 2_000 }
    }
}

pub const OTHER: &str = "(other)";

/// The cells of one generation, growing while it is live.
pub struct Rollups {
    signal: Signal,
    pub services: Vec<Service>,
    service_ids: HashMap<Service, u32>,
    names: Interner,
    operations: HashMap<(u32, u8, u32), ()>,
    operations_of: HashMap<u32, usize>,
    cells: HashMap<Key, u32>,
    values: Vec<Cell>,
    /// Resource bodies with the service and the time of the latest item.
    pub seen: HashMap<Vec<u8>, (u32, u64)>,
    cardinality: Cardinality,
}

impl Rollups {
    pub fn new(signal: Signal, cardinality: Cardinality) -> Rollups {
        Rollups {
            signal,
            services: Vec::new(),
            service_ids: HashMap::new(),
            names: Interner::default(),
            operations: HashMap::new(),
            operations_of: HashMap::new(),
            cells: HashMap::new(),
            values: Vec::new(),
            seen: HashMap::new(),
            cardinality,
        }
    }

    fn service(&mut self, service: Service) -> u32 {
        if let Some(id) = self.service_ids.get(&service) {
            return *id;
        }
        let service = if self.services.len() >= self.cardinality.services_max && service.name != OTHER {
            return self.service(Service::named(OTHER));
        } else {
            service
        };
        let id = self.services.len() as u32;
        self.services.push(service.clone());
        self.service_ids.insert(service, id);
        id
    }

    fn operation(&mut self, service: u32, kind: u8, name: &[u8]) -> u32 {
        let name = self.names.intern(name);
        if self.operations.contains_key(&(service, kind, name)) {
            return name;
        }
        let count = self.operations_of.entry(service).or_default();
        if *count >= self.cardinality.operations_per_service_max {
            return self.names.intern(OTHER.as_bytes());
        }
        *count += 1;
        self.operations.insert((service, kind, name), ());
        name
    }

    fn cell(&mut self, key: Key) -> u32 {
        *self.cells.entry(key).or_insert_with(|| {
            self.values.push(Cell::default());
            self.values.len() as u32 - 1
        })
    }

    /// Counts every row of a batch. Returns how many went to `(other)` because of the limits.
    pub fn add(&mut self, batch: &Batch) -> u64 {
        struct LaneCells {
            window: u64,
            operation: u32,
            service_cells: [u32; 3],
        }
        let services: Vec<u32> = (0..batch.resources.len() as u32).map(|resource| self.service(batch.service(resource))).collect();
        let with_operations = self.signal != Signal::Metrics;
        let spans = self.signal == Signal::Traces;
        let lane_keys: Vec<(u32, u8, u32)> = batch
            .lanes
            .iter()
            .map(|lane| {
                let service = services[batch.contexts[lane.context as usize].0 as usize];
                let name = if spans { self.operation(service, lane.kind, batch.strings.get(lane.name)) } else { self.names.intern(b"") };
                (service, lane.kind, name)
            })
            .collect();
        let lane_overflows: Vec<bool> = batch
            .lanes
            .iter()
            .zip(&lane_keys)
            .map(|(lane, (service, _, name))| {
                let resource = batch.resources[batch.contexts[lane.context as usize].0 as usize];
                let other = |now: &[u8], sent: u32| now == OTHER.as_bytes() && batch.strings.get(sent) != OTHER.as_bytes();
                other(self.services[*service as usize].name.as_bytes(), resource.name) || other(self.names.arena().get(*name), lane.name)
            })
            .collect();
        let mut overflowed = 0;
        let mut lane_cells: Vec<Option<LaneCells>> = batch.lanes.iter().map(|_| None).collect();
        let mut latest = vec![0u64; batch.resources.len()];
        let weights = Weights::of(batch);
        const NONE: u32 = u32::MAX;
        for row in 0..batch.rows() {
            let lane = batch.lane[row] as usize;
            overflowed += u64::from(lane_overflows[lane]);
            let end = if spans { batch.end(row) } else { batch.time[row] };
            let window = end / WINDOW * WINDOW;
            let resource = batch.contexts[batch.lanes[lane].context as usize].0 as usize;
            latest[resource] = latest[resource].max(end);
            let (service, kind, name) = lane_keys[lane];
            if lane_cells[lane].as_ref().is_none_or(|cells| cells.window != window) {
                let operation =
                    if with_operations { self.cell(Key { window, level: Level::Operation, service, kind, name }) } else { NONE };
                lane_cells[lane] = Some(LaneCells { window, operation, service_cells: [NONE; 3] });
            }
            let row_marks = batch.marks[row];
            let class = match row_marks {
                m if m & marks::REQUEST != 0 => REQUESTS,
                m if m & marks::ROOT != 0 => ROOTS,
                _ => ITEMS,
            };
            let cells = lane_cells[lane].as_mut().expect("it was set just above");
            let mut service_cell = cells.service_cells[class as usize];
            let operation = cells.operation;
            if service_cell == NONE {
                service_cell = self.cell(Key { window, level: Level::Service, service, kind: class, name: 0 });
                lane_cells[lane].as_mut().expect("it was set above").service_cells[class as usize] = service_cell;
            }
            let error = u64::from(row_marks & marks::ERROR != 0);
            let weight = weights.at(row);
            let duration = batch.duration[row].max(0) as u64;
            for (cell, timed) in [(service_cell, class != ITEMS), (operation, true)] {
                if cell == NONE {
                    continue;
                }
                let cell = &mut self.values[cell as usize];
                cell.calls += u64::from(weight);
                cell.errors += error * u64::from(weight);
                cell.estimated |= weight > 1;
                // Nobody asks for the latency of everything that is not a request.
                if spans && timed {
                    cell.sum_ns = cell.sum_ns.saturating_add(duration.saturating_mul(weight.into()));
                    cell.histogram.record_many(duration, weight);
                }
            }
        }
        for (resource, latest) in batch.resources.iter().zip(latest) {
            let service = self.service_ids[&self.known(batch, resource)];
            let body = batch.blobs.get(resource.body);
            match self.seen.get_mut(body) {
                Some((_, time)) => *time = (*time).max(latest),
                None => {
                    self.seen.insert(body.to_vec(), (service, latest));
                }
            }
        }
        overflowed
    }

    fn known(&self, batch: &Batch, resource: &crate::batch::BatchResource) -> Service {
        let service = Service {
            name: batch.strings.str(resource.name).to_owned(),
            namespace: batch.strings.str(resource.namespace).to_owned(),
            environment: batch.strings.str(resource.environment).to_owned(),
        };
        if self.service_ids.contains_key(&service) { service } else { Service::named(OTHER) }
    }

    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, &Service, &str, &Cell)> {
        self.cells.iter().map(|(key, cell)| (*key, &self.services[key.service as usize], self.name(key), &self.values[*cell as usize]))
    }

    fn name(&self, key: &Key) -> &str {
        if key.level == Level::Service { "" } else { self.names.arena().str(key.name) }
    }

    /// The bodies to be written: one for each minute and level, and the same by the minute.
    pub fn encode(&self, mut service_id: impl FnMut(&Service) -> u32) -> Vec<(u64, Level, Vec<u8>)> {
        let ids: Vec<u32> = self.services.iter().map(&mut service_id).collect();
        let mut keys: Vec<Key> = self.cells.keys().copied().collect();
        keys.sort_unstable_by_key(|k| (k.window / MINUTE, k.level, k.service, k.kind, k.name, k.window));
        let mut bodies = Vec::new();
        for group in keys.chunk_by(|a, b| (a.window / MINUTE, a.level) == (b.window / MINUTE, b.level)) {
            let minute = group[0].window / MINUTE * MINUTE;
            let value = |key: &Key| &self.values[self.cells[key] as usize];
            let encoded = |key: &Key, window| EncodedCell {
                window,
                service: ids[key.service as usize],
                kind: key.kind,
                name: self.name(key),
                cell: value(key),
            };
            bodies.push((minute, group[0].level, encode_cells(minute, group.iter().map(|key| encoded(key, key.window)))));
            let whole: Vec<(Key, Cell)> = group
                .chunk_by(|a, b| (a.service, a.kind, a.name) == (b.service, b.kind, b.name))
                .map(|windows| {
                    let mut sum = Cell::default();
                    windows.iter().for_each(|key| sum.merge(value(key)));
                    (windows[0], sum)
                })
                .collect();
            let cells = whole.iter().map(|(key, cell)| EncodedCell { cell, ..encoded(key, minute) });
            bodies.push((minute, group[0].level.by_minute(), encode_cells(minute, cells)));
        }
        bodies
    }
}

pub struct EncodedCell<'a> {
    pub window: u64,
    pub service: u32,
    pub kind: u8,
    pub name: &'a str,
    pub cell: &'a Cell,
}

/// Cells of one service stand side by side in `cells`.
pub fn encode_cells<'a>(minute: u64, cells: impl Iterator<Item = EncodedCell<'a>>) -> Vec<u8> {
    let mut names = Interner::default();
    let mut groups = Vec::new();
    let mut group = Vec::new();
    let mut cells = cells.peekable();
    while let Some(cell) = cells.next() {
        group.push(((cell.window - minute) / WINDOW) as u8 | if cell.cell.estimated { ESTIMATED } else { 0 });
        group.push(cell.kind);
        group.varint(names.intern(cell.name.as_bytes()).into());
        group.varint(cell.cell.calls);
        group.varint(cell.cell.errors);
        group.varint(cell.cell.sum_ns);
        cell.cell.histogram.write(&mut group);
        if cells.peek().is_none_or(|next| next.service != cell.service) {
            groups.varint(cell.service.into());
            groups.text(&group);
            group.clear();
        }
    }
    let mut body = Vec::with_capacity(groups.len() + 256);
    body.varint(names.arena().len() as u64);
    for id in 0..names.arena().len() as u32 {
        body.text(names.arena().get(id));
    }
    body.extend_from_slice(&groups);
    frame(&body)
}

/// Hands every cell of the services that are wanted (ids of the partition) to `each`: window, service, kind, name, cell.
pub fn decode_cells(
    minute: u64,
    body: &[u8],
    mut wanted: impl FnMut(u32) -> bool,
    mut each: impl FnMut(u64, u32, u8, &str, &Cell),
) -> Result<(), Damaged> {
    let body = crate::segment::inflate_sized(body)?;
    let mut r = Cursor::new(&body);
    let mut names = Vec::new();
    for _ in 0..r.count()? {
        names.push(r.text()?);
    }
    let mut cell = Cell::default();
    while r.left() > 0 {
        let service = r.u32()?;
        let mut group = Cursor::new(r.text()?);
        if !wanted(service) {
            continue;
        }
        while group.left() > 0 {
            let window = group.byte()?;
            cell.estimated = window & ESTIMATED != 0;
            let window = minute.saturating_add(u64::from(window & !ESTIMATED) * WINDOW);
            let kind = group.byte()?;
            let name = *names.get(group.u32()? as usize).ok_or(corrupt("a cell without its name"))?;
            let name = std::str::from_utf8(name).map_err(|_| corrupt("a name that is not UTF-8"))?;
            (cell.calls, cell.errors, cell.sum_ns) = (group.varint()?, group.varint()?, group.varint()?);
            cell.histogram.read(&mut group)?;
            each(window, service, kind, name, &cell);
        }
    }
    Ok(())
}

/// Adds bodies of one minute and level up to one. `service_id` says under which id a service goes on; one without is left out.
pub fn merge_bodies<'a>(
    minute: u64,
    bodies: impl IntoIterator<Item = &'a [u8]>,
    mut service_id: impl FnMut(u32) -> Option<u32>,
) -> Result<Vec<u8>, Damaged> {
    let mut sums: BTreeMap<(u32, u8, String, u64), Cell> = BTreeMap::new();
    for body in bodies {
        let each = |window, service, kind, name: &str, cell: &Cell| {
            if let Some(service) = service_id(service) {
                sums.entry((service, kind, name.to_owned(), window)).or_default().merge(cell);
            }
        };
        decode_cells(minute, body, |_| true, each)?;
    }
    let cells = sums.iter().map(|((service, kind, name, window), cell)| EncodedCell {
        window: *window,
        service: *service,
        kind: *kind,
        name,
        cell,
    });
    Ok(encode_cells(minute, cells))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_read_as_written() {
        let mut cell = Cell { calls: 3, errors: 1, sum_ns: 600, histogram: Histogram::default(), estimated: true };
        [100, 200, 300].into_iter().for_each(|ns| cell.histogram.record(ns));
        let body =
            encode_cells(MINUTE, std::iter::once(EncodedCell { window: MINUTE + WINDOW, service: 7, kind: 2, name: "GET /", cell: &cell }));
        let mut seen = Vec::new();
        let mut keep = |window, service, kind, name: &str, cell: &Cell| seen.push((window, service, kind, name.to_owned(), cell.clone()));
        decode_cells(MINUTE, &body, |service| service == 8, &mut keep).expect("own bytes");
        decode_cells(MINUTE, &body, |_| true, keep).expect("own bytes");
        assert_eq!(seen, [(MINUTE + WINDOW, 7, 2, "GET /".to_owned(), cell)]);
    }
}
