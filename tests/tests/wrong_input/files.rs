//! Files of the cases that are binary, or long, and so are made instead of kept.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

/// A tensor of a safetensors file: name, shape and numbers in f32.
type Tensor = (String, Vec<usize>, Vec<f32>);

/// Puts what the case needs beside its recipe.
pub fn make(case: &str, dir: &Path) {
    let recipe = std::fs::read_to_string(dir.join("recipe.toml")).unwrap();
    if recipe.contains("source = \"model\"") || case.starts_with("model-folder") {
        model(case, &dir.join("model"));
    }
    if case.starts_with("adapter-") {
        adapter(case, &dir.join("adapter"));
    }
    if recipe.contains("source = \"tuned\"") {
        tuned(case, &dir.join("tuned"));
    }
    if case == "jsonl-line-1003" {
        let mut text = String::new();
        for i in 1..=1100 {
            if i == 1003 {
                text.push_str("{\"prompt\": \"a\", \"completion\": \"b\"\n");
            } else {
                writeln!(text, "{{\"prompt\": \"{}\", \"completion\": \"b\"}}", "ab".repeat(1 + i % 3))
                    .unwrap();
            }
        }
        std::fs::write(dir.join("long.jsonl"), text).unwrap();
    }
}

/// Numbers that look random and are the same everywhere.
fn numbers(n: usize) -> Vec<f32> {
    let mut state = 12345u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 16) as f32 / 32768.0 - 1.0) * 0.2
        })
        .collect()
}

fn tensor(name: &str, shape: &[usize]) -> Tensor {
    (name.to_owned(), shape.to_vec(), numbers(shape.iter().product()))
}

/// The header's table and the bytes behind it.
fn parts(tensors: &[Tensor]) -> (Map<String, Json>, Vec<u8>) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        header.insert(
            name.clone(),
            json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] }),
        );
    }
    (header, data)
}

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (header, data) = parts(tensors);
    file(&Json::Object(header).to_string(), &data)
}

/// A llama of one layer: hidden size 8, MLP 16, 2 heads, `vocab_size` 32.
fn llama() -> Vec<Tensor> {
    let layer = |name: &str, shape: &[usize]| tensor(&format!("model.layers.0.{name}.weight"), shape);
    vec![
        tensor("lm_head.weight", &[32, 8]),
        tensor("model.embed_tokens.weight", &[32, 8]),
        layer("input_layernorm", &[8]),
        layer("mlp.down_proj", &[8, 16]),
        layer("mlp.gate_proj", &[16, 8]),
        layer("mlp.up_proj", &[16, 8]),
        layer("post_attention_layernorm", &[8]),
        layer("self_attn.k_proj", &[8, 8]),
        layer("self_attn.o_proj", &[8, 8]),
        layer("self_attn.q_proj", &[8, 8]),
        layer("self_attn.v_proj", &[8, 8]),
        tensor("model.norm.weight", &[8]),
    ]
}

/// The model's folder, broken the way the case says.
fn model(case: &str, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    if case == "model-without-config" {
        std::fs::write(folder.join("model.safetensors"), safetensors(&llama())).unwrap();
        return;
    }
    std::fs::copy(folder.with_file_name("tiny.json"), folder.join("config.json")).unwrap();
    std::fs::copy(folder.with_file_name("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let mut tensors = llama();
    let find = |tensors: &[Tensor], tail: &str| tensors.iter().position(|t| t.0.ends_with(tail)).unwrap();
    match case {
        "tensor-missing" => tensors[8].0 = "model.layers.0.self_attn.out_proj.weight".to_owned(),
        "tensor-shape" => tensors[8] = tensor("model.layers.0.self_attn.o_proj.weight", &[8, 4]),
        "weights-nan" => {
            let i = find(&tensors, "gate_proj.weight");
            tensors[i].2[7] = f32::NAN;
        }
        _ => {}
    }
    let (mut header, data) = parts(&tensors);
    let q = "model.layers.0.self_attn.q_proj.weight";
    let bytes = match case {
        "safetensors-truncated" => {
            let mut bytes = safetensors(&tensors);
            bytes.truncate(bytes.len() - 100);
            bytes
        }
        "safetensors-offsets" => {
            header[q]["data_offsets"] = json!([0, 1_000_000]);
            file(&Json::Object(header).to_string(), &data)
        }
        "safetensors-header-length" => {
            let mut bytes = safetensors(&tensors);
            bytes[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
            bytes
        }
        "safetensors-shape" => {
            header[q]["shape"] = json!([8, 9]);
            file(&Json::Object(header).to_string(), &data)
        }
        "safetensors-dtype" => {
            header[q]["dtype"] = json!("F31");
            file(&Json::Object(header).to_string(), &data)
        }
        "safetensors-duplicate" => {
            let text = Json::Object(header.clone()).to_string();
            let again = json!({ q: header[q] }).to_string();
            file(&format!("{},{}", &text[..text.len() - 1], &again[1..]), &data)
        }
        "safetensors-no-json" => file("{\"model.norm.weight\": {\"dtype\"", &data),
        "safetensors-empty" => Vec::new(),
        _ => file(&Json::Object(header).to_string(), &data),
    };
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

/// A model tuned from that one, unfit for a merge the way the case says.
fn tuned(case: &str, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::copy(folder.with_file_name("tiny.json"), folder.join("config.json")).unwrap();
    let mut tokenizer = std::fs::read_to_string(folder.with_file_name("tokenizer.json")).unwrap();
    let mut tensors = llama();
    tensors.iter_mut().for_each(|t| t.2.iter_mut().for_each(|x| *x += 0.01));
    match case {
        "merge-other-shape" => tensors[8] = tensor("model.layers.0.self_attn.o_proj.weight", &[8, 4]),
        "merge-other-tensors" => tensors[8].0 = "model.layers.0.self_attn.out_proj.weight".to_owned(),
        "merge-nan" => tensors[8].2[7] = f32::NAN,
        "merge-other-tokenizer" => {
            let mut json: Json = serde_json::from_str(&tokenizer).unwrap();
            let vocab = json["model"]["vocab"].as_object_mut().unwrap();
            let first = vocab.keys().next().unwrap().clone();
            let id = vocab.shift_remove(&first).unwrap();
            vocab.insert("another".to_owned(), id);
            tokenizer = json.to_string();
        }
        "merge-other-base" => {
            std::fs::write(
                folder.join("ramekin.json"),
                json!({ "base_sha256": ["abcdef0123456789"] }).to_string(),
            )
            .unwrap();
        }
        _ => {}
    }
    std::fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
    std::fs::write(folder.join("model.safetensors"), safetensors(&tensors)).unwrap();
}

/// A LoRA in PEFT's layout at `q_proj`, broken the way the case says.
fn adapter(case: &str, folder: &Path) {
    if case == "adapter-missing" {
        return;
    }
    std::fs::create_dir_all(folder).unwrap();
    let mut config = json!({
        "peft_type": "LORA", "base_model_name_or_path": "tiny", "task_type": "CAUSAL_LM",
        "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj"],
    });
    let at = |layer: usize, half: &str| {
        format!("base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{half}.weight")
    };
    let mut tensors = vec![tensor(&at(0, "A"), &[2, 8]), tensor(&at(0, "B"), &[8, 2])];
    match case {
        "adapter-other-shape" => tensors[0] = tensor(&at(0, "A"), &[2, 12]),
        "adapter-left-over" => tensors.extend([tensor(&at(5, "A"), &[2, 8]), tensor(&at(5, "B"), &[8, 2])]),
        "adapter-lacks-tensor" => tensors.truncate(1),
        "adapter-unsupported-field" => config["use_qalora"] = json!(true),
        "adapter-unknown-kind" => config["peft_type"] = json!("XLORA"),
        _ => {}
    }
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), safetensors(&tensors)).unwrap();
}
