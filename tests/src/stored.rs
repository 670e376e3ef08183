//! Stored forms in memory: a dictionary without its partition, and the reading of everything that a segment offers.

use firstfall_store::block::Dictionary;
use firstfall_store::segment::Segment;
use firstfall_store::{Damaged, Service};

/// A partition's dictionary, without the partition.
#[derive(Default)]
pub struct Ids(Vec<Vec<u8>>);

impl Ids {
    fn id(&mut self, key: &[u8]) -> u32 {
        let at = self.0.iter().position(|k| k == key).unwrap_or_else(|| {
            self.0.push(key.to_vec());
            self.0.len() - 1
        });
        at as u32 + 1
    }
}

impl Dictionary for Ids {
    fn service(&mut self, service: &Service) -> u32 {
        self.id(service.name.as_bytes())
    }
    fn resource(&mut self, body: &[u8]) -> u32 {
        self.id(body)
    }
    fn scope(&mut self, body: &[u8]) -> u32 {
        self.id(body)
    }
}

/// Reads everything that a segment offers; how much that was.
pub fn read_segment(bytes: Vec<u8>) -> Result<usize, Damaged> {
    let segment = Segment::parse(bytes)?;
    let mut values = segment.times()?.len() + segment.row_shapes()?.len() + segment.contexts()?.to_vec().len();
    for row in 0..segment.rows {
        segment.facts(row)?;
        segment.span(row)?;
        segment.parent(row)?;
    }
    for column in 0..segment.columns.len() {
        // One by one before they are read whole: where the whole column is sound, the two ways must see the same.
        let some = || (0..9).map(|at| segment.value(column, at).ok().map(|v| format!("{v:?}"))).collect::<Vec<_>>();
        let single = some();
        segment.values(column)?;
        assert_eq!(single, some());
        values += segment.rows_of(column)?.len();
    }
    Ok(values)
}
