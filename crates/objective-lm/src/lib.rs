//! Language-model objectives: sft.
