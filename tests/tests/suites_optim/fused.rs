//! `fused_optimizer`: a whole run that updates inside backward.

use ramekin_tests::kitchen::{cook, json, losses};
use ramekin_tests::sha256;

fn recipe(more: &str) -> String {
    format!(
        r#"
model = {{ source = "builtin:tiny" }}

[[stage]]
kind = "train"
optimizer = {{ kind = "adamw8bit", lr = 1e-2, weight_decay = 0.01 }}
data = {{ kind = "builtin", name = "records", rows = 60, max_length = 128 }}
batch = {{ micro_batch_size = 2 }}
max_grad_norm = 0
steps = 6
{more}
"#
    )
}

/// The same losses, gradient norms and model, with one gradient alive at a time; the plan knows it.
#[test]
fn the_same_run_with_one_gradient_at_a_time() {
    for activation in ["keep", "checkpoint"] {
        let activation = format!("activation = {{ kind = \"{activation}\" }}");
        let ordinary = cook(&recipe(&activation));
        let fused = cook(&recipe(&format!("fused_optimizer = true\n{activation}")));
        assert_eq!(losses(&ordinary.out("")), losses(&fused.out("")));
        assert_eq!(losses(&fused.out("")).len(), 6);
        let model = |k: &ramekin_tests::Kitchen| sha256(&k.out("model/model.safetensors"));
        assert_eq!(model(&ordinary), model(&fused));
        let norms = |k: &ramekin_tests::Kitchen| -> Vec<String> {
            let text = std::fs::read_to_string(k.out("metrics.jsonl")).unwrap();
            let lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
            lines.map(|l| l["grad_norm"].to_string()).collect()
        };
        assert_eq!(norms(&ordinary), norms(&fused));
        let (a, b) = (ordinary.figures("0-train"), fused.figures("0-train"));
        let peak = |f: &serde_json::Value, key: &str| f[key].as_f64().unwrap();
        for key in ["planned_peak", "measured_peak"] {
            assert!(peak(&b, key) <= peak(&a, key), "{key}: {} and {}", peak(&a, key), peak(&b, key));
        }
        let ratio = peak(&b, "planned_peak") / peak(&b, "measured_peak");
        assert!((ratio - 1.0).abs() < 0.03, "planned {ratio} of what was measured");
        assert_eq!(json(&fused.out("summary.json"))["stages"]["0-train"]["steps"], 6);
    }
}
