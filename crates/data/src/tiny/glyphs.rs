//! Images of patterns in noise, a class a pattern.
//!
//! A pattern is N(0, 1) over half an image's sides, at a place that is a multiple of a quarter of them; the noise is
//! N(0, 0.7²). Patterns are of the seed, images of (seed, number).

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{BadSetting, Draws, Rng};
use ramekin_slots::{ImageFacts, Images};
use serde_json::{Value as Json, json};

use crate::dataset::Dataset;
use crate::example::{Example, IGNORED};
use crate::settings::BuiltinSettings;

/// Numbers of held-out images begin here.
const HELD_OUT: u64 = 1 << 32;

/// The images that the settings ask for, as a model of so many classes reads them.
///
/// # Errors
/// [`BadSetting`] where a setting is of text alone.
pub fn glyphs(s: &BuiltinSettings, facts: ImageFacts, classes: usize) -> Result<Dataset> {
    check(s)?;
    let ImageFacts { channels, size, tokens } = facts;
    let (rng, side, step) = (Rng::new(s.seed), size.div_ceil(2), (size / 4).max(1));
    let area = side * side;
    let mut patterns = vec![0f32; classes * channels * area];
    rng.stream("tiny.glyphs.patterns", 0).fill_normal(0, 1.0, &mut patterns);
    let (mut pixels, mut examples) = (Vec::new(), Vec::with_capacity(s.rows));
    for i in 0..s.rows {
        let number = i as u64 + if s.held_out { HELD_OUT } else { 0 };
        let mut draws = Draws::new(rng.stream("tiny.glyphs.places", number));
        let (class, places) = (draws.below(classes), (size - side) / step + 1);
        let (top, left) = (step * draws.below(places), step * draws.below(places));
        let mut image = vec![0f32; channels * size * size];
        rng.stream("tiny.glyphs.noise", number).fill_normal(0, 0.7, &mut image);
        for (row, pattern) in
            patterns[class * channels * area..].chunks_exact(side).take(channels * side).enumerate()
        {
            let at = (row / side * size + top + row % side) * size + left;
            image[at..at + side].iter_mut().zip(pattern).for_each(|(x, p)| *x += p);
        }
        pixels.extend(image);
        // The class is told at the first token, once labels are shifted.
        let mut labels = vec![IGNORED; tokens];
        labels[1] = class as i64;
        examples.push(Example { ids: vec![i as u32; tokens], labels, ..Example::default() });
    }
    let images = Images::new([s.rows, channels, size, size], pixels)?;
    let data = Dataset::from_examples("builtin:glyphs", examples);
    Ok(Dataset { images: Some(Arc::new(images)), shuffle: s.shuffle, ..data })
}

/// Refuses what has no meaning for images.
fn check(s: &BuiltinSettings) -> Result<(), BadSetting> {
    let own = json!({ "name": s.name, "seed": s.seed, "rows": s.rows, "held_out": s.held_out, "shuffle": s.shuffle });
    let all = |s: &BuiltinSettings| serde_json::to_value(s).unwrap_or(Json::Null);
    let Ok(plain) = serde_json::from_value::<BuiltinSettings>(own).map(|s| all(&s)) else { return Ok(()) };
    match all(s).as_object().into_iter().flatten().find(|(key, value)| plain.get(*key) != Some(value)) {
        Some((key, value)) => {
            Err(BadSetting::new(key.as_str(), format!("is {value}; images have no such thing")))
        }
        None => Ok(()),
    }
}
