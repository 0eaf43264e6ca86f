//! Links every built-in family of parts: one line a family.
//!
//! `inventory` collects what is linked, and a crate that nobody names may be
//! left out by the linker; [`link`] names them all.

use ramekin_activation_offload as _;
use ramekin_activation_recompute as _;
use ramekin_adapter_bottleneck as _;
use ramekin_adapter_lora as _;
use ramekin_adapter_lycoris as _;
use ramekin_adapter_network as _;
use ramekin_adapter_prompt as _;
use ramekin_adapter_scale as _;
use ramekin_adapter_vector as _;
use ramekin_attention_reach as _;
use ramekin_comm_local as _;
use ramekin_decode_model as _;
use ramekin_decode_sample as _;
use ramekin_decode_search as _;
use ramekin_estimate_backprop as _;
use ramekin_estimate_zo as _;
use ramekin_gradient_clip as _;
use ramekin_gradient_project as _;
use ramekin_hook_layers as _;
use ramekin_hook_watch as _;
use ramekin_kv_dense as _;
use ramekin_kv_evict as _;
use ramekin_kv_quant as _;
use ramekin_merge_vectors as _;
use ramekin_method_reversible as _;
use ramekin_model_llama as _;
use ramekin_model_vit as _;
use ramekin_objective_distil as _;
use ramekin_objective_head as _;
use ramekin_objective_lm as _;
use ramekin_objective_preference as _;
use ramekin_optim_adam as _;
use ramekin_optim_factored as _;
use ramekin_optim_momentum as _;
use ramekin_placement_stream as _;
use ramekin_prune_channels as _;
use ramekin_quant_block as _;
use ramekin_reduce_merge as _;
use ramekin_schedule_curves as _;
use ramekin_search_space as _;
use ramekin_select_half as _;
use ramekin_select_slice as _;
use ramekin_select_sparse as _;
use ramekin_select_whole as _;
use ramekin_track_files as _;

/// How many parts are linked; calling it keeps them so.
pub fn link() -> usize {
    ramekin_registry::parts().len()
}
