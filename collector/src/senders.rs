//! Resources that were read a moment ago. A client sends the same one with each of its requests, and taking its dozen attributes apart
//! costs as much as several of its items do.

use crate::validate::Limits;
use firstfall_store::Service;
use hashbrown::HashTable;
use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher};
use xxhash_rust::xxh3::Xxh3Builder;

/// Senders that are remembered, on each thread. When they are more, all are forgotten: it is a matter of speed only.
const SENDERS_MAX: usize = 256;
/// Larger resources are read anew each time, so that what is kept on a thread stays below two megabytes.
const BYTES_MAX: usize = 4096;

struct Sender {
    /// As they came: the resource, then the URL of its schema.
    raw: Vec<u8>,
    schema_at: usize,
    service: Service,
    /// As the store keeps it.
    body: Vec<u8>,
}

impl Sender {
    fn is(&self, resource: &[u8], schema_url: &[u8]) -> bool {
        self.schema_at == resource.len() && self.raw[..self.schema_at] == *resource && self.raw[self.schema_at..] == *schema_url
    }
}

#[derive(Default)]
struct Senders {
    table: HashTable<Sender>,
    /// The limits under which they were read.
    limits: Limits,
}

thread_local! {
    static SENDERS: RefCell<Senders> = RefCell::default();
}

fn hash(resource: &[u8], schema_url: &[u8]) -> u64 {
    let mut hasher = Xxh3Builder::new().build_hasher();
    hasher.write(resource);
    hasher.write(schema_url);
    hasher.finish()
}

/// Calls `found` with the service and the stored form of a resource that was remembered under these limits.
pub fn recall<T>(limits: &Limits, resource: &[u8], schema_url: &[u8], found: impl FnOnce(&Service, &[u8]) -> T) -> Option<T> {
    SENDERS.with_borrow(|senders| {
        if senders.limits != *limits {
            return None;
        }
        let sender = senders.table.find(hash(resource, schema_url), |s| s.is(resource, schema_url))?;
        Some(found(&sender.service, &sender.body))
    })
}

/// Remembers a resource of which nothing was cut.
pub fn remember(limits: &Limits, resource: &[u8], schema_url: &[u8], service: &Service, body: &[u8]) {
    if resource.len() + schema_url.len() > BYTES_MAX {
        return;
    }
    SENDERS.with_borrow_mut(|senders| {
        if senders.limits != *limits || senders.table.len() >= SENDERS_MAX {
            senders.table.clear();
            senders.limits = limits.clone();
        }
        let sender =
            Sender { raw: [resource, schema_url].concat(), schema_at: resource.len(), service: service.clone(), body: body.to_vec() };
        senders.table.insert_unique(hash(resource, schema_url), sender, |s| hash(&s.raw[..s.schema_at], &s.raw[s.schema_at..]));
    });
}
