//! Models and batches by their sizes, the same for both sides.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

/// A llama and a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Rows of the embedding and of the head, which are not tied.
    pub vocabulary: usize,
    /// Numbers of a hidden state.
    pub width: usize,
    /// Numbers inside an MLP.
    pub intermediate: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Sequences of a step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub length: usize,
}

/// The yardstick: 58 million parameters, 4×512 tokens.
pub const YARDSTICK: Shape = Shape {
    vocabulary: 32000,
    width: 512,
    intermediate: 1408,
    layers: 8,
    heads: 8,
    kv_heads: 8,
    batch: 4,
    length: 512,
};

impl Shape {
    /// Tokens of a step.
    pub fn tokens(&self) -> f64 {
        (self.batch * self.length) as f64
    }

    /// Weights.
    pub fn parameters(&self) -> usize {
        let kv = self.width / self.heads * self.kv_heads;
        let attention = 2 * self.width * (self.width + kv);
        let block = attention + 3 * self.width * self.intermediate + 2 * self.width;
        self.layers * block + 2 * self.vocabulary * self.width + self.width
    }

    /// Bytes that one new token reads of the linears' weights: the blocks' at so many bits, the head's at so many.
    pub fn bytes_read(&self, bits: f64, head_bits: f64) -> f64 {
        let head = self.vocabulary * self.width;
        let blocks = self.parameters() - 2 * head;
        (blocks as f64 * bits + head as f64 * head_bits) / 8.0
    }

    /// The `[model]` of a recipe: random weights of these sizes.
    pub fn model(&self, dtype: &str) -> String {
        let Shape { vocabulary, width, intermediate, layers, heads, kv_heads, length, .. } = self;
        format!(
            r#"seed = 1
[model]
source = "init"
dtype = "{dtype}"
[model.config]
architectures = ["LlamaForCausalLM"]
model_type = "llama"
vocab_size = {vocabulary}
hidden_size = {width}
intermediate_size = {intermediate}
num_hidden_layers = {layers}
num_attention_heads = {heads}
num_key_value_heads = {kv_heads}
max_position_embeddings = {length}
rms_norm_eps = 1e-6
tie_word_embeddings = false
"#
        )
    }

    /// For a peer.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    /// Writes a batch as `ids.safetensors`; the values do not matter.
    pub fn write_ids(&self, folder: &Path) -> Result<()> {
        // A generator that needs no crate.
        let mut state = 1u32;
        let mut bytes = Vec::with_capacity(self.batch * self.length * 8);
        for _ in 0..self.batch * self.length {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let id = (state >> 8) as usize % self.vocabulary;
            bytes.extend_from_slice(&(id as i64).to_le_bytes());
        }
        let shape = [self.batch, self.length];
        let header =
            json!({ "input_ids": { "dtype": "I64", "shape": shape, "data_offsets": [0, bytes.len()] } });
        let header = header.to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(&bytes);
        Ok(std::fs::write(folder.join("ids.safetensors"), file)?)
    }
}

/// `quantizer = { kind = … }` of a stage, or nothing.
pub fn quantizer(settings: &str) -> String {
    if settings.is_empty() { String::new() } else { format!("quantizer = {{ {settings} }}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_counted() {
        // 8 · (4·512² + 3·512·1408 + 2·512) + 2·32000·512 + 512
        assert_eq!(YARDSTICK.parameters(), 58_466_816);
        let head = 32000 * 512;
        let blocks = 58_466_816 - 2 * head;
        assert_eq!(YARDSTICK.bytes_read(4.0, 16.0), blocks as f64 / 2.0 + head as f64 * 2.0);
    }

    #[test]
    fn ids_lie_in_the_vocabulary() {
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape { vocabulary: 7, batch: 2, length: 5, ..YARDSTICK };
        shape.write_ids(folder.path()).unwrap();
        let file = std::fs::read(folder.path().join("ids.safetensors")).unwrap();
        let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let ids: Vec<i64> =
            file[8 + header..].chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(ids.len(), 10);
        assert!(ids.iter().all(|id| (0..7).contains(id)), "{ids:?}");
    }
}
