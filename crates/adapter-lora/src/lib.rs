//! Low-rank adapters in PEFT's parametrisation.
