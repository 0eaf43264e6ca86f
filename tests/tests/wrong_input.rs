//! Broken recipes and files, through the binary as a user would run it.
//!
//! A case is a folder `wrong/NAME`: `recipe.toml`, whose first lines `#: ARGS` say what is
//! typed behind `ramekin` (all but the last must succeed), the files it needs beside those of
//! `wrong/_shared`, and `expected.txt`: the exit code, then standard error with the folder
//! replaced by `DIR`. Binary files are made by [`files`]. `UPDATE_EXPECTED=1` rewrites.

#[path = "wrong_input/files.rs"]
mod files;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use ramekin_tests::kitchen::binary;

fn wrong() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("wrong")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else if !path.ends_with("expected.txt") {
            std::fs::copy(&path, target).unwrap();
        }
    }
}

/// Exit code and standard error of the case's last command.
fn outcome(case: &str, dir: &Path) -> String {
    let recipe = std::fs::read_to_string(dir.join("recipe.toml")).unwrap();
    let mut commands: Vec<&str> = recipe.lines().map_while(|l| l.strip_prefix("#: ")).collect();
    if commands.is_empty() {
        commands.push("run recipe.toml");
    }
    for (i, command) in commands.iter().enumerate() {
        let output = Command::new(binary())
            .args(command.split(' '))
            .current_dir(dir)
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", dir.join("hf"))
            .env_remove("HF_TOKEN")
            .env("RAMEKIN_THREADS", "1")
            .output()
            .unwrap();
        let code = output.status.code();
        let stderr = String::from_utf8(output.stderr).unwrap();
        if i + 1 < commands.len() {
            assert_eq!(code, Some(0), "{case}: `{command}` comes before the mistake\n{stderr}");
            continue;
        }
        let code = code.unwrap_or_else(|| panic!("{case}: ended by a signal\n{stderr}"));
        let canonical = dir.canonicalize().unwrap();
        let stderr = stderr
            .replace(&canonical.display().to_string(), "DIR")
            .replace(&dir.display().to_string(), "DIR");
        for sign in ["panicked", "RUST_BACKTRACE", "Some(", "Err(", "Error {", "/src/"] {
            assert!(!stderr.contains(sign), "{case}: `{sign}` is not for users\n{stderr}");
        }
        return format!("exit code {code}\n{stderr}");
    }
    unreachable!("there is a last command")
}

fn check(case: &str) {
    let dir = tempfile::tempdir().unwrap();
    copy(&wrong().join("_shared"), dir.path());
    copy(&wrong().join(case), dir.path());
    files::make(case, dir.path());
    let found = outcome(case, dir.path());
    let file = wrong().join(case).join("expected.txt");
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(&file, &found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == expected,
        "{case} differs; UPDATE_EXPECTED=1 rewrites\n--- expected\n{expected}\n--- found\n{found}"
    );
}

macro_rules! cases {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(&stringify!($name).replace('_', "-"));
        })*

        #[test]
        fn every_folder_is_a_test() {
            let tests: BTreeSet<String> = [$(stringify!($name)),*].iter().map(|n| n.replace('_', "-")).collect();
            let folders: BTreeSet<String> = std::fs::read_dir(wrong())
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .filter(|n| !n.starts_with('_'))
                .collect();
            assert_eq!(tests, folders);
        }
    };
}

cases! {
    accuracy_of_sft
    act_bits
    adafactor_rate_twice
    adapter_lacks_tensor
    adapter_left_over
    adapter_missing
    adapter_other_shape
    adapter_unknown_kind
    adapter_unsupported_field
    bench_of_a_bench
    bench_stage_beyond
    bench_two_of_a_name
    bench_unknown_key_in_set
    bench_without_variants
    budget_too_small
    budget_too_small_run
    char_unknown_in_data
    character_unknown
    chat_without_template
    columns_misspelt
    compress_block_size
    compress_nothing
    compress_ratio
    compress_too_short
    compress_with_adapter
    config_heads
    config_inline
    config_kv_heads
    config_lacks_field
    config_lacks_model_type
    config_model_type
    config_negative
    config_no_json
    config_rope_scaling
    data_empty
    data_missing
    data_missing_plan
    dpo_smoothing
    dpo_trains_the_base
    dpo_without_pairs
    dropout_above_one
    eval_data_missing
    eval_without_rows
    exact_match_without_references
    fused_with_accumulation
    fused_with_clipping
    galore_no_target
    galore_rank_too_large
    generate_input_missing
    generate_without_prompt
    group_size
    init_config_missing
    jsonl_lacks_column
    jsonl_line_1003
    label_beyond_the_classes
    labels_masked
    meft_checkpoint_every
    meft_freezes_nothing
    meft_lambda_zero
    meft_merged
    meft_norm_of_meft3
    meft_too_many_layers
    merge_base_unread
    merge_density
    merge_later_stage
    merge_lora_with_models
    merge_method_misspelt
    merge_model_missing
    merge_nan
    merge_no_delta
    merge_other_base
    merge_other_shape
    merge_other_tensors
    merge_other_tokenizer
    merge_search_without_rows
    merge_with_adapter
    merge_without_models
    method_with_activation
    method_with_adapter
    method_with_selection
    metric_unknown
    mezo_log_only_without_base
    model_beside_model
    model_builtin_unknown
    model_folder_missing
    model_is_hub_name
    model_none
    model_offline
    model_stage_missing
    model_without_config
    module_misspelt
    modules_regex_invalid
    modules_regex_no_match
    offload_prefetch_buffers
    offload_unknown_key
    part_misspelt
    per_layer_with_clip_part
    per_layer_with_clipping
    pyra_too_long_a_schedule
    pyra_too_many_tokens
    pyra_two_at_once
    quantizer_in_a_later_stage
    quantizer_with_full_training
    rank_zero
    rate_negative
    recipe_missing
    recipe_no_toml
    resume_other_recipe
    safetensors_dtype
    safetensors_duplicate
    safetensors_empty
    safetensors_header_length
    safetensors_no_json
    safetensors_offsets
    safetensors_shape
    safetensors_truncated
    set_bad_path
    set_bad_stage
    set_bad_value
    setting_misspelt
    several_mistakes
    slot_misspelt
    stage_key_misspelt
    stage_key_of_another
    stage_kind_misspelt
    teacher_missing
    teacher_with_another_vocabulary
    template_missing
    template_raises
    template_syntax
    tensor_missing
    tensor_shape
    tokenizer_missing
    tokenizer_no_json
    tokenizer_none
    tokenizer_text_missing
    tokenizer_too_large
    tokens_file_missing
    weights_nan
    wrong_type
    zo2_with_adamw
    zo2_with_clipping
    zo2_with_prefix
}
