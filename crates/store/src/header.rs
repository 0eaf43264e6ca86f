//! The header of a safetensors file, read with suspicion.
//!
//! ```text
//! u64 little endian: N | N bytes of JSON {name: {dtype, shape, data_offsets}} | data
//! ```
//!
//! Nothing that the header says is used before it agrees with the file: lengths,
//! offsets without gaps or overlaps, dtype × shape against bytes, unique names.
//! Format: <https://github.com/huggingface/safetensors>.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ramekin_core::UserError;
use safetensors::Dtype;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

/// The largest header that is believed, in bytes; the public library's limit.
pub const MAX_HEADER: u64 = 100_000_000;

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its number type on disk.
    pub dtype: Dtype,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The file that holds it.
    pub file: PathBuf,
    /// Its first byte, counted from the file's start.
    pub offset: u64,
    /// How many bytes it has.
    pub bytes: u64,
}

impl TensorInfo {
    /// How many numbers it has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no numbers at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a safetensors file holds.
#[derive(Clone, Debug)]
pub struct Header {
    /// Name and place of each tensor, in file order.
    pub tensors: Vec<(String, TensorInfo)>,
    /// The free text entries of `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

impl Header {
    /// Reads and checks a file's header, nothing else of the file.
    ///
    /// # Errors
    /// [`UserError`] naming the file and the tensor where the header is broken or lies.
    pub fn read(path: &Path) -> Result<Header> {
        let file = File::open(path).map_err(|e| wrong(path, format!("cannot be opened: {e}")))?;
        Self::read_open(path, &file)
    }

    pub(crate) fn read_open(path: &Path, mut file: &File) -> Result<Header> {
        let length = file.metadata().with_context(|| format!("`{}`", path.display()))?.len();
        let mut prefix = [0; 8];
        if length < 8 {
            let what = format!("is too short for a safetensors file: {length} bytes");
            return Err(wrong(path, what).into());
        }
        let reading = || format!("cannot read the header of `{}`", path.display());
        file.read_exact(&mut prefix).with_context(reading)?;
        let said = u64::from_le_bytes(prefix);
        let lfs = &prefix == b"version ";
        if said > length - 8 || said > MAX_HEADER {
            let what = if lfs {
                "is no safetensors file but a Git LFS pointer to one".into()
            } else if said > length - 8 {
                format!("says that its header has {said} bytes, but only {} follow", length - 8)
            } else {
                format!("says that its header has {said} bytes; at most {MAX_HEADER} are allowed")
            };
            let help = if lfs {
                "fetch the real file with `git lfs pull`"
            } else {
                "the file is cut off or not safetensors: fetch or save it again"
            };
            return Err(wrong(path, what).help(help).into());
        }
        // `said` is at most the file's own length, so this allocation is honest.
        let mut json = vec![0; said as usize];
        file.read_exact(&mut json).with_context(reading)?;
        Ok(Self::parse(path, &json, length - 8 - said)?)
    }

    /// Checks the header's JSON against `data` bytes that follow it; `path` is
    /// for messages and for [`TensorInfo::file`].
    ///
    /// # Errors
    /// As [`Header::read`].
    pub fn parse(path: &Path, json: &[u8], data: u64) -> Result<Header, UserError> {
        let wrong = |what: String| wrong(path, what);
        let raw: RawHeader = serde_json::from_slice(json)
            .map_err(|e| wrong(format!("has a header that cannot be understood: {e}")))?;
        let start = 8 + json.len() as u64;
        let mut tensors = Vec::with_capacity(raw.tensors.len());
        for (name, raw) in raw.tensors {
            let info = check(path, start, data, raw)
                .map_err(|what| wrong(format!("lies about tensor `{name}`: {what}")))?;
            tensors.push((name, info));
        }
        tensors.sort_by(|(a, x), (b, y)| (x.offset, x.bytes, a).cmp(&(y.offset, y.bytes, b)));
        let mut end = start;
        for (i, (name, info)) in tensors.iter().enumerate() {
            let before = if i == 0 { "the header" } else { tensors[i - 1].0.as_str() };
            if info.offset < end {
                return Err(wrong(format!(
                    "has tensors `{before}` and `{name}` that share {} bytes",
                    end - info.offset
                )));
            }
            if info.offset > end {
                return Err(wrong(format!(
                    "has {} bytes that belong to no tensor between `{before}` and `{name}`",
                    info.offset - end
                )));
            }
            end += info.bytes;
        }
        if end - start != data {
            let extra = data - (end - start);
            return Err(wrong(format!("has {extra} bytes after its last tensor")));
        }
        Ok(Header { tensors, metadata: raw.metadata })
    }
}

fn wrong(path: &Path, what: impl fmt::Display) -> UserError {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    UserError::new(format!("`{name}` {what}")).in_file(path)
}

/// One entry against the data that is there; every sum is a checked one.
fn check(path: &Path, start: u64, data: u64, raw: RawTensor) -> Result<TensorInfo, String> {
    let RawTensor { dtype: name, shape, data_offsets: (from, to) } = raw;
    let dtype = parse_dtype(&name).ok_or_else(|| format!("`{name}` is no dtype"))?;
    if from > to {
        return Err(format!("its data ends at {to}, before its start at {from}"));
    }
    if to > data {
        return Err(format!("its data ends at byte {to}; the file holds {data} bytes of data"));
    }
    let bits = shape
        .iter()
        .try_fold(dtype.bitsize() as u64, |n, d| n.checked_mul(*d))
        .ok_or_else(|| format!("the shape {shape:?} has more bytes than can be counted"))?;
    if bits % 8 != 0 || bits / 8 != to - from {
        let want = bits.div_ceil(8);
        return Err(format!("{name} {shape:?} needs {want} bytes, its data has {}", to - from));
    }
    let shape = shape
        .iter()
        .map(|d| usize::try_from(*d))
        .collect::<Result<_, _>>()
        .map_err(|_| format!("the shape {shape:?} is too large for this machine"))?;
    Ok(TensorInfo { dtype, shape, file: path.to_owned(), offset: start + from, bytes: to - from })
}

/// The dtype of this name in safetensors files.
pub fn parse_dtype(name: &str) -> Option<Dtype> {
    let text = de::value::StrDeserializer::<de::value::Error>::new(name);
    Dtype::deserialize(text).ok()
}

#[derive(serde::Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one entry a tensor")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut seen = HashSet::new();
                let mut out = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(de::Error::custom(format!("`{name}` is there twice")));
                    }
                    if name == "__metadata__" {
                        out.metadata = map.next_value()?;
                    } else {
                        out.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(out)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str, data: u64) -> Result<Header, String> {
        Header::parse(Path::new("m.safetensors"), json.as_bytes(), data).map_err(|e| e.message)
    }

    #[test]
    fn good_headers() {
        let json = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[2,10]},
            "a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},"e":{"dtype":"I64","shape":[0,3],"data_offsets":[2,2]}}   "#;
        let header = parse(json, 10).unwrap();
        let names: Vec<_> = header.tensors.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["a", "e", "b"]);
        assert_eq!(header.tensors[2].1.offset, 8 + json.len() as u64 + 2);
        assert_eq!(header.tensors[2].1.len(), 2);
        assert!(header.tensors[1].1.is_empty());
        assert_eq!(header.metadata["format"], "pt");
        assert!(parse("{}", 0).unwrap().tensors.is_empty());
    }

    #[test]
    fn lies_are_named() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let cases = [
            (one("F32", "[2]", "[0,8]"), 7, "its data ends at byte 8; the file holds 7"),
            (one("F32", "[2]", "[8,0]"), 8, "ends at 0, before its start at 8"),
            (one("F32", "[3]", "[0,8]"), 8, "F32 [3] needs 12 bytes, its data has 8"),
            (one("F33", "[2]", "[0,8]"), 8, "`F33` is no dtype"),
            (one("F4", "[3]", "[0,2]"), 2, "F4 [3] needs 2 bytes"),
            (one("F32", "[4294967296,4294967296]", "[0,8]"), 8, "more bytes than can be counted"),
            (one("F32", "[-1]", "[0,8]"), 8, "cannot be understood: invalid value"),
            (one("F32", "[2]", "[0,8]"), 9, "has 1 bytes after its last tensor"),
            (one("F32", "[2]", "[4,12]"), 12, "4 bytes that belong to no tensor"),
            (r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"v":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}}"#.into(), 7,
             "tensors `w` and `v` that share 1 bytes"),
            (r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(), 1,
             "`w` is there twice"),
            (r#"{"w":{"dtype":"U8","shape":[1]}}"#.into(), 1, "missing field `data_offsets`"),
            ("[]".into(), 0, "an object with one entry a tensor"),
            ("{\"w".into(), 0, "cannot be understood"),
            (r#"{"__metadata__":{"a":1}}"#.into(), 0, "expected a string"),
        ];
        for (json, data, part) in cases {
            let error = parse(&json, data).unwrap_err();
            assert!(error.starts_with("`m.safetensors` "), "{error}");
            assert!(error.contains(part), "{error} should say {part}");
        }
    }

    #[test]
    fn short_and_foreign_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.safetensors");
        let check = |bytes: &[u8], part: &str| {
            std::fs::write(&path, bytes).unwrap();
            let error = Header::read(&path).unwrap_err();
            assert_eq!(ramekin_core::exit_code(&error), 2);
            assert!(error.to_string().contains(part), "{error} should say {part}");
        };
        check(b"", "too short for a safetensors file: 0 bytes");
        check(&[9, 0, 0, 0, 0, 0, 0, 0, b'{'], "header has 9 bytes, but only 1 follow");
        check(&[255; 32], "header has 18446744073709551615 bytes");
        check(b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`");
        check(&[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe], "cannot be understood");
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(json in proptest::collection::vec(any::<u8>(), 0..200), data in any::<u64>()) {
            let _ = Header::parse(Path::new("x"), &json, data);
        }

        #[test]
        fn whatever_is_accepted_lies_inside(
            entries in proptest::collection::vec((0u64..40, 0u64..40, 0u64..6, 0usize..4), 0..5),
            data in 0u64..80,
        ) {
            let body: Vec<String> = entries.iter().enumerate().map(|(i, (from, to, dim, kind))| {
                let dtype = ["U8", "F32", "F4", "BF16"][*kind];
                format!(r#""t{i}":{{"dtype":"{dtype}","shape":[{dim}],"data_offsets":[{from},{to}]}}"#)
            }).collect();
            let json = format!("{{{}}}", body.join(","));
            if let Ok(header) = Header::parse(Path::new("x"), json.as_bytes(), data) {
                let start = 8 + json.len() as u64;
                let total: u64 = header.tensors.iter().map(|(_, t)| t.bytes).sum();
                prop_assert_eq!(total, data);
                for (_, t) in &header.tensors {
                    prop_assert!(t.offset >= start && t.offset + t.bytes <= start + data);
                }
            }
        }
    }
}
