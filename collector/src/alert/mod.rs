//! Who is told of an incident, of what, and how it gets there.
//!
//! ```text
//! incident + what each receiver knows → event (whether there is news) → body → outbox in meta.db → deliver (sign, POST, try again)
//! ```
//!
//! `event`, `body` and `sign` are pure. The outbox is written in the transaction that keeps the incident, so a crash between the two tells
//! nothing twice and forgets nothing. A delivery may still arrive twice, when a crash comes between a receiver's answer and our note of it:
//! it then carries the same `webhook-id`.

pub mod body;
pub mod deliver;
pub mod event;
pub mod receiver;
pub mod sign;
pub mod trial;

use firstfall_store::Nanos;
use firstfall_store::delivery::{Notice, Told};
use firstfall_store::incident::Incident;
use receiver::Receiver;
use ring::rand::{SecureRandom, SystemRandom};
use std::sync::Arc;
use tokio::sync::Notify;

/// A delivery is tried for a day: long enough for a receiver's bad night, short enough that nobody is woken by last week.
pub const DELIVERY_AGE_MAX: Nanos = 24 * 3600 * 1_000_000_000;

/// Makes notices of incidents, and wakes those who deliver them.
pub struct Outbox {
    pub receivers: Vec<Arc<Receiver>>,
    /// Where people reach the pages.
    pub external_url: String,
    random: SystemRandom,
    /// New work for the receiver at the same place.
    wake: Vec<Notify>,
}

impl Outbox {
    pub fn new(receivers: &[Receiver], external_url: String) -> Outbox {
        Outbox {
            receivers: receivers.iter().cloned().map(Arc::new).collect(),
            wake: receivers.iter().map(|_| Notify::new()).collect(),
            external_url: external_url.trim_end_matches('/').to_owned(),
            random: SystemRandom::new(),
        }
    }

    /// What is to be told of an incident as it stands at event time `at`, given what was told before.
    pub fn tell(&self, incident: &Incident, told: &[Told], at: Nanos, now: Nanos) -> Vec<Notice> {
        let mut notices = Vec::new();
        for receiver in &self.receivers {
            let before = told.iter().find(|t| t.receiver == receiver.name);
            let Some(event) = event::news(incident, before, at) else { continue };
            let told = event::told_after(incident, before, &receiver.name, at);
            let body = body::of(incident, event, &told.labels, &receiver.name, &self.external_url);
            notices.push(Notice { told, id: self.new_id(), event: event.word(), body, give_up_at: now + DELIVERY_AGE_MAX });
        }
        notices
    }

    /// An id that no other delivery has, on any machine.
    pub fn new_id(&self) -> String {
        let mut bytes = [0; 16];
        self.random.fill(&mut bytes).expect("the kernel has random numbers");
        format!("msg_{:032x}", u128::from_be_bytes(bytes))
    }

    pub fn wake(&self) {
        self.wake.iter().for_each(Notify::notify_one);
    }
}
