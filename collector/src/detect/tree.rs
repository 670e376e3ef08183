//! What the spans of a trace are to each other.

use super::facts::{CONSUMER, SERVER, SpanFact};

/// The spans of a trace, each with its children.
pub struct Tree<'a> {
    pub spans: &'a [SpanFact],
    pub parent: Vec<Option<u32>>,
    /// Children of all spans side by side, and where those of each begin.
    children: Vec<u32>,
    starts: Vec<u32>,
    /// Span ids in order, with where they are.
    by_id: Vec<(u64, u32)>,
}

impl<'a> Tree<'a> {
    pub fn of(spans: &'a [SpanFact]) -> Tree<'a> {
        let mut by_id: Vec<(u64, u32)> = spans.iter().enumerate().map(|(at, span)| (span.span, at as u32)).collect();
        by_id.sort_unstable();
        let mut tree = Tree { spans, parent: Vec::new(), children: Vec::new(), starts: vec![0; spans.len() + 1], by_id };
        tree.parent = spans
            .iter()
            .enumerate()
            .map(|(at, span)| (span.parent != 0).then(|| tree.find(span.parent)).flatten().filter(|parent| *parent as usize != at))
            .collect();
        for parent in tree.parent.iter().flatten() {
            tree.starts[*parent as usize + 1] += 1;
        }
        for at in 1..tree.starts.len() {
            tree.starts[at] += tree.starts[at - 1];
        }
        let mut fill = tree.starts.clone();
        tree.children = vec![0; tree.starts[spans.len()] as usize];
        for (at, parent) in tree.parent.iter().enumerate() {
            if let Some(parent) = parent {
                let slot = &mut fill[*parent as usize];
                tree.children[*slot as usize] = at as u32;
                *slot += 1;
            }
        }
        tree
    }

    pub fn find(&self, id: u64) -> Option<u32> {
        let at = self.by_id.partition_point(|(known, _)| *known < id);
        self.by_id.get(at).filter(|(known, _)| *known == id).map(|(_, at)| *at)
    }

    pub fn children(&self, at: usize) -> impl Iterator<Item = &SpanFact> {
        self.places_of_children(at).iter().map(|child| &self.spans[*child as usize])
    }

    pub fn places_of_children(&self, at: usize) -> &[u32] {
        &self.children[self.starts[at] as usize..self.starts[at + 1] as usize]
    }

    /// A span's duration less what its children cover of it, and less what `calls` cover: handlers that do not wait for their calls (or lie
    /// beside them) are no busier for it.
    pub fn own_ns(&self, at: usize, calls: &[(u64, u64)], covers: &mut Vec<(u64, u64)>) -> u64 {
        covers.clear();
        covers.extend(self.children(at).map(|child| (child.start, child.end)).chain(calls.iter().copied()));
        uncovered(&self.spans[at], covers)
    }

    /// Of each span the first one of its service's part in this request: the nearest one above that took it in.
    pub fn tops(&self) -> Vec<usize> {
        const UNKNOWN: usize = usize::MAX;
        let mut tops = vec![UNKNOWN; self.spans.len()];
        let mut path = Vec::new();
        for start in 0..self.spans.len() {
            let mut at = start;
            // Each span is walked over once; in a cycle of parents the walk meets itself, and ends there.
            let top = loop {
                if tops[at] != UNKNOWN {
                    break tops[at];
                }
                tops[at] = at;
                path.push(at);
                if matches!(self.spans[at].kind, SERVER | CONSUMER) {
                    break at;
                }
                match self.parent[at] {
                    Some(parent) if self.spans[parent as usize].node == self.spans[at].node => at = parent as usize,
                    _ => break at,
                }
            };
            path.drain(..).for_each(|at| tops[at] = top);
        }
        tops
    }
}

/// A span's duration less what the stretches cover of it. Puts them in order.
pub fn uncovered(span: &SpanFact, covers: &mut [(u64, u64)]) -> u64 {
    covers.sort_unstable();
    let (mut covered, mut upto) = (0, span.start);
    for (start, end) in covers.iter() {
        let (start, end) = ((*start).max(upto), (*end).min(span.end));
        if end > start {
            covered += end - start;
            upto = end;
        }
    }
    span.end.saturating_sub(span.start).saturating_sub(covered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::facts::tests::span;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn own_time_is_what_no_child_covers(parent in (0u64..40, 0u64..40), children in prop::collection::vec((0u64..60, 0u64..60), 0..6)) {
            let (start, end) = (parent.0.min(parent.1), parent.0.max(parent.1));
            let mut spans = vec![span(1, 0, 0, start, end)];
            for (n, (a, b)) in children.iter().enumerate() {
                spans.push(span(n as u64 + 2, 1, 0, *a.min(b), *a.max(b)));
            }
            let tree = Tree::of(&spans);
            // The slow and obvious way: each nanosecond by itself.
            let expected = (start..end).filter(|t| !spans[1..].iter().any(|c| c.start <= *t && *t < c.end)).count() as u64;
            prop_assert_eq!(tree.own_ns(0, &[], &mut Vec::new()), expected);
        }
    }
}
