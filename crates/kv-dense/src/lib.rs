//! Key/value caches that keep every entry: full.
