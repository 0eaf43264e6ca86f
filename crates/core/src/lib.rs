//! Names, errors, arrays with metered bytes, counter-based randomness, sites and the parameter ledger.
