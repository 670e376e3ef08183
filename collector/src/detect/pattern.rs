//! The *pattern* of a log line: what its statement says, without what varies.

/// Patterns are cut here: what tells one log statement from another stands in front.
const PATTERN_BYTES_MAX: usize = 120;

/// A log line without what varies: every word that holds a digit is `#`. Words end at white space and at these signs.
const SEPARATORS: &[u8] = b"[](){},:;=\"'|/";

/// What a byte of a log line is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Word,
    Digit,
    Separator,
    Space,
}

const SIGNS: [Sign; 128] = {
    let mut signs = [Sign::Word; 128];
    let mut at = 0;
    while at < SEPARATORS.len() {
        signs[SEPARATORS[at] as usize] = Sign::Separator;
        at += 1;
    }
    let mut at = b'0';
    while at <= b'9' {
        signs[at as usize] = Sign::Digit;
        at += 1;
    }
    let mut at = 0x09;
    while at <= 0x0d {
        signs[at] = Sign::Space;
        at += 1;
    }
    signs[b' ' as usize] = Sign::Space;
    signs
};

fn sign_of(c: char) -> Sign {
    match SIGNS.get(c as usize) {
        Some(sign) => *sign,
        None if c.is_whitespace() => Sign::Space,
        None => Sign::Word,
    }
}

/// The pattern of a log line, into `out`. Nearly all of them are ASCII, which goes byte by byte through a fixed room: at a million lines a
/// second this is a good part of what detection costs.
pub fn pattern(body: &[u8], out: &mut String) {
    out.clear();
    // A word may follow when `PATTERN_BYTES_MAX` is just not reached, and is cut there too.
    let mut room = [0u8; 2 * PATTERN_BYTES_MAX + 2];
    let (mut len, mut word, mut digits) = (0, 0, false);
    for &byte in body {
        let Some(sign) = SIGNS.get(usize::from(byte)) else { return pattern_of_any(&String::from_utf8_lossy(body), out) };
        match sign {
            Sign::Word | Sign::Digit => {
                digits |= *sign == Sign::Digit;
                if len - word < PATTERN_BYTES_MAX {
                    room[len] = byte;
                    len += 1;
                }
            }
            Sign::Separator | Sign::Space => {
                if digits {
                    len = word;
                    if len == 0 || room[len - 1] != b'#' {
                        room[len] = b'#';
                        len += 1;
                    }
                }
                room[len] = if *sign == Sign::Space { b' ' } else { byte };
                len += 1;
                (word, digits) = (len, false);
                if word > PATTERN_BYTES_MAX {
                    break;
                }
            }
        }
    }
    if digits {
        len = word;
        room[len] = b'#';
        len += 1;
    }
    out.push_str(std::str::from_utf8(&room[..len]).expect("it is ASCII"));
}

/// The same for any text, character by character.
fn pattern_of_any(body: &str, out: &mut String) {
    out.clear();
    let (mut word, mut digits) = (0, false);
    for c in body.chars() {
        let sign = sign_of(c);
        match sign {
            Sign::Word | Sign::Digit => {
                digits |= sign == Sign::Digit;
                if out.len() - word < PATTERN_BYTES_MAX {
                    out.push(c);
                }
            }
            Sign::Separator | Sign::Space => {
                if digits {
                    out.truncate(word);
                    if !out.ends_with('#') {
                        out.push('#');
                    }
                }
                out.push(if sign == Sign::Space { ' ' } else { c });
                (word, digits) = (out.len(), false);
                if word > PATTERN_BYTES_MAX {
                    return;
                }
            }
        }
    }
    if digits {
        out.truncate(word);
        out.push('#');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_pattern_is_the_same_byte_by_byte_and_character_by_character(body in "([a-z#]{0,9}[0-9]{0,3}[ \\[:/\t]){0,40}[a-z0-9]{0,300}") {
            let (mut fast, mut slow) = (String::new(), String::new());
            pattern(body.as_bytes(), &mut fast);
            pattern_of_any(&body, &mut slow);
            prop_assert_eq!(fast, slow);
        }
    }

    #[test]
    fn a_pattern_keeps_what_a_statement_says_and_drops_what_varies() {
        let mut out = String::new();
        for (body, expected) in [
            ("order 4711 failed after 3 attempts", "order # failed after # attempts"),
            ("[getTickets][time：0  time: Sat]", "[getTickets][#  time: Sat]"),
            ("GET /api/v1/orders/17?x=2", "GET /api/#/orders/#=#"),
            ("plain words", "plain words"),
        ] {
            pattern(body.as_bytes(), &mut out);
            assert_eq!(out, expected, "{body}");
        }
    }
}
