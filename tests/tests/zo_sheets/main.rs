//! What the sheets of the zeroth-order methods say must hold; a test is called as its item there.

mod bf16;
mod log;
mod mezo;
mod zo2;
