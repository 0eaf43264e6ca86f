//! The *must hold* checks of the sheets of decoders: `SHEET::check_n`.

mod emulated_tuning;
