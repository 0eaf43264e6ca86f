//! Gradient clipping by the global norm.
