//! The models that travel inside the binary.

use anyhow::Result;
use ramekin_core::{UserError, suggest};

/// Files of a built-in model, by their Hugging Face names.
pub struct Builtin {
    /// Its name after `builtin:`.
    pub name: &'static str,
    files: &'static [(&'static str, &'static [u8])],
}

macro_rules! model {
    ($name:literal: $($file:literal),*) => {
        Builtin {
            name: $name,
            files: &[$(($file, include_bytes!(concat!("../assets/", $name, "/", $file)))),*],
        }
    };
}

const ALL: &[Builtin] =
    &[model!("tiny": "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json")];

impl Builtin {
    /// The content of a file, if the model has it.
    pub fn file(&self, name: &str) -> Option<&'static [u8]> {
        self.files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| *bytes)
    }

    /// All files.
    pub fn files(&self) -> &'static [(&'static str, &'static [u8])] {
        self.files
    }
}

/// The built-in model of this name.
///
/// # Errors
/// If there is none, with what there is.
pub fn find(name: &str) -> Result<&'static Builtin> {
    ALL.iter().find(|b| b.name == name).ok_or_else(|| {
        let error = UserError::new(format!("there is no built-in model `{name}`"));
        let near = suggest(name, ALL.iter().map(|b| b.name)).unwrap_or(ALL[0].name);
        error.help(format!("there is `builtin:{near}`")).into()
    })
}
