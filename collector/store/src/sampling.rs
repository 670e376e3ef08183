//! How many spans a sampled span stands for, by the threshold that its state carries (`tracestate: ot=th:…`, OpenTelemetry's probability sampling): one that was
//! taken with probability p stands for 1/p. Without a threshold it stands for itself.

use crate::batch::{Batch, Column, Field, ValueRef};

/// Thresholds are 56 bits wide, and written without the zeros at their end.
const WHOLE: u64 = 1 << 56;
/// Nobody samples less than this; a hostile threshold must not drown what others count.
const WEIGHT_MAX: f64 = 100_000.0;

/// Spans that each span of a batch stands for.
pub struct Weights<'a> {
    batch: &'a Batch,
    columns: Vec<u32>,
}

impl<'a> Weights<'a> {
    pub fn of(batch: &'a Batch) -> Weights<'a> {
        let is_state = |column: &Column| column.field == Field::TraceState;
        let columns = batch.columns.iter().enumerate().filter(|(_, column)| is_state(column)).map(|(at, _)| at as u32).collect();
        Weights { batch, columns }
    }

    /// A whole number, as counts are: of 1/p the whole part, and one more for as many spans as the rest says, chosen by their ids.
    #[inline]
    pub fn at(&self, row: usize) -> u32 {
        if self.columns.is_empty() { 1 } else { self.read(row) }
    }

    fn read(&self, row: usize) -> u32 {
        let words = &self.batch.values[self.batch.values_start[row] as usize..];
        let state = self.batch.shape_of(row).iter().zip(words).find(|(column, _)| self.columns.contains(column));
        let Some((column, word)) = state else { return 1 };
        let ValueRef::Str(state) = self.batch.value_of(self.batch.columns[*column as usize].kind, *word) else { return 1 };
        let weight = weight_of(state);
        weight as u32 + u32::from(self.batch.span[row] as f64 / u64::MAX as f64 + weight.fract() >= 1.0)
    }
}

fn weight_of(state: &str) -> f64 {
    let entry = state.split(',').find_map(|member| member.trim().strip_prefix("ot="));
    let threshold = entry.and_then(|entry| entry.split(';').find_map(|pair| pair.strip_prefix("th:")));
    let Some(digits) = threshold.filter(|digits| (1..=14).contains(&digits.len())) else { return 1.0 };
    let Ok(value) = u64::from_str_radix(digits, 16) else { return 1.0 };
    let threshold = value << (4 * (14 - digits.len()));
    (WHOLE as f64 / (WHOLE - threshold) as f64).min(WEIGHT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_says_how_many_a_span_stands_for() {
        for (state, expected) in [
            ("ot=th:0", 1.0),
            ("ot=th:8", 2.0),
            ("a=1, ot=rv:abcdef;th:c", 4.0),
            ("ot=th:fffffffffffffe", WEIGHT_MAX),
            ("", 1.0),
            ("ot=rv:1", 1.0),
            ("ot=th:", 1.0),
            ("ot=th:xyz", 1.0),
            ("ot=th:123456789abcdef0", 1.0),
            ("not=th:8", 1.0),
        ] {
            assert_eq!(weight_of(state), expected, "{state}");
        }
    }
}
