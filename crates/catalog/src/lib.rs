//! Links every built-in family of parts into a binary.
