//! Decoders that pick one token at a time: greedy and sample.
