//! Builds what a command needs and forwards to it.
fn main() {}
