//! Check 2: folded equals unfolded, on a toy ViT, a toy ConvNet, a toy mixer, and a llama through files.

use std::collections::BTreeMap;

use ramekin_core::Rng;
use ramekin_kernels::activation::{self, Activation};
use ramekin_kernels::scale_shift::{fold_bias, fold_rows};
use ramekin_tape::Tape;
use ramekin_tape::ops::{self, Channels};
use ramekin_tests::compare::{close, difference, largest};
use ramekin_tests::kitchen::json as read_json;
use ramekin_tests::tensors;
use serde_json::json;

use crate::toy_vit::Vit;
use crate::{normal, ok, value};

/// γ in [0.5, 1.5] or β in [−0.5, 0.5], by name.
fn drawn(name: &str, n: usize, scale: bool) -> Vec<f32> {
    let mut x = vec![0.0; n];
    let (lo, hi) = if scale { (0.5, 1.5) } else { (-0.5, 0.5) };
    Rng::new(4).named("pairs", name).fill_uniform(0, lo, hi, &mut x);
    x
}

#[test]
fn check_2_vit() {
    let vit = Vit::new(3, 0.3, Some(("ssf", json!({ "train_head": false }))));
    for param in vit.ledger.trainable() {
        let name = param.name();
        let numbers = drawn(name, param.value().len(), name.ends_with("ssf_scale"));
        param.value().update(|x: &mut [f32]| x.copy_from_slice(&numbers)).expect("f32");
    }
    let x = normal("vit", 6 * 64, 1.0);
    let want = vit.outputs(&x);
    let folded = |unscaled_bias: bool| {
        let plain = Vit::new(3, 0.3, None);
        let mut keys = Vec::new();
        let mut put = |name: &str, numbers: Vec<f32>| {
            let param = ok(plain.sites.param(name)).base().value();
            param.update(|x: &mut [f32]| x.copy_from_slice(&numbers)).expect("f32");
            keys.push(name.to_owned());
        };
        for site in vit.sites.linears() {
            put(&format!("{}.weight", site.path), ok(ok(site.merged(&vit.sites)).to_f32()));
            let name = site.bias.clone().expect("a bias");
            let mut bias = ok(ok(vit.sites.folded_bias(site)).expect("a bias").to_f32());
            if unscaled_bias && !site.is_head {
                let own = ok(ok(vit.sites.param(&name)).base().value().to_f32());
                let scaled = drawn(&format!("base_model.model.{}.ssf_scale", site.path), bias.len(), true);
                bias.iter_mut().zip(own).zip(scaled).for_each(|((b, own), s)| *b += own - s * own);
            }
            put(&name, bias);
        }
        for module in vit.sites.modules() {
            for tail in ["weight", "bias"] {
                let name = format!("{}.{tail}", module.path);
                put(&name, ok(ok(vit.sites.folded_norm(&name)).expect("a folded norm").to_f32()));
            }
        }
        keys.push("positions".to_owned());
        keys.sort();
        let mut all = plain.sites.param_names().to_vec();
        all.sort();
        assert_eq!(keys, all, "the original tensors");
        assert!(ok(vit.sites.new_biases()).is_empty());
        plain.outputs(&x)
    };
    close("vit", &folded(false), &want, 1e-5);
    let wrong = difference(&folded(true), &want) / largest(&want);
    println!("bias left unscaled: off by {wrong:.3}");
    assert!(wrong > 1e-2, "a bias left unscaled is off by {wrong} only");
}

/// A layer of a plain network: weights, bias, and the pair behind it.
struct Layer {
    w: Vec<f32>,
    b: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
}

impl Layer {
    fn new(name: &str, outputs: usize, width: usize) -> Self {
        Layer {
            w: normal(&format!("{name}.w"), outputs * width, 1.0 / (width as f64).sqrt()),
            b: normal(&format!("{name}.b"), outputs, 0.3),
            gamma: drawn(&format!("{name}.gamma"), outputs, true),
            beta: drawn(&format!("{name}.beta"), outputs, false),
        }
    }

    /// The same function without a pair; wrong if the bias stays unscaled.
    fn folded(&self, scale_bias: bool) -> Self {
        let (mut w, mut b) = (self.w.clone(), self.b.clone());
        fold_rows(&self.gamma, &mut w);
        if scale_bias {
            fold_bias(&self.gamma, &self.beta, &mut b);
        } else {
            b.iter_mut().zip(&self.beta).for_each(|(b, t)| *b += t);
        }
        let n = b.len();
        Layer { w, b, gamma: vec![1.0; n], beta: vec![0.0; n] }
    }

    fn pair(&self, x: Vec<f32>, dims: &[usize], channels: Channels) -> Vec<f32> {
        let c = self.gamma.len();
        let (s, t) = (value(self.gamma.clone(), &[c]), value(self.beta.clone(), &[c]));
        let y = ok(ops::scale_shift(&Tape::off(), &value(x, dims), &s, &t, channels));
        ok(y.array().to_f32())
    }

    /// Rows of inputs to rows of outputs.
    fn linear(&self, x: &[f32], width: usize) -> Vec<f32> {
        let row = |x: &[f32]| -> Vec<f32> {
            self.w
                .chunks(width)
                .zip(&self.b)
                .map(|(w, b)| b + w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>())
                .collect()
        };
        let y: Vec<f32> = x.chunks(width).flat_map(row).collect();
        let n = y.len() / self.b.len();
        self.pair(y, &[n, self.b.len()], Channels::Last)
    }

    /// `[C, s, s]` to `[O, s/stride, s/stride]`, 3×3 or 1×1 with zeros around, C or 1 inputs an output.
    fn conv(&self, x: &[f32], (c, s): (usize, usize), stride: usize, depthwise: bool, k: usize) -> Vec<f32> {
        let (o, out, per) = (self.b.len(), s / stride, if depthwise { 1 } else { c });
        let mut y = Vec::with_capacity(o * out * out);
        for n in 0..o {
            for at in 0..out * out {
                let mut sum = self.b[n];
                for i in 0..per {
                    let channel = if depthwise { n } else { i };
                    for t in 0..k * k {
                        let shift =
                            |p: usize, d: usize| (p * stride + d).checked_sub(k / 2).filter(|p| *p < s);
                        let (Some(row), Some(col)) = (shift(at / out, t / k), shift(at % out, t % k)) else {
                            continue;
                        };
                        sum += self.w[(n * per + i) * k * k + t] * x[channel * s * s + row * s + col];
                    }
                }
                y.push(sum);
            }
        }
        self.pair(y, &[1, o, out, out], Channels::Second)
    }

    /// Group norm over `[C, …]` with two groups.
    fn group_norm(&self, x: &[f32]) -> Vec<f32> {
        let (half, inner) = (x.len() / 2, x.len() / self.b.len());
        let mut y = Vec::with_capacity(x.len());
        for group in x.chunks(half) {
            let mean = group.iter().sum::<f32>() / half as f32;
            let spread = group.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / half as f32;
            y.extend(group.iter().map(|x| (x - mean) / (spread + 1e-5).sqrt()));
        }
        for (i, y) in y.iter_mut().enumerate() {
            *y = *y * self.w[i / inner] + self.b[i / inner];
        }
        self.pair(y, &[1, self.b.len(), inner], Channels::Second)
    }
}

fn bent(x: Vec<f32>, f: Activation) -> Vec<f32> {
    let mut y = x.clone();
    activation::forward(f, &x, &mut y);
    y
}

/// Fails unless folding all layers keeps what `run` gives, and folding wrongly does not.
fn folding_keeps(what: &str, layers: Vec<Layer>, run: impl Fn(&[Layer]) -> Vec<f32>) {
    let want = run(&layers);
    let folded = |scale_bias| run(&layers.iter().map(|l| l.folded(scale_bias)).collect::<Vec<_>>());
    close(what, &folded(true), &want, 1e-5);
    let wrong = difference(&folded(false), &want) / largest(&want);
    assert!(wrong > 1e-2, "{what}: a bias left unscaled is off by {wrong} only");
}

#[test]
fn check_2_conv_net() {
    let layers = vec![
        Layer::new("stem", 8, 3 * 9),
        Layer::new("norm", 8, 1),
        Layer::new("depthwise", 8, 9),
        Layer::new("point", 6, 8),
        Layer::new("last", 5, 6 * 9),
    ];
    let x = normal("image", 3 * 64, 1.0);
    folding_keeps("conv net", layers, |l| {
        let h = l[0].conv(&x, (3, 8), 2, false, 3);
        let h = bent(l[1].group_norm(&h), Activation::Relu);
        let h = l[2].conv(&h, (8, 4), 1, true, 3);
        let h = bent(l[3].conv(&h, (8, 4), 1, false, 1), Activation::Gelu);
        l[4].conv(&h, (6, 4), 2, false, 3)
    });
}

#[test]
fn check_2_mixer() {
    const T: usize = 6; // tokens
    const C: usize = 5; // channels
    let layers = vec![
        Layer::new("tokens 1", 7, T),
        Layer::new("tokens 2", T, 7),
        Layer::new("channels 1", 9, C),
        Layer::new("channels 2", C, 9),
    ];
    let x = normal("mixer", T * C, 1.0);
    let turn = |x: &[f32], rows: usize| -> Vec<f32> {
        let columns = x.len() / rows;
        (0..x.len()).map(|n| x[n % rows * columns + n / rows]).collect()
    };
    folding_keeps("mixer", layers, |l| {
        let across = l[1].linear(&bent(l[0].linear(&turn(&x, T), T), Activation::Gelu), 7);
        let h: Vec<f32> = x.iter().zip(turn(&across, C)).map(|(a, b)| a + b).collect();
        let along = l[3].linear(&bent(l[2].linear(&h, C), Activation::Gelu), 9);
        h.iter().zip(along).map(|(a, b)| a + b).collect()
    });
}

/// A llama has no biases: folding makes them, says so in the config, and the file equals base + adapter.
#[test]
fn check_2_llama_through_files() {
    let recipe = |sites: &str| {
        format!(
            r#"
[model]
source = "init"
[model.config]
model_type = "llama"
architectures = ["LlamaForCausalLM"]
vocab_size = 61
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
initializer_range = 0.18
max_position_embeddings = 64
[[stage]]
kind = "train"
adapter = [{{ kind = "ssf", init_std = 0.3, sites = {sites} }}]
optimizer = {{ kind = "adamw", lr = 1e-2 }}
data = {{ kind = "tokens", path = "ids.safetensors", repeat = true }}
steps = 2
[[stage]]
kind = "merge"
"#
        )
    };
    let cooked = |sites: &str| {
        let kitchen = ramekin_tests::Kitchen::new(&recipe(sites));
        let rows = ramekin_tests::lab::sequences(&[12, 12], 61, 2);
        ramekin_tests::write_ids(&kitchen.folder().join("ids.safetensors"), &rows);
        let outcome = kitchen.run(&[]);
        (kitchen, outcome)
    };
    let (kitchen, outcome) = cooked(r#"["linear", "norm"]"#);
    outcome.expect(0);
    let config = read_json(&kitchen.out("model/config.json"));
    assert_eq!((&config["attention_bias"], &config["mlp_bias"]), (&json!(true), &json!(true)));
    let shapes: BTreeMap<String, Vec<usize>> = tensors(&kitchen.out("model/model.safetensors"))
        .into_iter()
        .map(|(n, t)| (n, t.dims().to_vec()))
        .collect();
    assert_eq!(shapes.len(), 2 + 1 + 2 * (2 + 7 + 7), "the model's own tensors, and seven biases a layer");
    assert_eq!(shapes["model.layers.1.mlp.up_proj.bias"], [48]);
    assert_eq!(shapes["model.layers.0.input_layernorm.weight"], [32]);
    let certificate = &kitchen.figures("1-merge");
    println!("certificate: {}", certificate["relative"]);

    let (_, outcome) = cooked("\"all\"");
    outcome.expect(2);
    assert!(outcome.stderr.contains("leave \"final_norm\" out of `sites`"), "{}", outcome.stderr);
}
