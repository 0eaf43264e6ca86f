//! TOML recipes with spans: parsing, overrides, diagnostics and the resolved recipe.
