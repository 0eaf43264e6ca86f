//! A small recipe that parts are put into, and how it ends.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ramekin_core::{Meter, meter};
use ramekin_engine::{Options, read, run};
use ramekin_recipe::Doc;
use ramekin_registry::Slot;
use serde_json::Value as Json;

use crate::table::Entry;

/// A train stage with what its parts want, and the stages behind it.
#[derive(Clone, Default)]
pub struct Draft {
    model: Option<(String, String)>,
    saved: bool,
    measured: bool,
    keys: Vec<(String, String)>,
    lists: Vec<(String, Vec<String>)>,
    behind: Vec<(String, Vec<(String, String)>)>,
    adapted: bool,
}

/// A llama of 2 layers and width 32 over characters.
const MODEL: &str = r#"model = { source = "init", config = { architectures = ["LlamaForCausalLM"], model_type = "llama", hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2, num_attention_heads = 4, num_key_value_heads = 2, max_position_embeddings = 64, rms_norm_eps = 1e-5, initializer_range = 0.1, vocab_size = 128, eos_token_id = 2 }, tokenizer = { kind = "char", data = "chars.txt" } }"#;

/// The modules that parts name on a llama, as a vision transformer calls them.
const OF_IMAGES: [(&str, &str); 8] = [
    ("gate_proj", "query"),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("up_proj", "intermediate.dense"),
    ("down_proj", "output.dense"),
    ("mlp", "attention"),
    ("train.safetensors", "images.safetensors"),
];

impl Draft {
    /// Puts the first of what several parts want of a key.
    pub fn key(&mut self, key: &str, value: &str) {
        if !self.keys.iter().any(|(k, _)| k == key) {
            self.keys.push((key.to_owned(), value.to_owned()));
        }
    }

    /// Puts one more entry of a list.
    pub fn entry(&mut self, list: &str, value: String) {
        match self.lists.iter_mut().find(|(k, _)| k == list) {
            Some((_, all)) => all.push(value),
            None => self.lists.push((list.to_owned(), vec![value])),
        }
    }

    /// Another model than the usual one.
    pub fn model(&mut self, kind: &str, model: &str) {
        self.model.get_or_insert_with(|| (kind.to_owned(), model.to_owned()));
    }

    /// A model from a folder, as something may be tuned from it, instead of fresh weights.
    pub fn saved(&mut self) {
        self.saved = true;
    }

    /// Measurements between the steps.
    pub fn measured(&mut self) {
        self.measured = true;
    }

    /// Whether the model reads images.
    fn sees(&self) -> bool {
        self.model.as_ref().is_some_and(|(kind, _)| kind == "vit")
    }

    /// Some adapter, where no other part brings one.
    pub fn adapted(&mut self) {
        self.adapted = true;
    }

    /// A key of a stage behind the train stage.
    pub fn behind(&mut self, kind: &str, key: &str, value: &str) {
        let keys = match self.behind.iter().position(|(k, _)| k == kind) {
            Some(i) => &mut self.behind[i].1,
            None => {
                self.behind.push((kind.to_owned(), Vec::new()));
                &mut self.behind.last_mut().expect("just pushed").1
            }
        };
        if !keys.iter().any(|(k, _)| k == key) {
            keys.push((key.to_owned(), value.to_owned()));
        }
    }

    /// The recipe with these parts.
    pub fn of(entries: &[&Entry]) -> Self {
        let mut draft = Draft::default();
        entries.iter().for_each(|e| e.put(&mut draft));
        // A method that decides what is kept for backward goes with no other policy.
        let method = draft.keys.iter().any(|(k, _)| k == "method");
        if method && !entries.iter().any(|e| e.slot == Slot::Activation) {
            draft.keys.retain(|(k, _)| k != "activation");
        }
        let adapted = draft.lists.iter().any(|(k, _)| k == "adapter");
        let trains = ["selection", "method"].iter().any(|k| draft.keys.iter().any(|(key, _)| key == k));
        let has = |key: &str, name: &str| draft.keys.iter().any(|(k, v)| k == key && v.contains(name));
        let visits = has("estimator", "\"zo2\"");
        let lent = has("placement", "disk") || has("placement", "offload") && !visits;
        let packed = has("quantizer", "") || lent;
        if (packed || draft.adapted) && !trains && !adapted {
            draft.entry("adapter", r#"{ kind = "lora", r = 4, target_modules = "all-linear" }"#.to_owned());
            if draft.behind.iter().any(|(kind, _)| kind == "compress") {
                draft.behind.insert(0, ("merge".to_owned(), Vec::new())); // surgery is on models, not on adapters
            }
        }
        // What visits weights one by one holds no state of theirs.
        let rule = if visits { r#"{ kind = "sgd", lr = 4e-3 }"# } else { r#"{ kind = "adamw", lr = 5e-3 }"# };
        draft.key("optimizer", rule);
        let (train, held) = if draft.sees() { ("images", "held-images") } else { ("train", "held") };
        draft.key("data", &format!("{{ kind = \"tokens\", path = \"{train}.safetensors\" }}"));
        let held = format!("{{ kind = \"tokens\", path = \"{held}.safetensors\", repeat = false }}");
        draft.key("eval", &format!("{{ data = {held} }}"));
        draft.key("batch", "{ micro_batch_size = 4 }");
        draft.key("steps", "3");
        draft
    }

    /// The same with this many steps.
    pub fn long(mut self, steps: usize) -> Self {
        self.keys.retain(|(k, _)| k != "steps");
        self.key("steps", &steps.to_string());
        self
    }

    fn toml(&self) -> String {
        let mut text = String::from("name = \"matrix\"\nseed = 1\n");
        let (kind, model) = self.model.as_ref().map_or(("llama", MODEL), |(k, m)| (&**k, &**m));
        match self.saved {
            true => text += &format!("model = {{ source = \"FOLDER/saved-{kind}\" }}"),
            false => text += model,
        }
        text += "\n\n[[stage]]\nkind = \"train\"\n";
        for (k, v) in self.keys.iter().filter(|(_, v)| !v.is_empty()) {
            let often = k == "eval" && self.measured;
            let v = if often { v.replacen('{', "{ every = 1, ", 1) } else { v.clone() };
            text += &format!("{k} = {v}\n");
        }
        for (k, all) in &self.lists {
            text += &format!("{k} = [{}]\n", all.join(", "));
        }
        for (kind, keys) in &self.behind {
            text += &format!("\n[[stage]]\nkind = \"{kind}\"\n");
            for (k, v) in keys {
                text += &format!("{k} = {v}\n");
            }
        }
        if self.sees() {
            for (name, own) in OF_IMAGES {
                text = text.replace(&format!("\"{name}\""), &format!("\"{own}\""));
            }
        }
        text
    }
}

/// How a recipe ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// Three steps ran, and held rows lose less than before.
    Works,
    /// The plan refused it, and this is what it said.
    Refused(String),
    /// Neither.
    Neither(String),
}

/// Cooks a draft in a folder of its own beside the shared data.
pub fn cook(draft: &Draft, data: &Path) -> (End, String) {
    let _scope = meter::scope(Meter::new());
    let text =
        draft.toml().replace("TEACHER", "FOLDER/teacher").replace("FOLDER", &data.display().to_string());
    let folder = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(data).expect("the data") {
        let file = file.expect("a file");
        if file.path().is_dir() {
            continue;
        }
        std::fs::copy(file.path(), folder.path().join(file.file_name())).expect("a copy");
    }
    // The folder has another name each time; what the page shows has none.
    let anywhere = |text: String| text.replace(&format!("{}/", data.display()), "");
    let end = match end(&text, folder.path()) {
        End::Refused(text) => End::Refused(anywhere(text)),
        other => other,
    };
    (end, text)
}

/// A model of this kind after some steps, in a folder of this name.
pub fn saved(data: &Path, name: &str, kind: &str, model: &str, steps: usize) {
    let mut draft = Draft::default();
    draft.model(kind, model);
    draft.key("data", r#"{ kind = "tokens", path = "train.safetensors" }"#);
    draft.key("optimizer", r#"{ kind = "adamw", lr = 5e-3 }"#);
    draft.key("batch", "{ micro_batch_size = 4 }");
    draft.key("steps", &steps.to_string());
    let end = end(&draft.toml(), data);
    assert!(data.join("out/model").is_dir(), "{end:?}");
    std::fs::rename(data.join("out/model"), data.join(name)).expect("a renamed folder");
    std::fs::remove_dir_all(data.join("out")).expect("a removed folder");
}

fn end(text: &str, folder: &Path) -> End {
    let path = folder.join("recipe.toml");
    let doc = match Doc::parse(&path, text, &[]) {
        Ok(doc) => doc,
        Err(e) => return End::Neither(e.render(false)),
    };
    let recipe = match read::recipe(&doc) {
        Ok(recipe) => recipe,
        Err(e) => return End::Refused(e.render(false)),
    };
    let options = Options {
        out: folder.join("out"),
        base_dir: folder.to_owned(),
        resume: false,
        stop: Arc::new(AtomicBool::new(false)),
        resolved: text.to_owned(),
    };
    match run(&recipe, &options) {
        Err(e) if ramekin_core::exit_code(&e) == 2 => End::Refused(match read::underlined(&doc, &e) {
            Some(d) => ramekin_recipe::Diagnostics::from(d).render(false),
            None => format!("{e:#}"),
        }),
        Err(e) => End::Neither(format!("{e:#}")),
        Ok(done) => fell(&done.stages["0-train"]),
    }
}

fn fell(figures: &Json) -> End {
    let loss = |key: &str| figures[key]["loss"].as_f64();
    match (loss("eval_before"), loss("eval")) {
        (Some(before), Some(after)) if after.is_finite() && after < before => End::Works,
        (before, after) => End::Neither(format!("held loss {before:?} → {after:?}")),
    }
}
