//! The sheet's model: a causal pre-LN language model with learned positions and an untied head.
//!
//! N tokens of sequences of [`CONTEXT`]; residual branches are halved. LayerNorm is RMSNorm of centred
//! rows and centring a fixed linear; GELU (tanh) is written down here.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Category, Param, Rng};
use ramekin_kernels::Real;
use ramekin_tape::ops::{self, AttentionSpec, CrossEntropy, KeyValue, Segment};
use ramekin_tape::{GradSink, Tape, Value};

/// Tokens of the vocabulary.
pub const TOKENS: usize = 16;
/// Tokens of a sequence.
pub const CONTEXT: usize = 16;
/// Rank of what is factorised.
pub const RANK: usize = 16;

const WIDTH: usize = 64;
const FFN: usize = 256;
const BLOCKS: usize = 2;
const HEADS: usize = 4;

/// A linear: its weight, or two factors B A of it.
struct Linear {
    parts: Vec<Arc<Param>>,
}

impl Linear {
    /// torch's own start, U(±1/√inputs); factors whose product has the same spread.
    fn new(name: &str, outputs: usize, inputs: usize, factorised: bool, rng: Rng) -> Self {
        let bound = 1.0 / (inputs as f64).sqrt();
        if !factorised {
            return Linear {
                parts: vec![uniform(&format!("{name}.weight"), &[outputs, inputs], bound, rng)],
            };
        }
        // The variance of a sum of RANK products of numbers with variances b²/3 each is RANK·b⁴/9.
        let own = (3.0 * bound * bound / RANK as f64).sqrt().sqrt();
        let a = uniform(&format!("{name}.a"), &[RANK, inputs], own, rng);
        Linear { parts: vec![a, uniform(&format!("{name}.b"), &[outputs, RANK], own, rng)] }
    }

    fn forward(&self, tape: &Tape, x: &Value) -> Result<Value> {
        self.parts.iter().try_fold(x.clone(), |x, w| ops::linear(tape, &x, &tape.param(w)?, None))
    }
}

fn uniform(name: &str, dims: &[usize], bound: f64, rng: Rng) -> Arc<Param> {
    let mut x = vec![0f32; dims.iter().product()];
    rng.named("uniform", name).fill_uniform(0, -bound, bound, &mut x);
    trained(name, x, dims)
}

fn trained(name: &str, x: Vec<f32>, dims: &[usize]) -> Arc<Param> {
    let param = Param::new(name, Array::from_vec(x, dims, Category::Weights).unwrap());
    param.set_trainable(true);
    param
}

struct Norm {
    weight: Arc<Param>,
    bias: Arc<Param>,
}

impl Norm {
    fn new(name: &str) -> Self {
        let weight = trained(&format!("{name}.weight"), vec![1.0; WIDTH], &[WIDTH]);
        Norm { weight, bias: trained(&format!("{name}.bias"), vec![0.0; WIDTH], &[WIDTH]) }
    }

    fn forward(&self, tape: &Tape, x: &Value) -> Result<Value> {
        let centre: Vec<f32> = (0..WIDTH * WIDTH)
            .map(|e| f32::from(u8::from(e / WIDTH == e % WIDTH)) - 1.0 / WIDTH as f32)
            .collect();
        let centre = Value::constant(Array::from_vec(centre, &[WIDTH, WIDTH], Category::Workspace)?);
        let x = ops::linear(tape, x, &centre, None)?;
        let x = ops::rms_norm(tape, &x, &tape.param(&self.weight)?, 1e-5)?;
        ops::add_row(tape, &x, &tape.param(&self.bias)?, 1.0)
    }
}

struct Block {
    before: [Norm; 2],
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    up: Linear,
    down: Linear,
}

/// The model.
pub struct Gpt {
    tokens: Arc<Param>,
    positions: Arc<Param>,
    blocks: Vec<Block>,
    norm: Norm,
    head: Linear,
}

impl Gpt {
    /// Fresh weights; with `factorised`, the blocks' linears are products of two thin ones.
    pub fn new(seed: u64, factorised: bool) -> Self {
        let rng = Rng::new(seed);
        let table = |name: &str, rows: usize| {
            let mut x = vec![0f32; rows * WIDTH];
            rng.named("normal", name).fill_normal(0, 0.02, &mut x);
            trained(name, x, &[rows, WIDTH])
        };
        let block = |i: usize| {
            let linear = |name: &str, outputs, inputs| {
                Linear::new(&format!("blocks.{i}.{name}"), outputs, inputs, factorised, rng)
            };
            Block {
                before: [1, 2].map(|n| Norm::new(&format!("blocks.{i}.norm{n}"))),
                q: linear("attn.q", WIDTH, WIDTH),
                k: linear("attn.k", WIDTH, WIDTH),
                v: linear("attn.v", WIDTH, WIDTH),
                o: linear("attn.o", WIDTH, WIDTH),
                up: linear("mlp.up", FFN, WIDTH),
                down: linear("mlp.down", WIDTH, FFN),
            }
        };
        Gpt {
            tokens: table("tokens", TOKENS),
            positions: table("positions", CONTEXT),
            blocks: (0..BLOCKS).map(block).collect(),
            norm: Norm::new("norm"),
            head: Linear::new("head", TOKENS, WIDTH, false, rng),
        }
    }

    /// The linears inside the blocks.
    pub fn inner(&self) -> Vec<Arc<Param>> {
        let of = |b: &Block| {
            [&b.q, &b.k, &b.v, &b.o, &b.up, &b.down].map(|l| l.parts.clone()).into_iter().flatten().collect()
        };
        self.blocks.iter().flat_map(|b| -> Vec<Arc<Param>> { of(b) }).collect()
    }

    /// Mean loss of the next token over texts of one more than [`CONTEXT`]; gradients go to `sink`.
    pub fn loss(&self, texts: &[Vec<u32>], sink: Option<&mut dyn GradSink>) -> Result<f64> {
        let tape = if sink.is_some() { Tape::new() } else { Tape::off() };
        let ids = Rc::new(texts.iter().flat_map(|t| t[..CONTEXT].to_vec()).collect::<Vec<u32>>());
        let places = Rc::new(texts.iter().flat_map(|_| 0..CONTEXT as u32).collect::<Vec<u32>>());
        let labels: Vec<i64> = texts.iter().flat_map(|t| t[1..].iter().map(|id| i64::from(*id))).collect();
        let segment = |i: usize| {
            let start = i * CONTEXT;
            Segment { q_start: start, q_len: CONTEXT, k_start: start, k_len: CONTEXT }
        };
        let segments = Rc::new((0..texts.len()).map(segment).collect::<Vec<_>>());
        let mut h = ops::add(
            &tape,
            &ops::embedding(&tape, &tape.param(&self.tokens)?, &ids)?,
            &ops::embedding(&tape, &tape.param(&self.positions)?, &places)?,
        )?;
        for block in &self.blocks {
            h = block.forward(&tape, &h, &segments)?;
        }
        let logits = self.head.forward(&tape, &self.norm.forward(&tape, &h)?)?;
        let scale = 1.0 / labels.len() as f64;
        let loss = ops::cross_entropy(&tape, logits, &labels, scale, CrossEntropy::default())?;
        if let Some(sink) = sink {
            tape.backward_scalar(&loss, sink)?;
        }
        loss.array().scalar()
    }
}

impl Block {
    fn forward(&self, tape: &Tape, h: &Value, segments: &Rc<Vec<Segment>>) -> Result<Value> {
        let head_dim = WIDTH / HEADS;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let spec = AttentionSpec {
            heads: HEADS,
            kv_heads: HEADS,
            head_dim,
            scale,
            reach: ramekin_tape::ops::Reach::ALL,
            causal: true,
            bf16: false,
        };
        let x = self.before[0].forward(tape, h)?;
        let (q, k, v) = (self.q.forward(tape, &x)?, self.k.forward(tape, &x)?, self.v.forward(tape, &x)?);
        let mixed = ops::attention(tape, &q, &KeyValue { k: &k, v: &v }, segments, spec)?;
        let half = |x: &Value| ops::scale(tape, x, 0.5);
        let h = ops::add(tape, h, &half(&self.o.forward(tape, &mixed)?)?)?;
        let x = self.before[1].forward(tape, &h)?;
        let x = gelu(tape, &self.up.forward(tape, &x)?)?;
        ops::add(tape, &h, &half(&self.down.forward(tape, &x)?)?)
    }
}

/// x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))), as x · sigmoid of twice the argument.
fn gelu(tape: &Tape, x: &Value) -> Result<Value> {
    let root = 2.0 * (2.0 / std::f32::consts::PI).sqrt();
    let dims = x.dims().to_vec();
    let input = x.array().to_f32()?;
    let share: Vec<f32> = input.iter().map(|x| Real::sigmoid(root * (x + 0.044715 * x * x * x))).collect();
    let y = input.iter().zip(&share).map(|(x, s)| x * s).collect();
    let y = Array::from_vec(y, &dims, Category::Workspace)?;
    tape.record(&[x], y, || {
        Ok(Box::new(move |g: Array| {
            let slope = |x: f32, s: f32| s + x * s * (1.0 - s) * root * (1.0 + 3.0 * 0.044715 * x * x);
            let g = g.view::<f32>()?;
            let flow = g.iter().zip(input.iter().zip(&share)).map(|(g, (x, s))| g * slope(*x, *s)).collect();
            Ok(vec![Some(Array::from_vec(flow, &dims, Category::Workspace)?)])
        }))
    })
}
