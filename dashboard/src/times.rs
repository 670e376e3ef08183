//! Times as people and programs write them, and as pages print them.

use std::time::{SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const SECOND: u64 = 1_000_000_000;

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// RFC 3339, Unix seconds (also fractional), 13-digit milliseconds, or `now-15m`. Nanoseconds.
pub fn parse(text: &str, now: u64) -> Result<u64, String> {
    let text = text.trim();
    let wrong = || format!("{text:?} is not a time; write 2026-01-31T12:00:00Z, Unix seconds, milliseconds, or now-15m");
    if text == "now" {
        return Ok(now);
    }
    if let Some(rest) = text.strip_prefix("now") {
        let ago = duration(rest.get(1..).unwrap_or("")).map_err(|_| wrong())?;
        return match rest.as_bytes()[0] {
            b'-' => Ok(now.saturating_sub(ago)),
            b'+' => Ok(now.saturating_add(ago)),
            _ => Err(wrong()),
        };
    }
    if let Ok(number) = text.parse::<u64>() {
        return Ok(match text.len() {
            19.. => number,
            16..=18 => number.saturating_mul(1_000),
            13..=15 => number.saturating_mul(1_000_000),
            _ => number.saturating_mul(SECOND),
        });
    }
    if let Some((whole, fraction)) = text.split_once('.')
        && let Ok(seconds) = whole.parse::<u64>()
        && !fraction.is_empty()
        && fraction.bytes().all(|b| b.is_ascii_digit())
    {
        let nanos: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        return Ok(seconds.saturating_mul(SECOND).saturating_add(nanos.parse().map_err(|_| wrong())?));
    }
    let parsed = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| wrong())?;
    u64::try_from(parsed.unix_timestamp_nanos()).map_err(|_| wrong())
}

/// `250ms`, `1.5s`, `2m`, or plain nanoseconds.
pub fn duration(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let wrong = || format!("{text:?} is not a duration; write 250ms, 1.5s or 2m");
    let at = text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor = match unit {
        "" | "ns" => 1.0,
        "us" | "µs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" | "min" => 60e9,
        "h" => 3600e9,
        "d" => 86_400e9,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    if number.is_finite() && number >= 0.0 { Ok((number * factor) as u64) } else { Err(wrong()) }
}

/// RFC 3339 in UTC with nanoseconds.
pub fn rfc3339(nanos: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.nanosecond()
    )
}

/// `03:02:51.204`, for rows of a table.
pub fn clock(nanos: u64) -> String {
    rfc3339(nanos)[11..23].to_owned()
}

/// A time below an axis that spans so many nanoseconds: `03:02:51`, `03:02`, or `Nov 23`.
pub fn axis(nanos: u64, span: u64) -> String {
    match span / SECOND {
        0..=599 => rfc3339(nanos)[11..19].to_owned(),
        600..=172_799 => rfc3339(nanos)[11..16].to_owned(),
        _ => day(nanos),
    }
}

/// `Nov 23`.
fn day(nanos: u64) -> String {
    let text = rfc3339(nanos);
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month: usize = text[5..7].parse().unwrap_or(1);
    format!("{} {}", months[month - 1], text[8..10].trim_start_matches('0'))
}

/// `Nov 23, 03:02:51`.
pub fn day_and_clock(nanos: u64) -> String {
    format!("{}, {} UTC", day(nanos), &rfc3339(nanos)[11..19])
}

/// `4 s`, `3 min`, `2 h`, `5 d`.
pub fn ago(nanos: u64) -> String {
    match nanos / SECOND {
        s @ 0..=99 => format!("{s} s"),
        s @ 100..=5999 => format!("{} min", s / 60),
        s @ 6000..=172_799 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// `820 ns`, `1.2 ms`, `3.40 s`.
pub fn span_of(nanos: u64) -> String {
    let n = nanos as f64;
    match nanos {
        0..=999 => format!("{nanos} ns"),
        1_000..=999_999 => format!("{:.0} µs", n / 1e3),
        1_000_000..=9_999_999 => format!("{:.2} ms", n / 1e6),
        10_000_000..=99_999_999 => format!("{:.1} ms", n / 1e6),
        100_000_000..=999_999_999 => format!("{:.0} ms", n / 1e6),
        1_000_000_000..=59_999_999_999 => format!("{:.2} s", n / 1e9),
        _ => format!("{:.1} min", n / 60e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_form_of_the_contract() {
        let now = 1_800_000_000 * SECOND;
        let check = |text: &str, expected: u64| assert_eq!(parse(text, now), Ok(expected), "{text}");
        check("now-15m", now - 900 * SECOND);
        check("1700000000", 1_700_000_000 * SECOND);
        check("1700000000.25", 1_700_000_000 * SECOND + SECOND / 4);
        check("1700000000250", 1_700_000_000 * SECOND + SECOND / 4);
        check("2023-11-14T22:13:20Z", 1_700_000_000 * SECOND);
        check("2023-11-14T23:13:20.5+01:00", 1_700_000_000 * SECOND + SECOND / 2);
        assert!(parse("yesterday", now).is_err() && parse("now*3", now).is_err() && parse("now-", now).is_err());
        assert_eq!(rfc3339(1_700_000_000 * SECOND + 5), "2023-11-14T22:13:20.000000005Z");
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(duration("250ms"), Ok(250_000_000));
        assert_eq!(duration("1.5s"), Ok(1_500_000_000));
        assert!(duration("fast").is_err() && duration("-1s").is_err());
    }
}
