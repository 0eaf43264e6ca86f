//! Every registered part with the least it needs in a recipe of three steps.

use ramekin_registry::Slot;

use crate::draft::Draft;

/// A part in the matrix.
pub struct Entry {
    /// Its slot.
    pub slot: Slot,
    /// Its name.
    pub name: &'static str,
    /// Settings besides `kind`, as TOML.
    pub settings: &'static str,
    /// What else the recipe needs for it.
    more: fn(&mut Draft),
}

const fn part(slot: Slot, name: &'static str, settings: &'static str) -> Entry {
    Entry { slot, name, settings, more: |_| {} }
}

const fn with(slot: Slot, name: &'static str, settings: &'static str, more: fn(&mut Draft)) -> Entry {
    Entry { slot, name, settings, more }
}

impl Entry {
    /// `SLOT/NAME`.
    pub fn label(&self) -> String {
        format!("{}/{}", self.slot.name(), self.name)
    }

    /// Puts the part where it belongs.
    pub fn put(&self, draft: &mut Draft) {
        (self.more)(draft);
        let comma = if self.settings.is_empty() { "" } else { ", " };
        let table = format!("{{ kind = \"{}\"{comma}{} }}", self.name, self.settings);
        match self.slot {
            Slot::Adapter | Slot::Gradient | Slot::Hook | Slot::Track | Slot::Reducer => {
                draft.entry(self.slot.name(), table);
            }
            Slot::Kv | Slot::Decode => {
                draft.behind("generate", "input", "\"prompt.safetensors\"");
                draft.behind("generate", "max_new_tokens", "6");
                draft.behind("generate", self.slot.name(), &table);
            }
            Slot::Merge => draft.behind("merge", "method", &table),
            Slot::Prune => draft.behind("compress", "prune", &table),
            Slot::Model => draft.model(self.name, self.settings),
            _ => draft.key(self.slot.name(), &table),
        }
    }
}

const COLOURS: &str =
    "{ kind = \"builtin\", name = \"colours\", rows = 16, max_length = 56, format = \"classification\" }";
const PREFERENCES: &str = "{ kind = \"builtin\", name = \"preferences\", rows = 16, max_length = 56 }";

/// These rows to train on, and to measure the loss of.
fn rows(draft: &mut Draft, data: &str) {
    draft.key("data", data);
    draft.key("eval", &format!("{{ data = {data} }}"));
}

/// What the train stage learnt, as the one task vector.
fn vectors(draft: &mut Draft) {
    draft.behind("merge", "models", "[{ stage = 0 }]");
    draft.saved();
}

fn no_clipping(draft: &mut Draft) {
    draft.key("max_grad_norm", "0");
}

macro_rules! model {
    ($kind:literal, $class:literal, $more:literal) => {
        concat!(
            "model = { source = \"init\", config = { architectures = [\"", $class, "\"], model_type = \"", $kind,
            "\", hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2, num_attention_heads = 4, ",
            "num_key_value_heads = 2, max_position_embeddings = 64, rms_norm_eps = 1e-5, initializer_range = 0.1, ",
            "vocab_size = 128, eos_token_id = 2", $more, " }, tokenizer = { kind = \"char\", data = \"chars.txt\" } }"
        )
    };
}

/// A vision transformer over images of 17 tokens.
const VIT: &str = "model = { source = \"init\", config = { architectures = [\"ViTForImageClassification\"], \
                   model_type = \"vit\", hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2, \
                   num_attention_heads = 4, image_size = 16, patch_size = 4, num_channels = 1, num_labels = 8, \
                   initializer_range = 0.1 } }";

/// The whole table, by slot.
pub const TABLE: &[Entry] = &[
    part(Slot::Model, "llama", model!("llama", "LlamaForCausalLM", "")),
    part(Slot::Model, "mistral", model!("mistral", "MistralForCausalLM", ", sliding_window = 8")),
    part(Slot::Model, "qwen2", model!("qwen2", "Qwen2ForCausalLM", "")),
    part(Slot::Model, "qwen3", model!("qwen3", "Qwen3ForCausalLM", ", head_dim = 8")),
    part(Slot::Model, "vit", VIT),
    with(Slot::Reducer, "tome", "schedule = [4, 3]", |d| d.model("vit", VIT)),
    // What it learns is saved beside an adapter.
    with(Slot::Reducer, "pyra", "schedule = [4, 3]", |d| {
        d.model("vit", VIT);
        d.adapted();
    }),
    part(Slot::Quantizer, "nf4", "block_size = 32"),
    part(Slot::Quantizer, "rtn", "bits = 8, group_size = 16"),
    part(Slot::Adapter, "lora", "r = 4, target_modules = \"all-linear\""),
    part(Slot::Adapter, "dora", "r = 4, target_modules = [\"q_proj\", \"up_proj\"]"),
    part(
        Slot::Adapter,
        "ia3",
        "target_modules = [\"k_proj\", \"v_proj\", \"down_proj\"], feedforward_modules = [\"down_proj\"]",
    ),
    part(Slot::Adapter, "loha", "r = 4, target_modules = [\"q_proj\", \"v_proj\"]"),
    part(Slot::Adapter, "lokr", "r = 4, target_modules = [\"q_proj\", \"v_proj\"]"),
    part(Slot::Adapter, "vera", "r = 8, target_modules = [\"q_proj\"]"),
    part(Slot::Adapter, "ln", ""),
    part(Slot::Adapter, "parallel", "bottleneck_size = 8, target_modules = [\"gate_proj\"]"),
    part(Slot::Adapter, "prefix", "num_virtual_tokens = 3"),
    part(Slot::Adapter, "prompt", "num_virtual_tokens = 3"),
    part(Slot::Adapter, "series", "bottleneck_size = 8, target_modules = [\"down_proj\"]"),
    part(Slot::Adapter, "ssf", "train_head = false"),
    part(
        Slot::Adapter,
        "unipt",
        "reduction = 2, output = \"residual\", causal = true, pool = \"prefix_mean\"",
    ),
    with(Slot::Selection, "bias", "norms = true", |_| {}),
    part(Slot::Selection, "full", ""),
    part(Slot::Selection, "hft", ""),
    with(
        Slot::Selection,
        "lt-sft",
        "ft_params_proportion = 0.2, full_ft_max_steps = 2, sparse_ft_max_steps = 2",
        |d| {
            d.key("steps", "");
        },
    ),
    part(Slot::Selection, "s2ft", "o_ratio = 0.5, d_ratio = 0.25"),
    part(Slot::Method, "meft", "adapter_bottleneck_dim = 8"),
    part(Slot::Estimator, "backprop", ""),
    with(Slot::Estimator, "mezo", "zo_eps = 1e-3, n_directions = 16", no_clipping),
    with(Slot::Estimator, "zo2", "zo_eps = 1e-3, n_directions = 16", no_clipping),
    part(Slot::Gradient, "clip", "max_norm = 0.5"),
    part(Slot::Gradient, "galore", "rank = 2, update_proj_gap = 2, scale = 1.0"),
    part(Slot::Optimizer, "adafactor", "lr = 5e-3"),
    part(Slot::Optimizer, "adamw", "lr = 5e-3"),
    part(Slot::Optimizer, "adamw8bit", "lr = 5e-3, min_8bit_size = 64"),
    part(Slot::Optimizer, "lion", "lr = 1e-3"),
    part(Slot::Optimizer, "sgd", "lr = 1e-2, momentum = 0.9"),
    part(Slot::Schedule, "constant", ""),
    part(Slot::Schedule, "linear", ""),
    part(Slot::Schedule, "cosine", ""),
    part(Slot::Schedule, "wsd", ""),
    part(Slot::Objective, "sft", ""),
    with(Slot::Objective, "classification", "num_labels = 10", |d| rows(d, COLOURS)),
    part(Slot::Objective, "distil", "teacher = { source = \"TEACHER\" }"),
    with(Slot::Objective, "dpo", "", |d| {
        rows(d, PREFERENCES);
        d.adapted();
    }),
    part(Slot::Objective, "gkd", "teacher = { source = \"TEACHER\" }"),
    with(Slot::Objective, "regression", "", |d| rows(d, COLOURS)),
    // The tokens of train.safetensors.
    part(
        Slot::Objective,
        "label-words",
        "label_words = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]",
    ),
    with(Slot::Objective, "reward", "center_rewards_coefficient = 0.1", |d| rows(d, PREFERENCES)),
    with(Slot::Data, "builtin", "name = \"records\", rows = 16, max_length = 56", |d| {
        d.key("eval", "{ data = { kind = \"builtin\", name = \"records\", rows = 16, max_length = 56 } }")
    }),
    with(Slot::Data, "csv", "path = \"rows.csv\", max_length = 64", |d| {
        d.key("eval", "{ data = { kind = \"csv\", path = \"rows.csv\", max_length = 64 } }")
    }),
    with(Slot::Data, "json", "path = \"rows.json\", max_length = 64", |d| {
        d.key("eval", "{ data = { kind = \"json\", path = \"rows.json\", max_length = 64 } }")
    }),
    with(Slot::Data, "jsonl", "path = \"rows.jsonl\", max_length = 64", |d| {
        d.key("eval", "{ data = { kind = \"jsonl\", path = \"rows.jsonl\", max_length = 64 } }")
    }),
    with(Slot::Data, "text", "path = \"rows.txt\", max_length = 32", |d| {
        d.key("eval", "{ data = { kind = \"text\", path = \"rows.txt\", max_length = 32 } }")
    }),
    part(Slot::Data, "tokens", "path = \"train.safetensors\""),
    part(Slot::Activation, "keep", ""),
    part(Slot::Activation, "checkpoint", ""),
    part(Slot::Activation, "offload", "to = \"host\", min_bytes = 0"),
    part(Slot::Placement, "resident", ""),
    with(Slot::Placement, "disk", "", |d| d.key("activation", "{ kind = \"checkpoint\" }")),
    with(Slot::Placement, "offload", "", |d| d.key("activation", "{ kind = \"checkpoint\" }")),
    part(Slot::Attention, "full", ""),
    part(Slot::Attention, "window", "window = 12"),
    part(Slot::Attention, "block-diagonal", "block_size = 12"),
    part(Slot::Comm, "local", "ranks = 2"),
    part(Slot::Search, "grid", ""),
    part(Slot::Search, "random", ""),
    part(Slot::Kv, "ada", "base_capacity = 12, window = 4"),
    part(Slot::Kv, "full", ""),
    part(Slot::Kv, "h2o", ""),
    part(Slot::Kv, "pyramid", "max_capacity = 12, window = 4"),
    part(Slot::Kv, "quantized", ""),
    part(Slot::Kv, "snapkv", ""),
    part(Slot::Kv, "streaming", "start_size = 2, recent_size = 8"),
    part(Slot::Kv, "tova", "cache_size = 10"),
    part(Slot::Decode, "beam", "num_beams = 2"),
    part(
        Slot::Decode,
        "emulated-tuning",
        "tuned = [{ source = \"TEACHER\" }], tuned_base = { source = \"TEACHER\" }, weights = [1.0]",
    ),
    part(Slot::Decode, "greedy", ""),
    part(Slot::Decode, "sample", ""),
    part(Slot::Decode, "speculative", "assistant_model = { source = \"TEACHER\" }"),
    with(Slot::Prune, "cfsp", "pruning_ratio = 0.25, block_size = 8", |d| {
        d.behind("compress", "data", "{ kind = \"text\", path = \"rows.txt\", max_length = 32 }");
        d.behind("compress", "nsamples", "8");
        d.behind("compress", "seqlen", "32");
    }),
    part(Slot::Merge, "lora", ""),
    with(Slot::Merge, "compeft", "density = [0.5], alpha = [1]", vectors),
    with(Slot::Merge, "lines", "alpha = 0.5", vectors),
    with(Slot::Merge, "task-arithmetic", "", vectors),
    with(Slot::Merge, "ties", "", vectors),
    with(Slot::Hook, "early-stop", "", |d| d.measured()),
    part(Slot::Track, "html", ""),
    part(Slot::Track, "jsonl", "path = \"all.jsonl\""),
    part(Slot::Track, "tensorboard", "logdir = \"events\""),
    part(Slot::Hook, "ema", "decay = 0.5"),
    with(Slot::Hook, "ist", "active_fraction = 0.5, num_candidates = 2", |d| d.adapted()),
];
