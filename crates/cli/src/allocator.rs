//! The process's allocator: arrays from the arena, which keeps them for the next step, the rest from mimalloc.

#[global_allocator]
static ALLOCATOR: ramekin_arena::Arena<mimalloc::MiMalloc> = ramekin_arena::Arena(mimalloc::MiMalloc);
