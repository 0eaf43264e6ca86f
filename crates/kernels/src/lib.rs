//! Numerical operations on slices: the formula, a plain reference and the fast CPU twin of each.
