//! Metrics over held-out rows: loss, perplexity and exact match.
