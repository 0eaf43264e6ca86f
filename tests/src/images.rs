//! A small vision transformer and images for it.

use std::sync::Arc;

use ramekin_core::Rng;
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::step::LabelledBatch;
use ramekin_slots::{FlatBatch, Images};
use serde_json::{Value as Json, json};

use crate::lab::{fresh_model, part};

/// Classes of [`small_vit`].
pub const CLASSES: usize = 8;

/// Width 48, 4 blocks, 4 heads of 12, patches of 4 by 4 grey pixels. Its weights are wide (std 0.15), so that
/// tokens look at each other and logits are not all alike.
pub fn small_vit(image_size: usize) -> Json {
    json!({
        "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": 48,
        "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "hidden_act": "gelu",
        "image_size": image_size, "patch_size": 4, "num_channels": 1, "num_labels": CLASSES,
        "layer_norm_eps": 1e-6, "qkv_bias": true, "initializer_range": 0.15,
    })
}

/// A fresh [`small_vit`] with this reducer.
pub fn with_reducer(image_size: usize, kind: &str, settings: Json) -> Blueprint {
    Blueprint { reducers: vec![part(kind, settings)], ..fresh_model(small_vit(image_size)) }
}

/// These grey images with their classes.
pub fn labelled(assembly: &Assembly, pixels: Vec<f32>, classes: &[usize]) -> LabelledBatch {
    let facts = assembly.model.facts().images.expect("a model of images");
    let images = Images::new([classes.len(), facts.channels, facts.size, facts.size], pixels);
    let flat = FlatBatch::of_images(Arc::new(images.expect("whole images")), facts.tokens);
    let mut labels = vec![-100; flat.len()];
    for (segment, class) in flat.segments.iter().zip(classes) {
        labels[segment.start] = *class as i64;
    }
    LabelledBatch::of(flat, labels)
}

/// `count` images of noise with classes in turn.
pub fn noise(assembly: &Assembly, count: usize, seed: u64) -> LabelledBatch {
    let facts = assembly.model.facts().images.expect("a model of images");
    let mut pixels = vec![0f32; count * facts.channels * facts.size * facts.size];
    Rng::new(seed).stream("tests/images", 0).fill_normal(0, 1.0, &mut pixels);
    labelled(assembly, pixels, &(0..count).map(|i| i % CLASSES).collect::<Vec<_>>())
}
