//! `ramekin parts`: the reference.

use anyhow::Result;
use ramekin_core::{UserError, suggest};
use ramekin_registry::{PartInfo, Slot, describe, find, parts};
use serde_json::{Value as Json, json};

/// Prints the list, a slot, a part or the schema.
pub fn show(which: Option<&str>, schema: bool, as_json: bool) -> Result<()> {
    if schema {
        let all: Vec<_> = parts().into_iter().map(|p| (p.slot.name(), p.name, (p.schema)())).collect();
        println!("{}", serde_json::to_string_pretty(&ramekin_recipe::schema(&all))?);
        return Ok(());
    }
    let chosen: Vec<PartInfo> = match which {
        None => parts().into_iter().map(describe).collect(),
        Some(path) => {
            let (slot, name) = path.split_once('/').map_or((path, None), |(s, n)| (s, Some(n)));
            let slot = slot_of(slot)?;
            match name {
                Some(name) => vec![describe(find(slot, name)?)],
                None => parts().into_iter().filter(|p| p.slot == slot).map(describe).collect(),
            }
        }
    };
    if as_json {
        println!("{}", serde_json::to_string_pretty(&chosen)?);
        return Ok(());
    }
    let full = which.is_some();
    let mut slot = "";
    for part in &chosen {
        if part.slot != slot {
            slot = part.slot;
            println!("{slot}");
        }
        println!("  {:<12} {}", part.name, part.summary);
        if full {
            detail(part);
        }
    }
    if !full {
        println!("\n`parts SLOT` or `parts SLOT/NAME` shows settings, defaults, traits and sources");
    }
    Ok(())
}

fn slot_of(name: &str) -> Result<Slot> {
    Ok(Slot::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| {
        let names: Vec<&str> = Slot::ALL.iter().map(|s| s.name()).collect();
        let error = UserError::new(format!("there is no slot `{name}`"));
        match suggest(name, names.iter().copied()) {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None => error.help(format!("there are: {}", names.join(", "))),
        }
    })?)
}

fn detail(part: &PartInfo) {
    println!("    source: {}", part.source);
    if !part.traits.is_empty() {
        let traits: Vec<String> =
            part.traits.iter().map(|t| json!(t).as_str().unwrap_or_default().to_owned()).collect();
        println!("    traits: {}", traits.join(", "));
    }
    for s in &part.settings {
        let text = |key: &str| s[key].as_str().unwrap_or_default().to_owned();
        let default = match &s["default"] {
            _ if s["required"] == true => "required".to_owned(),
            Json::Null => "none".to_owned(),
            d => d.to_string(),
        };
        println!("    {} ({}, default {default})", text("name"), text("type"));
        println!("        {}", text("description").replace('\n', " "));
    }
    println!();
}
