//! Adam-type optimizers.
