//! Activation policies that keep or recompute a block: keep and checkpoint.
