//! Batches made again of rows that lie in blocks: for merging blocks, and for those who read the past as it came in.

use crate::batch::Batch;
use crate::builder::{BatchBuilder, Row};
use crate::partition::{BlockInfo, Partition};
use crate::query::{Item, Keep};
use crate::{Error, Reader, Signal};
use std::sync::Arc;

/// Makes a batch of items that came out of blocks.
struct Rebuilder {
    builder: BatchBuilder,
    contexts: hashbrown::HashMap<(crate::Service, Vec<u8>, Vec<u8>), u32>,
}

impl Rebuilder {
    fn new(signal: Signal, rows: usize) -> Rebuilder {
        Rebuilder { builder: BatchBuilder::new(signal, rows * 400, Arc::new(|_| 0)), contexts: hashbrown::HashMap::new() }
    }

    fn push(&mut self, item: &Item) {
        use crate::value::Stored;
        let key = (item.service.clone(), item.resource.to_bytes(), item.scope.to_bytes());
        let builder = &mut self.builder;
        let context = *self.contexts.entry(key).or_insert_with_key(|(service, resource, scope)| {
            let resource = builder.resource(service, resource);
            let scope = builder.scope(scope);
            builder.context(resource, scope)
        });
        let checked = "it came out of a store, where every string is UTF-8";
        builder.place(context, item.kind, item.name.as_bytes()).expect(checked);
        item.push_values(builder).expect(checked);
        builder.finish_row(Row {
            trace: item.trace_id.unwrap_or_default().0,
            span: item.span_id.0,
            parent: item.parent_span_id.0,
            time: item.time,
            duration: item.duration,
            marks: item.marks,
        });
    }
}

/// All rows of some blocks that are to be kept, as one batch.
pub(crate) fn batch_of(
    reader: &Reader,
    partition: &Arc<Partition>,
    blocks: &[Arc<BlockInfo>],
    keep: Option<&Keep<'_>>,
) -> Result<Batch, Error> {
    let rows: usize = if keep.is_some() { 0 } else { blocks.iter().map(|b| b.rows).sum() };
    let mut rebuilder = Rebuilder::new(partition.signal, rows);
    for block in blocks {
        reader.each_item_of_block(partition, block, keep, |item| rebuilder.push(&item))?;
    }
    Ok(rebuilder.builder.finish())
}
