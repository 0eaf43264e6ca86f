//! The slot `comm`: several ranks train as one, to the bit.

#[path = "comm/alike.rs"]
mod alike;
#[path = "comm/contract.rs"]
mod contract;
#[path = "comm/ends.rs"]
mod ends;
#[path = "comm/plan.rs"]
mod plan;

use ramekin_tests::{Kitchen, write_ids};

/// A llama of 2 layers and width 32 over 64 ids.
pub const MODEL: &str = r#"
seed = 3
[model]
source = "init"
[model.config]
architectures = ["LlamaForCausalLM"]
model_type = "llama"
vocab_size = 64
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 64
rms_norm_eps = 1e-5
initializer_range = 0.1
eos_token_id = 2
tie_word_embeddings = false
"#;

/// Adapters with dropout, which is drawn by the micro-batch's number.
pub const LORA: &str =
    r#"adapter = [{ kind = "lora", r = 4, target_modules = "all-linear", lora_dropout = 0.2 }]"#;

/// A kitchen with this train stage behind [`MODEL`] and rows in `ids.safetensors`.
pub fn kitchen(stage: &str) -> Kitchen {
    let kitchen = Kitchen::new(&format!("{MODEL}\n[[stage]]\nkind = \"train\"\n{stage}\n"));
    let rows: Vec<Vec<u32>> = ramekin_tests::lab::sequences(&[20; 12], 60, 9)
        .into_iter()
        .map(|row| row.into_iter().map(|id| id + 3).collect())
        .collect();
    write_ids(&kitchen.folder().join("ids.safetensors"), &rows);
    kitchen
}
