//! SVG drawn by the server. Sizes and positions are presentation attributes, colours are classes, so that no inline style is needed
//! and light and dark follow the page. Every chart says in words what it shows, for those who do not see it.

mod graph;

pub use graph::{Lane, MapEdge, cascade, lanes, map};

use crate::times;
use std::fmt::Write;

/// One line of a chart.
pub struct Line<'a> {
    pub class: &'a str,
    pub label: &'a str,
    pub points: Vec<(u64, Option<f64>)>,
}

/// A chart in a column, and every chart on a phone. It is scaled as a whole, so its texts keep their shape.
const NARROW: f64 = 400.0;
/// A chart that takes the width of the page.
const WIDE: f64 = 1200.0;
const HEIGHT: f64 = 150.0;
const LEFT: f64 = 44.0;
const BOTTOM: f64 = 18.0;
const TOP: f64 = 8.0;

/// A chart over the width of the page, drawn for wide screens and again for narrow ones; the style sheet shows one of the two.
fn for_both(draw: impl Fn(f64) -> String) -> String {
    format!(r#"<div class="wide-only">{}</div><div class="narrow-only">{}</div>"#, draw(WIDE), draw(NARROW))
}

/// A round number at or above the largest value, for the top of an axis.
fn ceiling(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let magnitude = 10f64.powf(value.log10().floor());
    [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 8.0, 10.0].iter().map(|f| f * magnitude).find(|top| *top >= value * 0.9999).unwrap_or(value)
}

pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v >= 1e6 => format!("{:.1}M", value / 1e6),
        v if v >= 10_000.0 => format!("{:.0}k", value / 1e3),
        v if v >= 1000.0 => format!("{:.1}k", value / 1e3),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        v if v >= 0.1 => format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        _ => format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}

/// Times below a chart, from its left to its right edge, which they cut into so many parts.
fn time_axis(svg: &mut String, from: u64, to: u64, parts: u64, height: f64, x: impl Fn(u64) -> f64) {
    for part in 0..=parts {
        let time = from + (to - from) / parts * part;
        let anchor = match part {
            0 => "start",
            p if p == parts => "end",
            _ => "middle",
        };
        let _ = write!(
            svg,
            r#"<text class="axis" x="{:.0}" y="{:.0}" text-anchor="{anchor}">{}</text>"#,
            x(time),
            height - 4.0,
            times::axis(time, to - from)
        );
    }
}

/// Lines over time. A gap in the data is a gap in the line.
pub fn lines(title: &str, unit: &str, from: u64, to: u64, step: u64, lines: &[Line<'_>]) -> String {
    let top = ceiling(lines.iter().flat_map(|l| l.points.iter().filter_map(|(_, v)| *v)).fold(0.0, f64::max));
    let x = |time: u64| LEFT + (NARROW - LEFT) * (time.saturating_sub(from)) as f64 / (to - from).max(1) as f64;
    let y = |value: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - value / top);
    let mut svg = String::new();
    let summary: Vec<String> = lines
        .iter()
        .map(|l| {
            let last = l.points.iter().rev().find_map(|(_, v)| *v);
            format!("{} last {}", l.label, last.map_or("none".to_owned(), |v| format!("{} {unit}", number(v))))
        })
        .collect();
    let _ = write!(
        svg,
        r#"<svg class="chart" viewBox="0 0 {NARROW} {HEIGHT}" role="img" aria-label="{}: {}">"#,
        escape(title),
        escape(&summary.join(", "))
    );
    for part in 0..=2 {
        let value = top * f64::from(part) / 2.0;
        let at = y(value);
        let _ = write!(svg, r#"<line class="grid" x1="{LEFT}" x2="{NARROW}" y1="{at:.1}" y2="{at:.1}"/>"#);
        let _ = write!(svg, r#"<text class="axis" x="{:.0}" y="{:.1}" text-anchor="end">{}</text>"#, LEFT - 6.0, at + 3.5, number(value));
    }
    time_axis(&mut svg, from, to, 4, HEIGHT, x);
    for line in lines {
        let mut path = String::new();
        let mut before: Option<u64> = None;
        for (time, value) in &line.points {
            let Some(value) = value else { continue };
            let near = before.is_some_and(|b| time - b <= step * 2);
            let middle = (time + step / 2).clamp(from, to);
            let _ = write!(path, "{}{:.1} {:.1}", if near { 'L' } else { 'M' }, x(middle), y(*value));
            if !near {
                // A point alone is a dot, not nothing.
                let _ = write!(path, "h1.2");
            }
            before = Some(*time);
        }
        let _ = write!(svg, r#"<path class="line {}" d="{path}"/>"#, line.class);
    }
    svg.push_str("</svg>");
    svg
}

/// A line without axes, for a row of a table.
pub fn sparkline(values: &[Option<f64>]) -> String {
    let top = values.iter().flatten().copied().fold(0.0, f64::max).max(1e-9);
    let mut path = String::new();
    let mut drawn = false;
    for (at, value) in values.iter().enumerate() {
        match value {
            Some(value) => {
                let x = 100.0 * at as f64 / (values.len().max(2) - 1) as f64;
                let _ = write!(path, "{}{x:.1} {:.1}", if drawn { 'L' } else { 'M' }, 18.0 - 16.0 * value / top);
                drawn = true;
            }
            None => drawn = false,
        }
    }
    format!(
        r#"<svg class="spark" viewBox="0 0 100 20" aria-hidden="true" preserveAspectRatio="none"><path class="line one" d="{path}"/></svg>"#
    )
}

/// Stacked bars over time: (start, from the bottom up).
pub fn bars(title: &str, from: u64, to: u64, step: u64, bars: &[(u64, [u64; 3])]) -> String {
    for_both(|across| bars_across(across, title, from, to, step, bars))
}

fn bars_across(across: f64, title: &str, from: u64, to: u64, step: u64, bars: &[(u64, [u64; 3])]) -> String {
    let height = 80.0;
    let top = ceiling(bars.iter().map(|(_, parts)| parts.iter().sum::<u64>()).max().unwrap_or(0) as f64);
    let x = |time: u64| LEFT + (across - LEFT) * time.saturating_sub(from) as f64 / (to - from).max(1) as f64;
    let width = ((across - LEFT) * step as f64 / (to - from).max(1) as f64 - 0.8).max(0.8);
    let total: u64 = bars.iter().map(|(_, parts)| parts.iter().sum::<u64>()).sum();
    let mut svg =
        format!(r#"<svg class="chart" viewBox="0 0 {across} {height}" role="img" aria-label="{}: {total} in all">"#, escape(title));
    for value in [0.0, top] {
        let at = TOP + (height - TOP - BOTTOM) * (1.0 - value / top);
        let _ = write!(svg, r#"<line class="grid" x1="{LEFT}" x2="{across}" y1="{at:.1}" y2="{at:.1}"/>"#);
        let _ = write!(svg, r#"<text class="axis" x="{:.0}" y="{:.1}" text-anchor="end">{}</text>"#, LEFT - 6.0, at + 3.5, number(value));
    }
    time_axis(&mut svg, from, to, 4, height, x);
    for (start, parts) in bars {
        let mut bottom = height - BOTTOM;
        for (part, class) in parts.iter().zip(["fine", "warn", "bad"]) {
            let tall = (height - TOP - BOTTOM) * *part as f64 / top;
            if *part > 0 {
                bottom -= tall;
                let _ = write!(
                    svg,
                    r#"<rect class="bar {class}" x="{:.1}" y="{bottom:.1}" width="{width:.1}" height="{tall:.1}"/>"#,
                    x((*start).max(from))
                );
            }
        }
    }
    svg.push_str("</svg>");
    svg
}

/// Traces as dots: when they began against how long they took, on a logarithmic axis. Each is a link.
pub fn scatter(from: u64, to: u64, dots: &[(u64, u64, bool, String)]) -> String {
    for_both(|across| scatter_across(across, from, to, dots))
}

fn scatter_across(across: f64, from: u64, to: u64, dots: &[(u64, u64, bool, String)]) -> String {
    let (low, high) =
        dots.iter().fold((f64::MAX, 1.0f64), |(lo, hi), (_, d, ..)| (lo.min((*d).max(1000) as f64), hi.max((*d).max(1000) as f64)));
    let (low, high) = (10f64.powf(low.min(high).log10().floor()), 10f64.powf(high.log10().ceil()).max(1e6));
    let x = |time: u64| LEFT + (across - LEFT) * time.saturating_sub(from) as f64 / (to - from).max(1) as f64;
    let y = |d: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - (d.max(low) / low).log10() / (high / low).log10().max(1e-9));
    let mut svg = format!(
        r#"<svg class="chart" viewBox="0 0 {across} {HEIGHT}" role="img" aria-label="Duration of {} traces over time; the table below lists them">"#,
        dots.len()
    );
    let mut tick = low;
    while tick <= high * 1.001 {
        let at = y(tick);
        let _ = write!(svg, r#"<line class="grid" x1="{LEFT}" x2="{across}" y1="{at:.1}" y2="{at:.1}"/>"#);
        let label = match tick as u64 {
            ns @ 0..=999_999 => format!("{} µs", ns / 1000),
            ns @ 1_000_000..=999_999_999 => format!("{} ms", ns / 1_000_000),
            ns => format!("{} s", ns / 1_000_000_000),
        };
        let _ = write!(svg, r#"<text class="axis" x="{:.0}" y="{:.1}" text-anchor="end">{label}</text>"#, LEFT - 4.0, at + 3.5);
        tick *= 10.0;
    }
    time_axis(&mut svg, from, to, 4, HEIGHT, x);
    for (time, duration, error, id) in dots {
        let (cx, cy) = (x(*time), y(*duration as f64));
        let id = escape(id);
        // A cross, not only another colour, for what failed.
        let shape = if *error {
            format!(r#"<path class="dot bad" d="M{:.1} {:.1}l7 7m0-7l-7 7"/>"#, cx - 3.5, cy - 3.5)
        } else {
            format!(r#"<circle class="dot" cx="{cx:.1}" cy="{cy:.1}" r="3.2"/>"#)
        };
        let _ = write!(
            svg,
            r#"<a href="/traces/{id}" tabindex="-1"><title>{} at {}</title>{shape}</a>"#,
            times::span_of(*duration),
            times::clock(*time)
        );
    }
    svg.push_str("</svg>");
    svg
}

/// The bar of a span in a waterfall: where it lies within the trace, in thousandths.
pub fn waterfall_bar(start: f64, width: f64, class: &str) -> String {
    let width = width.max(2.0).min(1000.0 - start.min(998.0));
    format!(
        r#"<svg class="wf" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true"><rect class="{}" x="{:.2}" y="1" width="{width:.2}" height="8" rx="1"/></svg>"#,
        escape(class),
        start.min(998.0)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_in_a_round_number_above_its_values() {
        for (value, top) in [(0.0, 1.0), (0.93, 1.0), (7.2, 8.0), (101.0, 150.0), (1000.0, 1000.0)] {
            assert!((ceiling(value) - top).abs() < 1e-9, "{value}: {}", ceiling(value));
        }
    }

    #[test]
    fn a_chart_escapes_its_title() {
        assert!(!lines("<script>", "ms", 0, 10, 1, &[]).contains("<script>"));
    }
}
