//! A histogram of durations. It is log-linear, as HdrHistogram's: 64 buckets for each power of two, so a quantile is off by at most
//! 0.8 %, merging is addition, and finding a bucket is a shift.

use crate::Damaged;
use crate::pack::{Cursor, Writer, corrupt};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// (bucket, count), ascending.
    buckets: Vec<(u16, u32)>,
}

const SUB_BITS: u32 = 6;

/// One more than the bucket of the largest number.
const BUCKETS: usize = (64 - SUB_BITS as usize + 1) << SUB_BITS;

fn bucket_of(ns: u64) -> u16 {
    let exponent = 63 - (ns | 1).leading_zeros();
    if exponent < SUB_BITS {
        return ns as u16;
    }
    let shift = exponent - SUB_BITS;
    ((shift + 1) << SUB_BITS) as u16 + (ns >> shift) as u16 - (1 << SUB_BITS)
}

/// The middle of a bucket, in nanoseconds.
fn value_of(bucket: u16) -> f64 {
    let (row, sub) = (bucket >> SUB_BITS, bucket & ((1 << SUB_BITS) - 1));
    if row == 0 {
        return f64::from(sub);
    }
    let width = 2f64.powi(i32::from(row) - 1);
    (f64::from((1 << SUB_BITS) + sub) + 0.5) * width
}

impl Histogram {
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.add(bucket_of(ns), 1);
    }

    /// A value that stands for several.
    pub fn record_many(&mut self, ns: u64, count: u32) {
        self.add(bucket_of(ns), count);
    }

    #[inline]
    fn add(&mut self, bucket: u16, count: u32) {
        match self.buckets.binary_search_by_key(&bucket, |(b, _)| *b) {
            Ok(at) => self.buckets[at].1 = self.buckets[at].1.saturating_add(count),
            Err(at) => self.buckets.insert(at, (bucket, count)),
        }
    }

    /// `count of buckets, buckets(delta to the one before, count)`
    pub fn write(&self, out: &mut Vec<u8>) {
        out.varint(self.buckets.len() as u64);
        let mut before = 0;
        for (bucket, count) in &self.buckets {
            out.varint((bucket - std::mem::replace(&mut before, *bucket)).into());
            out.varint((*count).into());
        }
    }

    /// Replaces what it holds by what was written.
    pub fn read(&mut self, r: &mut Cursor<'_>) -> Result<(), Damaged> {
        self.buckets.clear();
        let mut bucket = 0u16;
        for _ in 0..r.count()? {
            let delta = u16::try_from(r.varint()?).map_err(|_| corrupt("a bucket beyond the last"))?;
            bucket = bucket.checked_add(delta).filter(|b| usize::from(*b) < BUCKETS).ok_or(corrupt("a bucket beyond the last"))?;
            self.buckets.push((bucket, r.u32()?));
        }
        Ok(())
    }

    pub fn merge(&mut self, other: &Histogram) {
        if self.buckets.is_empty() {
            self.buckets.clone_from(&other.buckets);
            return;
        }
        // Both are in order: one walk through the two costs a sixth of a search for each bucket.
        let mut merged = Vec::with_capacity(self.buckets.len() + other.buckets.len());
        let (mut own, mut new) = (self.buckets.iter().peekable(), other.buckets.iter().peekable());
        while let (Some((a, n)), Some((b, m))) = (own.peek(), new.peek()) {
            merged.push(match a.cmp(b) {
                std::cmp::Ordering::Less => (*a, *n),
                std::cmp::Ordering::Greater => (*b, *m),
                std::cmp::Ordering::Equal => (*a, n.saturating_add(*m)),
            });
            let order = a.cmp(b);
            if order.is_le() {
                own.next();
            }
            if order.is_ge() {
                new.next();
            }
        }
        merged.extend(own);
        merged.extend(new);
        self.buckets = merged;
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// How many values lie above one, as far as buckets tell (off by 0.8 % of the value).
    pub fn count_above(&self, ns: u64) -> u64 {
        let limit = bucket_of(ns);
        self.buckets.iter().filter(|(bucket, _)| *bucket > limit).map(|(_, count)| u64::from(*count)).sum()
    }

    /// The value at or below which the share `q` of all values lies, in milliseconds, off by at most 0.8 %.
    pub fn quantile_ms(&self, q: f64) -> Option<f64> {
        let rank = (q * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in &self.buckets {
            seen += u64::from(*count);
            if seen >= rank {
                return Some(value_of(*bucket) / 1e6);
            }
        }
        None
    }
}

/// Adds many histograms up. Slot n counts bucket n: faster than merging lists one after the other, and larger.
#[derive(Default)]
pub struct Sum {
    counts: Vec<u64>,
}

impl Sum {
    pub fn add(&mut self, histogram: &Histogram) {
        let Some((last, _)) = histogram.buckets.last() else {
            return;
        };
        if self.counts.len() <= usize::from(*last) {
            self.counts.resize(usize::from(*last) + 1, 0);
        }
        for (bucket, count) in &histogram.buckets {
            self.counts[usize::from(*bucket)] += u64::from(*count);
        }
    }

    pub fn finish(&self) -> Histogram {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        Histogram { buckets: filled.map(|(bucket, count)| (bucket as u16, u32::try_from(*count).unwrap_or(u32::MAX))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_quantile_is_off_by_less_than_one_percent(mut values in prop::collection::vec(1u64..10_000_000_000_000, 1..300), q in 0.01f64..1.0) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|v| histogram.record(*v));
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).max(1) - 1;
            let exact = values[rank] as f64 / 1e6;
            let got = histogram.quantile_ms(q).expect("it is not empty");
            prop_assert!((got - exact).abs() <= exact * 0.01 + 1e-6, "{got} instead of {exact}");
        }

        #[test]
        fn merging_is_as_recording_all(a in prop::collection::vec(1u64..1_000_000, 0..60), b in prop::collection::vec(1u64..1_000_000, 0..60)) {
            let record = |values: &[u64]| {
                let mut histogram = Histogram::default();
                values.iter().for_each(|v| histogram.record(*v));
                histogram
            };
            let (mut merged, mut sum) = (record(&a), Sum::default());
            merged.merge(&record(&b));
            sum.add(&record(&a));
            sum.add(&record(&b));
            prop_assert_eq!(&sum.finish(), &merged);
            prop_assert_eq!(merged, record(&[a, b].concat()));
        }

        #[test]
        fn a_histogram_is_read_as_written(values in prop::collection::vec(any::<u64>(), 0..60)) {
            let (mut histogram, mut read) = (Histogram::default(), Histogram::default());
            values.iter().for_each(|v| histogram.record(*v));
            let mut bytes = Vec::new();
            histogram.write(&mut bytes);
            read.read(&mut Cursor::new(&bytes)).expect("own bytes");
            prop_assert_eq!(read, histogram);
        }

        #[test]
        fn buckets_are_in_the_order_of_their_values(a in any::<u64>(), b in any::<u64>()) {
            prop_assert!(bucket_of(a.min(b)) <= bucket_of(a.max(b)));
            prop_assert!(usize::from(bucket_of(a)) < BUCKETS);
        }
    }
}
