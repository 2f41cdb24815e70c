//! Times of events: RFC 3339 in UTC, as most senders write them.

/// Milliseconds since 1970 of a time like `2026-11-21T03:00:00.123456Z`, or with `+00:00`. None for
/// any other spelling.
pub fn time_of(text: &[u8]) -> Option<i64> {
    if text.len() < 20
        || (text[4], text[7], text[10], text[13], text[16]) != (b'-', b'-', b'T', b':', b':')
    {
        return None;
    }
    let (year, month, day) =
        (digits_of(&text[..4])?, digits_of(&text[5..7])?, digits_of(&text[8..10])?);
    let (hour, minute, second) =
        (digits_of(&text[11..13])?, digits_of(&text[14..16])?, digits_of(&text[17..19])?);
    let mut rest = &text[19..];
    let mut below_ms = 0;
    if rest[0] == b'.' {
        let count = rest[1..].iter().take_while(|b| b.is_ascii_digit()).count();
        if !(1..=6).contains(&count) {
            return None;
        }
        for place in 0..3 {
            let digit = if place < count { rest[1 + place] - b'0' } else { 0 };
            below_ms = below_ms * 10 + i64::from(digit);
        }
        rest = &rest[1 + count..];
    }
    let is_plain = (rest == b"Z" || rest == b"+00:00")
        && year >= 1970
        && (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    is_plain.then(|| {
        let seconds = days_before(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
        seconds * 1000 + below_ms
    })
}

fn digits_of(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |number, byte| {
        byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0'))
    })
}

fn is_leap(year: i64) -> bool {
    (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, from 1970 on.
///
/// Source: H. Hinnant, chrono-compatible low-level date algorithms, `days_from_civil`.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year / 400;
    let year_of_era = year % 400;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}
