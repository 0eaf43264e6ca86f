//! Where a model comes from: the Hugging Face hub and its cache, a folder, or the built-in one.
