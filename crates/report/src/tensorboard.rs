//! TensorBoard event files, written by hand.
//!
//! ```text
//! record:  u64 length | u32 crc(length) | bytes | u32 crc(bytes)       crc: masked CRC-32C
//! Event:   1 wall_time double | 2 step int64 | 3 file_version string | 5 Summary
//! Summary: 1 repeated Value{1 tag string | 2 simple_value float}
//! ```
//!
//! Format: TensorFlow's `record_writer.cc`, `event.proto` and `summary.proto`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use ramekin_core::Category;
use serde_json::Value;

use crate::metrics::{EvalLine, StepLine};

/// Writes one event file; TensorBoard reads all of a folder together.
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Makes a new event file in `dir`, named by time and process as TensorBoard expects.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn create(dir: impl AsRef<Path>) -> Result<Self> {
        let seconds = now() as u64;
        let stem = format!("events.out.tfevents.{seconds:010}.ramekin.{}", std::process::id());
        // Two writers within a second must not share a file.
        let path = (0..)
            .map(|n| dir.as_ref().join(format!("{stem}.{n}")))
            .find(|p| !p.exists())
            .context("no free file name")?;
        let file = File::create_new(&path).with_context(|| format!("cannot make `{}`", path.display()))?;
        let mut writer = EventWriter { path, file };
        let mut event = Vec::new();
        put_double(&mut event, 1, now());
        put_bytes(&mut event, 3, b"brain.Event:2");
        writer.put(&event)?;
        Ok(writer)
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a step: `train/loss`, `train/learning_rate`, `train/grad_norm`,
    /// `train/tokens_per_s`, `mem/CATEGORY`, `mem/peak` and `mem/rss` (bytes),
    /// and the line's own figures as `train/NAME`. `step` counts over all stages.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn step(&mut self, step: u64, line: &StepLine) -> Result<()> {
        let mut values = vec![
            ("train/loss".to_owned(), line.loss),
            ("train/learning_rate".to_owned(), line.lr),
            ("train/grad_norm".to_owned(), line.grad_norm),
            ("train/tokens_per_s".to_owned(), line.tokens_per_s),
        ];
        let usage = line.mem.usage();
        for category in Category::ALL {
            values.push((format!("mem/{}", category.name()), usage.get(category) as f64));
        }
        values.push(("mem/peak".to_owned(), line.mem.peak as f64));
        values.push(("mem/rss".to_owned(), line.mem.rss as f64));
        values.extend(numbers("train", &line.extra));
        self.scalars(step, &values)
    }

    /// Adds an evaluation: each metric as `eval/NAME`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn eval(&mut self, step: u64, line: &EvalLine) -> Result<()> {
        self.scalars(step, &numbers("eval", &line.eval).collect::<Vec<_>>())
    }

    /// Adds numbers by tag; NaN is written, as TensorBoard shows it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut one = Vec::new();
            put_bytes(&mut one, 1, tag.as_bytes());
            put_key(&mut one, 2, 5);
            one.extend((*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &one);
        }
        let mut event = Vec::new();
        put_double(&mut event, 1, now());
        put_key(&mut event, 2, 0);
        put_varint(&mut event, step);
        put_bytes(&mut event, 5, &summary);
        self.put(&event)
    }

    fn put(&mut self, event: &[u8]) -> Result<()> {
        let record = record(event);
        self.file.write_all(&record).with_context(|| {
            format!("cannot write `{}`, which needed {} bytes", self.path.display(), record.len())
        })
    }
}

fn numbers(prefix: &str, map: &serde_json::Map<String, Value>) -> impl Iterator<Item = (String, f64)> {
    map.iter().filter_map(move |(k, v)| Some((format!("{prefix}/{k}"), v.as_f64()?)))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked(data).to_le_bytes());
    out
}

/// A CRC turned and shifted, so that a CRC over data with CRCs stays a good one.
fn masked(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected, by a table of one byte.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = i as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !data.iter().fold(!0, |crc, byte| (crc >> 8) ^ TABLE[((crc ^ u32::from(*byte)) & 255) as usize])
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_key(out: &mut Vec<u8>, field: u64, wire: u64) {
    put_varint(out, field << 3 | wire);
}

fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_key(out, field, 1);
    out.extend(value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    put_key(out, field, 2);
    put_varint(out, value.len() as u64);
    out.extend(value);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::metrics::Mem;

    #[test]
    fn known_checksums() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(masked(b""), 0xa282_ead8);
    }

    fn varint(data: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = data[0];
            *data = &data[1..];
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                break;
            }
        }
        value
    }

    /// The fields of a message: number and payload (fixed and length-delimited as bytes).
    fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        while !data.is_empty() {
            let key = varint(&mut data);
            let size = match key & 7 {
                0 => {
                    out.push((key >> 3, varint(&mut data).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut data) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            out.push((key >> 3, data[..size].to_vec()));
            data = &data[size..];
        }
        out
    }

    fn records(mut data: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while !data.is_empty() {
            let word = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
            let length = u64::from_le_bytes(data[..8].try_into().unwrap()) as usize;
            assert_eq!(word(8), masked(&data[..8]));
            let body = &data[12..12 + length];
            assert_eq!(word(12 + length), masked(body));
            out.push(body.to_vec());
            data = &data[16 + length..];
        }
        out
    }

    #[test]
    fn decoded_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path()).unwrap();
        let other = EventWriter::create(dir.path()).unwrap();
        assert_ne!(writer.path(), other.path());
        let mem = Mem { weights: 1 << 20, rss: 7, ..Mem::default() };
        let mut line = StepLine { loss: 1.5, lr: 1e-3, mem, ..StepLine::default() };
        line.grad_norm = f64::NAN;
        writer.step(300, &line).unwrap();
        let eval = json!({"loss": 0.25, "note": "text"}).as_object().unwrap().clone();
        writer.eval(300, &EvalLine { stage: 0, step: 300, eval }).unwrap();
        writer.scalars(1, &[]).unwrap();

        let records = records(&std::fs::read(writer.path()).unwrap());
        assert_eq!(records.len(), 3);
        assert_eq!(fields(&records[0])[1], (3, b"brain.Event:2".to_vec()));
        let event = fields(&records[1]);
        assert_eq!(event[1], (2, 300u64.to_le_bytes().to_vec()));
        let mut values = Vec::new();
        for record in &records[1..] {
            for (_, value) in fields(&fields(record)[2].1) {
                let value = fields(&value);
                let tag = String::from_utf8(value[0].1.clone()).unwrap();
                values.push((tag, f32::from_le_bytes(value[1].1.clone().try_into().unwrap())));
            }
        }
        let get = |tag: &str| values.iter().find(|(t, _)| t == tag).map(|(_, v)| *v);
        assert_eq!(get("train/loss"), Some(1.5));
        assert_eq!(get("train/learning_rate"), Some(1e-3));
        assert!(get("train/grad_norm").unwrap().is_nan());
        assert_eq!(get("mem/weights"), Some(1048576.0));
        assert_eq!(get("mem/rss"), Some(7.0));
        assert_eq!(get("eval/loss"), Some(0.25));
        assert_eq!(get("eval/note"), None);
    }
}
