//! Sizes in bytes as people write them: `6GiB`, `512MiB`, `5GB`, `4096`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The units, the larger before the smaller; a power of 1024 where there is an `i`.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(
    /// The number.
    pub u64,
);

impl Bytes {
    /// Reads `6GiB`, `1.5 GB`, `4096`; units in any case.
    ///
    /// # Errors
    /// A sentence that says what is allowed.
    pub fn parse(text: &str) -> Result<Bytes, String> {
        let trimmed = text.trim();
        let at = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(trimmed.len());
        let (number, unit) = (trimmed[..at].replace('_', ""), trimmed[at..].trim());
        let scale = match unit {
            "" => 1,
            _ => match UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
                Some((_, scale)) => *scale,
                None => {
                    return Err(format!("expected a size such as `6GiB`, `512MiB` or `5GB`, found `{text}`"));
                }
            },
        };
        let whole = match number.parse::<u64>() {
            Ok(n) => n.checked_mul(scale),
            Err(_) => match number.parse::<f64>() {
                Ok(n) if number.contains('.') => {
                    Some(n * scale as f64).filter(|b| *b < 9e18).map(|b| b as u64)
                }
                _ => {
                    return Err(format!("expected a size such as `6GiB`, `512MiB` or `5GB`, found `{text}`"));
                }
            },
        };
        // TOML integers end at 2⁶³ − 1, and so does what can be written out again.
        match whole.filter(|n| *n <= i64::MAX as u64) {
            Some(0) => Err("must be more than 0 bytes".into()),
            Some(n) => Ok(Bytes(n)),
            None => Err(format!("`{text}` is more than any machine has")),
        }
    }
}

impl fmt::Display for Bytes {
    /// The shortest text that gives the same number: `6GiB`, `5GB`, `1234`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, scale)| *scale > 1 && self.0 >= *scale && self.0.is_multiple_of(*scale))
        {
            Some((unit, scale)) => write!(f, "{}{unit}", self.0 / scale),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as `6GiB`, `512MiB` or `5GB`")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Bytes, E> {
                Bytes::parse(text).map_err(E::custom)
            }
            fn visit_u64<E: Error>(self, n: u64) -> Result<Bytes, E> {
                Bytes::parse(&n.to_string()).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Size)
    }
}

impl JsonSchema for Bytes {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of bytes: `6GiB`, `512MiB`, `5GB` or a plain number.",
            "oneOf": [
                { "type": "integer", "minimum": 1 },
                { "type": "string", "pattern": "^\\s*[0-9][0-9_.]*\\s*([kKmMgGtT]([iI])?)?[bB]?\\s*$" },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        let cases =
            [("6GiB", 6 << 30), ("512 mib", 512 << 20), ("5GB", 5_000_000_000), ("1.5KiB", 1536), ("7", 7)];
        for (text, bytes) in cases {
            assert_eq!(Bytes::parse(text), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "6 gigs", "-1", "0", "GiB", "1e3", "99999999999TiB", "1.2.3GB", "9e99GiB"] {
            assert!(Bytes::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn writes_what_it_reads(n in 1..=i64::MAX as u64) {
            prop_assert_eq!(Bytes::parse(&Bytes(n).to_string()), Ok(Bytes(n)));
        }
    }
}
