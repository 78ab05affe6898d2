//! Dates as S3 writes and reads them: HTTP dates, XML timestamps, signature dates.
//!
//! Everything counts whole seconds since 1970 (UTC); milliseconds of commit times are cut, so that
//! headers, XML and conditions speak of the same instant.

/// Seconds since 1970 (UTC).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub i64);

struct Civil {
    year: i64,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
    weekday: u8,
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const DAY_S: i64 = 86_400;

/// Days since 1970 of a date of the proleptic Gregorian calendar (Hinnant, "chrono-compatible
/// low-level date algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

impl Seconds {
    /// Cuts milliseconds since 1970 to seconds.
    pub fn from_millis(milliseconds: u64) -> Self {
        Seconds((milliseconds / 1000) as i64)
    }

    fn civil(self) -> Civil {
        let days = self.0.div_euclid(DAY_S);
        let rest = self.0.rem_euclid(DAY_S);
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let of_era = shifted - era * 146_097;
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * of_year + 2) / 153;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        Civil {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as u8,
            day: (of_year - (153 * shifted_month + 2) / 5 + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
            weekday: days.rem_euclid(7) as u8,
        }
    }

    /// Writes `Wed, 21 Oct 2015 07:28:00 GMT` (RFC 9110, IMF-fixdate).
    pub fn http(self) -> String {
        let c = self.civil();
        format!(
            "{}, {:02} {} {:04} {:02}:{:02}:{:02} GMT",
            WEEKDAYS[usize::from(c.weekday)],
            c.day,
            MONTHS[usize::from(c.month - 1)],
            c.year,
            c.hour,
            c.minute,
            c.second
        )
    }

    /// Writes `2015-10-21T07:28:00.000Z` as S3's XML does. Years outside 0 to 9999 do not occur.
    pub fn xml(self) -> [u8; 24] {
        let c = self.civil();
        let mut out = *b"0000-00-00T00:00:00.000Z";
        let mut put = |at: usize, value: u8| {
            out[at] = b'0' + value / 10;
            out[at + 1] = b'0' + value % 10;
        };
        put(0, (c.year / 100 % 100) as u8);
        put(2, (c.year % 100) as u8);
        put(5, c.month);
        put(8, c.day);
        put(11, c.hour);
        put(14, c.minute);
        put(17, c.second);
        out
    }

    /// Writes `20151021T072800Z` as signatures do.
    pub fn amz(self) -> String {
        let c = self.civil();
        format!("{:04}{:02}{:02}T{:02}{:02}{:02}Z", c.year, c.month, c.day, c.hour, c.minute, c.second)
    }

    fn checked(year: i64, month: i64, day: i64, hour: i64, minute: i64, second: i64) -> Option<Self> {
        let fits = (0..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && (0..24).contains(&hour)
            && (0..60).contains(&minute)
            && (0..=60).contains(&second);
        if !fits {
            return None;
        }
        let at = Seconds(days_from_civil(year, month, day) * DAY_S + hour * 3600 + minute * 60 + second.min(59));
        // A day that the month does not have would come back as another date.
        let back = at.civil();
        (i64::from(back.day) == day && i64::from(back.month) == month).then_some(at)
    }

    /// Reads a signature date, `20151021T072800Z`.
    pub fn parse_amz(text: &str) -> Option<Self> {
        let b = text.as_bytes();
        if b.len() != 16 || b[8] != b'T' || b[15] != b'Z' {
            return None;
        }
        let n = |from: usize, to: usize| number(&b[from..to]);
        Self::checked(n(0, 4)?, n(4, 6)?, n(6, 8)?, n(9, 11)?, n(11, 13)?, n(13, 15)?)
    }

    /// Reads an HTTP date in any of the three forms of RFC 9110, section 5.6.7.
    pub fn parse_http(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split([' ', '-', ',']).filter(|word| !word.is_empty()).collect();
        let month = |word: &str| MONTHS.iter().position(|name| name.eq_ignore_ascii_case(word)).map(|at| at as i64 + 1);
        let clock = |word: &str| {
            let mut fields = word.split(':').map(|field| number(field.as_bytes()));
            Some((fields.next()??, fields.next()??, fields.next()??)).filter(|_| fields.next().is_none())
        };
        match words.as_slice() {
            [_, day, name, year, time, "GMT" | "UTC"] => {
                let short = number(year.as_bytes())?;
                let year = match year.len() {
                    4 => short,
                    2 if short < 70 => short + 2000,
                    2 => short + 1900,
                    _ => return None,
                };
                let (hour, minute, second) = clock(time)?;
                Self::checked(year, month(name)?, number(day.as_bytes())?, hour, minute, second)
            }
            [_, name, day, time, year] if year.len() == 4 => {
                let (hour, minute, second) = clock(time)?;
                let (year, day) = (number(year.as_bytes())?, number(day.as_bytes())?);
                Self::checked(year, month(name)?, day, hour, minute, second)
            }
            _ => None,
        }
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() || digits.len() > 4 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AT: Seconds = Seconds(1_445_412_480);

    #[test]
    fn t1_headers_and_xml_show_the_same_instant() {
        assert_eq!(AT.http(), "Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(&AT.xml(), b"2015-10-21T07:28:00.000Z");
        assert_eq!(AT.amz(), "20151021T072800Z");
        assert_eq!(Seconds::from_millis(1_445_412_480_999), AT);
    }

    #[test]
    fn all_three_http_forms_are_read() {
        for text in ["Wed, 21 Oct 2015 07:28:00 GMT", "Wednesday, 21-Oct-15 07:28:00 GMT", "Wed Oct 21 07:28:00 2015"] {
            assert_eq!(Seconds::parse_http(text), Some(AT), "{text}");
        }
        for text in ["", "yesterday", "Wed, 31 Feb 2015 07:28:00 GMT", "Wed, 21 Oct 2015 24:28:00 GMT"] {
            assert_eq!(Seconds::parse_http(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn dates_survive_their_printed_forms(seconds in 0i64..253_402_300_799) {
            let at = Seconds(seconds);
            prop_assert_eq!(Seconds::parse_http(&at.http()), Some(at));
            prop_assert_eq!(Seconds::parse_amz(&at.amz()), Some(at));
            // The reference: the `time` crate.
            let reference = time::OffsetDateTime::from_unix_timestamp(seconds).expect("in range");
            let xml = String::from_utf8(at.xml().to_vec()).expect("ASCII");
            let want = format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.000Z", reference.year(), u8::from(reference.month()),
                reference.day(), reference.hour(), reference.minute(), reference.second());
            prop_assert_eq!(xml, want);
        }

        #[test]
        fn any_text_is_a_date_or_none(text in ".{0,40}") {
            let _ = (Seconds::parse_http(&text), Seconds::parse_amz(&text));
        }
    }
}
