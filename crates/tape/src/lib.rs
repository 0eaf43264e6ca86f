//! Reverse-mode differentiation over untracked tensors.
