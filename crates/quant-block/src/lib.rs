//! Quantizers that round blocks of a weight: rtn and nf4.
