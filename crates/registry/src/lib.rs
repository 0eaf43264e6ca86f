//! Names to parts: every registered part with its settings, schema, source and traits.
