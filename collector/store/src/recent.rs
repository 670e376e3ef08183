//! Requests of the last minutes, by hash: one that comes again byte for byte is answered as the first time and not stored twice.
//!
//! A client whose connection was cut before the answer came sends its request again, and some send every failed request twice. The
//! hash is in the journal and, once the generation is sealed, in the partition, so this holds across a restart.

use crate::NANOS_PER_SECOND;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// Hash of a request's signal and inflated body, 128 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RequestHash(pub [u8; 16]);

impl RequestHash {
    pub(crate) fn from_slice(bytes: &[u8]) -> RequestHash {
        let mut hash = [0; 16];
        let count = bytes.len().min(16);
        hash[..count].copy_from_slice(&bytes[..count]);
        RequestHash(hash)
    }
}

/// What an accepted request was answered with.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    pub accepted: u64,
    pub rejected: u64,
    /// Why items were rejected; empty when none were.
    pub message: String,
}

impl Answer {
    pub(crate) fn to_text(&self) -> String {
        if self.rejected == 0 && self.message.is_empty() {
            return self.accepted.to_string();
        }
        format!("{} {} {}", self.accepted, self.rejected, self.message)
    }

    pub(crate) fn from_text(text: &str) -> Answer {
        let mut parts = text.splitn(3, ' ');
        let mut number = || parts.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let (accepted, rejected) = (number(), number());
        Answer { accepted, rejected, message: parts.next().unwrap_or("").to_owned() }
    }
}

/// Long enough for every SDK's retries and for a proxy between; beyond it a repeated body is taken for a new one.
pub(crate) const REMEMBERED: u64 = 600 * NANOS_PER_SECOND;

/// About 40 MB. At more than 800 requests a second the oldest are forgotten before their ten minutes are over.
const REQUESTS_MAX: usize = 500_000;

pub(crate) enum Entry {
    /// Under way; the others wait for its result.
    Pending(Vec<Box<dyn FnOnce(crate::TicketResult) + Send>>),
    Done(Option<Box<Answer>>, u32),
}

#[derive(Default)]
pub(crate) struct Recent {
    entries: HashMap<RequestHash, Entry>,
    order: VecDeque<(u64, RequestHash)>,
}

impl Recent {
    pub fn get_mut(&mut self, hash: &RequestHash) -> Option<&mut Entry> {
        self.entries.get_mut(hash)
    }

    pub fn begin(&mut self, hash: RequestHash) {
        self.entries.insert(hash, Entry::Pending(Vec::new()));
    }

    /// Remembers an accepted request and returns whoever waits for its answer.
    pub fn done(&mut self, hash: RequestHash, received: u64, answer: &Answer) -> Vec<Box<dyn FnOnce(crate::TicketResult) + Send>> {
        let plain = answer.rejected == 0 && answer.message.is_empty() && answer.accepted <= u64::from(u32::MAX);
        let entry = if plain { Entry::Done(None, answer.accepted as u32) } else { Entry::Done(Some(Box::new(answer.clone())), 0) };
        let waiting = match self.entries.insert(hash, entry) {
            Some(Entry::Pending(waiting)) => waiting,
            _ => Vec::new(),
        };
        self.order.push_back((received, hash));
        while self.order.len() > REQUESTS_MAX || self.order.front().is_some_and(|(time, _)| time.saturating_add(REMEMBERED) < received) {
            let (_, old) = self.order.pop_front().expect("it has a front");
            if let Some(Entry::Done(..)) = self.entries.get(&old) {
                self.entries.remove(&old);
            }
        }
        waiting
    }

    /// Forgets a request that was not accepted and returns whoever waits for its answer.
    pub fn failed(&mut self, hash: &RequestHash) -> Vec<Box<dyn FnOnce(crate::TicketResult) + Send>> {
        match self.entries.remove(hash) {
            Some(Entry::Pending(waiting)) => waiting,
            _ => Vec::new(),
        }
    }
}

/// Hashes with their times and answers, as a sealed generation keeps them.
pub(crate) fn encode_requests(requests: &[(RequestHash, u64, Answer)]) -> Vec<u8> {
    use crate::pack::Writer;
    let mut out = Vec::with_capacity(requests.len() * 26);
    for (hash, received, answer) in requests {
        out.extend_from_slice(&hash.0);
        out.extend_from_slice(&received.to_le_bytes());
        out.text(answer.to_text().as_bytes());
    }
    out
}

pub(crate) fn decode_requests(bytes: &[u8]) -> Result<Vec<(RequestHash, u64, Answer)>, crate::Damaged> {
    let mut reader = crate::pack::Cursor::new(bytes);
    let mut requests = Vec::new();
    while reader.left() > 0 {
        requests.push((RequestHash(reader.array()?), u64::from_le_bytes(reader.array()?), Answer::from_text(&reader.string()?)));
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_requests_are_read_as_written() {
        let answers =
            [Answer { accepted: 3, ..Answer::default() }, Answer { accepted: 2, rejected: 1, message: "1 span has no trace id".into() }];
        for answer in &answers {
            assert_eq!(&Answer::from_text(&answer.to_text()), answer);
        }
        let requests: Vec<_> = answers.into_iter().enumerate().map(|(n, a)| (RequestHash([n as u8; 16]), n as u64, a)).collect();
        assert_eq!(decode_requests(&encode_requests(&requests)).expect("own bytes"), requests);
    }
}
