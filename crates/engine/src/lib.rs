//! The stage loop: training step, generation, merge, evaluation and resume.
