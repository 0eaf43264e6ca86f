//! Reading a recipe with the registry's parts, and underlining what parts refuse later.

use ramekin_core::{BadRecipe, BadSetting};
use ramekin_recipe::{Diagnostic, Diagnostics, Doc, Part, Recipe};
use ramekin_registry::{Slot, find, names};
use serde_json::{Map, Value as Json};

/// The recipe of a document, every part's settings complete and checked as far as no model is needed.
///
/// # Errors
/// Every mistake of the recipe, underlined.
pub fn recipe(doc: &Doc) -> Result<Recipe, Diagnostics> {
    Recipe::read_with(doc, |slot, part| complete(doc, slot, part))
}

/// A mistake that knows its place in the recipe, as a diagnostic that underlines it.
pub fn underlined(doc: &Doc, error: &anyhow::Error) -> Option<Diagnostic> {
    error.chain().find_map(|cause| {
        if let Some(bad) = cause.downcast_ref::<BadSetting>() {
            let part = bad.part.as_ref()?;
            let found = doc.bad_setting(part, &bad.setting, &bad.message);
            return Some(match bad.against.and_then(|slot| beside(doc, part, slot)) {
                Some((other, label)) => found.label(doc.span(&other), label),
                None => found,
            });
        }
        let bad = cause.downcast_ref::<BadRecipe>()?;
        let found = doc.mistake(&bad.message, &bad.places);
        Some(Diagnostic { help: bad.help.clone(), ..found })
    })
}

/// The part of another slot in the same stage, or in one before that it takes over from.
fn beside(doc: &Doc, part: &str, slot: &str) -> Option<(String, String)> {
    let stage: usize = part.split('.').nth(1)?.parse().ok()?;
    // What trains is an adapter, a selection or what a method brings, whichever there is.
    let slots = if slot == "adapter" { ["adapter", "selection", "method"] } else { [slot; 3] };
    (0..=stage).rev().find_map(|stage| {
        slots.iter().find_map(|slot| {
            let places = [format!("stage.{stage}.{slot}"), format!("stage.{stage}.{slot}.0")];
            places.into_iter().find_map(|place| {
                let kind = doc.value(&format!("{place}.kind"))?.as_str()?.to_owned();
                Some((place, format!("`{slot}/{kind}` stands in the way")))
            })
        })
    })
}

fn slot_of(name: &str) -> Option<Slot> {
    Slot::ALL.into_iter().find(|s| s.name() == name)
}

/// A part's settings with every default; what is wrong with them is underlined.
fn complete(doc: &Doc, slot: &'static str, part: &Part) -> Result<Map<String, Json>, Diagnostics> {
    let Some(known) = slot_of(slot) else { return Ok(part.settings.clone()) };
    let Ok(entry) = find(known, &part.kind) else {
        return Err(doc.unknown_part(slot, part, &names(known)).into());
    };
    let full = doc.complete(slot, part, |settings| (entry.complete)(settings))?;
    if let Err(e) = (entry.build)(full.clone())
        && let Some(bad) = e.chain().find_map(|c| c.downcast_ref::<BadSetting>())
    {
        return Err(doc.bad_setting(&part.path, &bad.setting, &bad.message).into());
    }
    Ok(full.as_object().cloned().unwrap_or_default())
}
