//! Values as Python prints them: templates are written for it.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};
use serde_json::Value as Json;

/// A template value of a JSON value; objects keep their order.
pub(crate) fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (None, Some(u)) => Value::from(u),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(items) => items.iter().map(value_of).collect(),
        Json::Object(fields) => Value::from_pairs(fields.iter().map(|(k, v)| (k.as_str(), value_of(v)))),
    }
}

/// What `str` gives: nothing for an undefined value, `None`, `True`, lists with their parts' `repr`.
pub(crate) fn to_text(value: &Value) -> Result<String, Error> {
    if value.is_undefined() {
        return Ok(String::new());
    }
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Writer { out: String::new(), style: Style::Repr, depth: 0 }.finish(value),
    }
}

/// What `json.dumps(value, ensure_ascii=False, indent=indent)` gives.
pub(crate) fn to_json(value: &Value, indent: Option<usize>) -> Result<String, Error> {
    Writer { out: String::new(), style: Style::Json(indent), depth: 0 }.finish(value)
}

#[derive(Clone, Copy, PartialEq)]
enum Style {
    Repr,
    Json(Option<usize>),
}

struct Writer {
    out: String,
    style: Style,
    depth: usize,
}

/// Deeper values are refused: they cannot come from a file, whose parser stops at 128.
const DEEPEST: usize = 200;

impl Writer {
    fn finish(mut self, value: &Value) -> Result<String, Error> {
        self.write(value)?;
        Ok(self.out)
    }

    fn write(&mut self, value: &Value) -> Result<(), Error> {
        let json = matches!(self.style, Style::Json(_));
        match value.kind() {
            ValueKind::Undefined if json => {
                return Err(Error::new(
                    ErrorKind::UndefinedError,
                    "an undefined value cannot be written as JSON",
                ));
            }
            ValueKind::Undefined | ValueKind::None => self.out.push_str(if json { "null" } else { "None" }),
            ValueKind::Bool => self.out.push_str(match (value.is_true(), json) {
                (true, true) => "true",
                (false, true) => "false",
                (true, false) => "True",
                (false, false) => "False",
            }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                self.enter()?;
                let mut first = true;
                for key in value.try_iter()? {
                    self.separate(&mut first, '{');
                    let item = value.get_item(&key)?;
                    match key.as_str() {
                        Some(name) => self.string(name),
                        None => self.write(&key)?,
                    }
                    self.out.push_str(": ");
                    self.write(&item)?;
                }
                self.leave(first, '{', '}');
            }
            ValueKind::Seq | ValueKind::Iterable => {
                self.enter()?;
                let (open, close) = if value.is_tuple() && !json { ('(', ')') } else { ('[', ']') };
                let mut first = true;
                for item in value.try_iter()? {
                    self.separate(&mut first, open);
                    self.write(&item)?;
                }
                self.leave(first, open, close);
            }
            _ if json => {
                return Err(Error::new(ErrorKind::BadSerialization, "the value cannot be written as JSON"));
            }
            _ => self.out.push_str(&value.to_string()),
        }
        Ok(())
    }

    fn enter(&mut self) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Error::new(ErrorKind::InvalidOperation, "the value is nested too deeply"));
        }
        Ok(())
    }

    fn separate(&mut self, first: &mut bool, open: char) {
        let pretty = matches!(self.style, Style::Json(Some(_)));
        if *first {
            self.out.push(open);
        } else {
            self.out.push_str(if pretty { "," } else { ", " });
        }
        if pretty {
            self.new_line();
        }
        *first = false;
    }

    fn leave(&mut self, empty: bool, open: char, close: char) {
        self.depth -= 1;
        if empty {
            self.out.push(open);
        } else if matches!(self.style, Style::Json(Some(_))) {
            self.new_line();
        }
        self.out.push(close);
    }

    fn new_line(&mut self) {
        if let Style::Json(Some(indent)) = self.style {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * self.depth));
        }
    }

    fn number(&mut self, value: &Value) {
        if value.is_integer() {
            self.out.push_str(&value.to_string());
            return;
        }
        let x = f64::try_from(value.clone()).unwrap_or(f64::NAN);
        let json = self.style != Style::Repr;
        self.out.push_str(&match x {
            x if x.is_nan() => if json { "NaN" } else { "nan" }.to_owned(),
            x if x.is_infinite() => match (x > 0.0, json) {
                (true, true) => "Infinity",
                (false, true) => "-Infinity",
                (true, false) => "inf",
                (false, false) => "-inf",
            }
            .to_owned(),
            // Python's repr turns to exponents below 1e-4 and from 1e16 on, with two digits at least.
            x if x != 0.0 && !(1e-4..1e16).contains(&x.abs()) => {
                let text = format!("{x:e}");
                let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                let (sign, digits) =
                    exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
                format!("{mantissa}e{sign}{digits:0>2}")
            }
            x if x.fract() == 0.0 => format!("{x:.1}"),
            x => x.to_string(),
        });
    }

    fn string(&mut self, text: &str) {
        if self.style == Style::Repr {
            let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
            self.out.push(quote);
            for c in text.chars() {
                match c {
                    '\\' => self.out.push_str("\\\\"),
                    '\n' => self.out.push_str("\\n"),
                    '\r' => self.out.push_str("\\r"),
                    '\t' => self.out.push_str("\\t"),
                    c if c == quote => self.out.extend(['\\', c]),
                    c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                        self.out.push_str(&format!("\\x{:02x}", c as u32))
                    }
                    c => self.out.push(c),
                }
            }
            self.out.push(quote);
            return;
        }
        // serde_json escapes what Python's json does, and nothing else.
        self.out.push_str(&Json::String(text.to_owned()).to_string());
    }
}

/// What `strftime` gives for a moment in UTC, in seconds since 1970, in English.
pub(crate) fn strftime(format: &str, now: i64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    let (days, seconds) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, day, day_of_year) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let week_day = (days + 4).rem_euclid(7) as usize;
    let hour12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let bare = code == Some('-');
        if bare {
            code = chars.next();
        }
        let two = |n: i64| {
            if bare { n.to_string() } else { format!("{n:02}") }
        };
        out.push_str(&match code {
            Some('Y') => year.to_string(),
            Some('y') => two(year.rem_euclid(100)),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('j') => {
                if bare {
                    day_of_year.to_string()
                } else {
                    format!("{day_of_year:03}")
                }
            }
            Some('H') => two(hour),
            Some('I') => two(hour12),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('B') => MONTHS[month as usize - 1].to_owned(),
            Some('b' | 'h') => MONTHS[month as usize - 1][..3].to_owned(),
            Some('A') => DAYS[week_day].to_owned(),
            Some('a') => DAYS[week_day][..3].to_owned(),
            Some('w') => week_day.to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('s') => now.to_string(),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let code = other.map(String::from).unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("`strftime_now` does not know `%{code}`"),
                ));
            }
        });
    }
    Ok(out)
}

/// Year, month, day and day of the year of a day counted from 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64, i64) {
    // Years counted from March, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let from_march = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * from_march + 2) / 153;
    let day = from_march - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let leap = i64::from(year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
    let day_of_year = if month <= 2 { from_march - 305 } else { from_march + 60 + leap };
    (year, month, day, day_of_year)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn as_python_prints() {
        let v = value_of(&json!({"b": [1, 2.0, null, true], "a": "it's \"é\" <&>", "c": {}, "d": []}));
        assert_eq!(
            to_json(&v, None).unwrap(),
            r#"{"b": [1, 2.0, null, true], "a": "it's \"é\" <&>", "c": {}, "d": []}"#
        );
        assert_eq!(
            to_text(&v).unwrap(),
            r#"{'b': [1, 2.0, None, True], 'a': 'it\'s "é" <&>', 'c': {}, 'd': []}"#
        );
        assert_eq!(
            to_json(&value_of(&json!({"a": [1, {"x": []}]})), Some(2)).unwrap(),
            "{\n  \"a\": [\n    1,\n    {\n      \"x\": []\n    }\n  ]\n}"
        );
        assert_eq!(to_text(&Value::UNDEFINED).unwrap(), "");
        for (x, text) in
            [(1e16, "1e+16"), (1e-5, "1e-05"), (0.1, "0.1"), (1.5e300, "1.5e+300"), (123456.0, "123456.0")]
        {
            assert_eq!(to_json(&Value::from(x), None).unwrap(), text);
        }
    }

    #[test]
    fn dates() {
        let at = |f: &str, now| strftime(f, now).unwrap();
        assert_eq!(at("%d %b %Y", 1_721_952_000), "26 Jul 2024");
        assert_eq!(at("%A %-d %B %Y %H:%M:%S %j", 951_868_799), "Tuesday 29 February 2000 23:59:59 060");
        assert_eq!(at("%F %j %I %p", 0), "1970-01-01 001 12 AM");
        assert_eq!(at("%F %j", -86_400), "1969-12-31 365");
        assert_eq!(at("%F %j", 951_868_800), "2000-03-01 061");
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err());
    }
}
