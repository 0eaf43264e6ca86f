//! What every optimizer and every gradient transform must do, whoever wrote it.
//!
//! The parts come from the registry: one that is not in the table below fails the suite, so nobody
//! registers a part without being in it.

#[path = "suites_optim/fused.rs"]
mod fused;
#[path = "suites_optim/mask.rs"]
mod mask;
#[path = "suites_optim/replay.rs"]
mod replay;
#[path = "suites_optim/suite.rs"]
mod suite;
