//! What the sheets of the zeroth-order methods say must hold; a test is called as its item there.

mod log;
mod mezo;
mod zo2;
