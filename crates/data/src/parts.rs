//! The data kinds as parts of the registry.

use anyhow::Result;
use ramekin_registry::{Declares, Part, part};

use crate::settings::{
    BuiltinSettings, CsvSettings, DataSettings, JsonSettings, JsonlSettings, TextSettings, TokensSettings,
};

macro_rules! data_part {
    ($name:literal, $part:ident, $variant:ident, $settings:ty, $summary:literal) => {
        struct $part;

        impl Part for $part {
            type Settings = $settings;

            fn new(settings: $settings) -> Result<Self> {
                DataSettings::$variant(settings).check()?;
                Ok($part)
            }
        }

        impl From<$part> for Declares {
            fn from(_: $part) -> Self {
                Declares
            }
        }

        part! { data / $name => $part, $summary, source = "objectives", traits = [] }
    };
}

data_part!("jsonl", Jsonl, Jsonl, JsonlSettings, "rows from files with one JSON object a line");
data_part!("json", JsonArray, Json, JsonSettings, "rows from files that are a JSON array of objects");
data_part!("csv", Csv, Csv, CsvSettings, "rows of comma or tab separated values");
data_part!("text", Text, Text, TextSettings, "plain text by line, by file or as one stream");
data_part!("builtin", Builtin, Builtin, BuiltinSettings, "text and tasks that the project writes itself");
data_part!("tokens", Tokens, Tokens, TokensSettings, "token ids from a safetensors file, in order");
