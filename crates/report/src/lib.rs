//! What a run leaves to look at: metrics, TensorBoard events, progress and the report page.
