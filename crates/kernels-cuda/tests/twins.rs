//! Each CUDA twin against the CPU's reference, where there is a device; elsewhere each says that it is skipped.
#![cfg(feature = "cuda")]

use std::sync::OnceLock;

use ramekin_kernels::matmul::reference::{nn, nt};
use ramekin_kernels::perturb::Draw as CpuDraw;
use ramekin_kernels::philox::Stream;
use ramekin_kernels::{perturb, rms_norm as cpu_norm};
use ramekin_kernels_cuda::nf4_linear::{self, Nf4Weight, Scales};
use ramekin_kernels_cuda::philox_perturb::{self, Direction, Draw};
use ramekin_kernels_cuda::{Bf16, CudaError, Device, Element, rms_norm};
use ramekin_quant_block::nf4_codec::{Absmax, Nf4Data, Nf4Spec};

/// The first device. A machine without one skips; a device whose kernels are missing fails.
fn device(test: &str) -> Option<&'static Device> {
    static DEVICE: OnceLock<Result<Device, CudaError>> = OnceLock::new();
    match DEVICE.get_or_init(|| Device::open(0)) {
        Ok(device) => Some(device),
        Err(e @ (CudaError::NoDriver | CudaError::NoDevice { .. } | CudaError::TooOld { .. })) => {
            eprintln!("skipped: {test}: {e}");
            None
        }
        Err(e) => panic!("{test}: {e}"),
    }
}

/// Numbers by address; each number of a seed is another one.
struct Draws {
    stream: Stream,
    next: u64,
}

impl Draws {
    fn new(seed: u64) -> Self {
        Draws { stream: Stream::new(seed, 0xc0da), next: 0 }
    }

    /// A size from `low` to `high`, more often a small one.
    fn size(&mut self, low: usize, high: usize) -> usize {
        self.next += 1;
        let u = self.stream.uniform_at(self.next);
        low + ((high - low + 1) as f64 * u * u) as usize
    }

    /// `n` standard normals that this type holds.
    fn normals<E: Element>(&mut self, n: usize) -> Vec<E> {
        let first = self.next + 1;
        self.next += n as u64;
        (first..=self.next).map(|i| E::from_f32(self.stream.normal_at(i))).collect()
    }
}

fn wide<E: Element>(x: &[E]) -> Vec<f64> {
    x.iter().map(|x| f64::from(x.to_f32())).collect()
}

fn single<E: Element>(x: &[E]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// Asserts that each `got` is within `tolerance` · `size` of `want`; `size` is what the entry was summed up from.
#[track_caller]
fn close<E: Element>(what: &str, got: &[E], want: &[f64], size: &[f64], tolerance: f64) {
    assert!(got.len() == want.len() && got.len() == size.len(), "{what}: lengths");
    for (i, ((g, w), s)) in got.iter().zip(want).zip(size).enumerate() {
        let off = (f64::from(g.to_f32()) - w).abs();
        assert!(off <= tolerance * s, "{what}: entry {i} is {}, not {w}: off by {:e}", g.to_f32(), off / s);
    }
}

fn absolute(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x.abs()).collect()
}

/// Storing a result costs half a step; bf16 has 8 significant bits, and factors may be rounded to it too.
fn tolerance<E: Element>() -> f64 {
    if size_of::<E>() == 2 { 2f64.powi(-7) } else { 1e-6 }
}

fn norms<E: Element>(device: &Device, seed: u64) {
    let mut draws = Draws::new(seed);
    let (rows, d) = (draws.size(1, 150), draws.size(1, 3000));
    let what = format!("{} {rows}×{d}", E::NAME);
    let (x, g) = (draws.normals::<E>(rows * d), draws.normals::<E>(rows * d));
    let w = draws.normals::<E>(d);
    let eps = 1e-5f32;
    let (dx, dg, dw) = (device.upload(&x).unwrap(), device.upload(&g).unwrap(), device.upload(&w).unwrap());
    let mut y = device.zeros::<E>(rows * d).unwrap();
    let mut gx = device.zeros::<E>(rows * d).unwrap();
    let mut inv = device.zeros::<f32>(rows).unwrap();
    rms_norm::forward(device, &dx, d, &dw, eps, &mut y, &mut inv).unwrap();
    rms_norm::backward_input(device, &dg, &dx, &dw, &inv, d, &mut gx).unwrap();
    let before = draws.normals::<f32>(d);
    let mut gw = device.upload(&before).unwrap();
    rms_norm::backward_weight(device, &dg, &dx, &inv, d, &mut gw).unwrap();

    let want = cpu_norm::reference::forward(&wide(&x), d, &wide(&w), f64::from(eps));
    close(
        &format!("y of {what}"),
        &device.download(&y).unwrap(),
        &want,
        &absolute(&want),
        2.0 * tolerance::<E>(),
    );
    // The gradient to x is a difference; its error is measured against what is subtracted.
    let (mut y64, mut inv64) = (vec![0.0; rows * d], vec![0.0; rows]);
    let (x64, g64, w64) = (wide(&x), wide(&g), wide(&w));
    cpu_norm::forward(&x64, d, &w64, f64::from(eps), &mut y64, &mut inv64);
    let mut gx64 = vec![0.0; rows * d];
    cpu_norm::backward(&g64, &x64, &w64, &inv64, d, Some(&mut gx64), None);
    let mut size = Vec::new();
    for (r, s) in inv64.iter().enumerate() {
        let row = r * d..(r + 1) * d;
        let (x, g) = (&x64[row.clone()], &g64[row]);
        let sum: f64 = g.iter().zip(&w64).zip(x).map(|((g, w), x)| (g * w * x).abs()).sum();
        size.extend(
            x.iter()
                .zip(g)
                .zip(&w64)
                .map(|((x, g), w)| s * (g * w).abs() + x.abs() * s * s * s / d as f64 * sum),
        );
    }
    close(&format!("gx of {what}"), &device.download(&gx).unwrap(), &gx64, &size, 2.0 * tolerance::<E>());
    // Given the same factors, the weight's gradient has the CPU's bits.
    let mut want = before;
    let inv = device.download(&inv).unwrap();
    cpu_norm::backward(&single(&g), &single(&x), &single(&w), &inv, d, None, Some(&mut want));
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&device.download(&gw).unwrap()), bits(&want), "gw of {what}");
}

#[test]
fn rms_norm_is_its_reference() {
    let Some(device) = device("rms_norm_is_its_reference") else { return };
    for seed in 0..24 {
        norms::<f32>(device, seed);
        norms::<Bf16>(device, 100 + seed);
    }
}

#[test]
fn rms_norm_keeps_a_bad_value_in_its_row() {
    let Some(device) = device("rms_norm_keeps_a_bad_value_in_its_row") else { return };
    for d in [40, 2000] {
        let mut x = Draws::new(1).normals::<f32>(3 * d);
        x[d + 3] = f32::NAN;
        let (x, w) = (device.upload(&x).unwrap(), device.upload(&vec![1.0f32; d]).unwrap());
        let mut y = device.zeros::<f32>(3 * d).unwrap();
        let mut inv = device.zeros::<f32>(3).unwrap();
        rms_norm::forward(device, &x, d, &w, 1e-5, &mut y, &mut inv).unwrap();
        let y = device.download(&y).unwrap();
        assert!(y.chunks(d).enumerate().all(|(i, y)| y.iter().all(|y| y.is_nan() == (i == 1))));
    }
}

fn on_device(device: &Device, data: &Nf4Data) -> Nf4Weight {
    let scales = match &data.absmax {
        Absmax::Plain(absmax) => Scales::Plain(absmax),
        Absmax::Nested { codes, absmax, offset, map } => {
            Scales::Nested { codes, absmax, offset: *offset, map }
        }
    };
    Nf4Weight::upload(device, &data.packed, scales, data.block_size, data.shape).unwrap()
}

/// Forward and gradient of a packed linear, `m` rows, by the CPU's decoded weight in f64.
fn packed<E: Element>(device: &Device, seed: u64, m: usize, shape: (usize, usize)) {
    let mut draws = Draws::new(seed);
    let (out, inputs) = shape;
    let spec = Nf4Spec { block_size: 32 << draws.size(0, 7), double_quant: !seed.is_multiple_of(3) };
    let what = format!("{} {m} rows, {out}×{inputs}, {spec:?}", E::NAME);
    let data = Nf4Data::encode(&draws.normals::<f32>(out * inputs), shape, spec).unwrap();
    let mut w = vec![0.0f64; out * inputs];
    data.rows_into(0, &mut w);
    let weight = on_device(device, &data);
    let (x, g) = (draws.normals::<E>(m * inputs), draws.normals::<E>(m * out));
    let mut y = device.zeros::<E>(m * out).unwrap();
    let mut gx = device.zeros::<E>(m * inputs).unwrap();
    nf4_linear::forward(device, &device.upload(&x).unwrap(), m, &weight, &mut y).unwrap();
    nf4_linear::backward_input(device, &device.upload(&g).unwrap(), m, &weight, &mut gx).unwrap();
    let (x, g, sizes) = (wide(&x), wide(&g), absolute(&w));
    let (want, size) = (nt(m, out, inputs, &x, &w), nt(m, out, inputs, &absolute(&x), &sizes));
    close(&format!("y of {what}"), &device.download(&y).unwrap(), &want, &size, tolerance::<E>());
    let (want, size) = (nn(m, out, inputs, &g, &w), nn(m, out, inputs, &absolute(&g), &sizes));
    close(&format!("gx of {what}"), &device.download(&gx).unwrap(), &want, &size, tolerance::<E>());
}

#[test]
fn nf4_linear_is_its_reference() {
    let Some(device) = device("nf4_linear_is_its_reference") else { return };
    for seed in 0..40 {
        let mut draws = Draws::new(1000 + seed);
        let m = if seed % 4 == 3 { draws.size(9, 300) } else { 1 + seed as usize % 8 };
        let (out, inputs) = (draws.size(1, 700), draws.size(1, 1500));
        // Every other width is one that the fast kernels take.
        let inputs = if seed.is_multiple_of(2) { inputs.next_multiple_of(16) } else { inputs };
        packed::<f32>(device, seed, m, (out, inputs));
        packed::<Bf16>(device, seed, m, (out, inputs));
    }
    // Enough outputs for four a warp on any device of today.
    packed::<f32>(device, 77, 3, (20_000, 48));
    packed::<Bf16>(device, 78, 8, (20_000, 48));
}

#[test]
fn nf4_linear_gives_the_same_bits_again() {
    let Some(device) = device("nf4_linear_gives_the_same_bits_again") else { return };
    let mut draws = Draws::new(5);
    let shape = (300, 1040);
    let data = Nf4Data::encode(&draws.normals::<f32>(shape.0 * shape.1), shape, Nf4Spec::default()).unwrap();
    let weight = on_device(device, &data);
    for m in [1, 8, 130] {
        let x = device.upload(&draws.normals::<f32>(m * shape.1)).unwrap();
        let run = || {
            let mut y = device.zeros::<f32>(m * shape.0).unwrap();
            nf4_linear::forward(device, &x, m, &weight, &mut y).unwrap();
            device.download(&y).unwrap().iter().map(|y| y.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(run(), run(), "{m} rows");
    }
}

fn cpu(draw: Draw) -> CpuDraw {
    match draw {
        Draw::Normal => CpuDraw::Normal,
        Draw::Sign => CpuDraw::Sign,
    }
}

#[test]
fn perturbing_is_the_cpus() {
    let Some(device) = device("perturbing_is_the_cpus") else { return };
    for draw in [Draw::Normal, Draw::Sign] {
        for n in [1usize, 2, 3, 5, 63, 1000, 1 << 20] {
            let direction =
                Direction { key: 0x0123_4567_89ab_cdef ^ n as u64, id: 1 << 40 | 3, draw, s: 1e-2 };
            let stream = Stream::new(direction.key, direction.id);
            let before = Draws::new(n as u64).normals::<f32>(n);
            let mut x = device.upload(&before).unwrap();
            philox_perturb::add(device, &mut x, 0, &direction).unwrap();
            let got = device.download(&x).unwrap();
            let mut want = before.clone();
            perturb::add(&mut want, 0, &stream, cpu(draw), f64::from(direction.s));
            assert_eq!(got, want, "{draw:?} on {n} entries");

            // The same entries in pieces, and one at a time by their places.
            for first in [1usize, 2, 3].into_iter().filter(|f| *f < n) {
                let mut tail = device.upload(&before[first..]).unwrap();
                philox_perturb::add(device, &mut tail, first as u64, &direction).unwrap();
                assert_eq!(device.download(&tail).unwrap(), got[first..], "{draw:?} from {first}");
            }
            let places: Vec<u32> = (0..n as u32).rev().step_by(3).collect();
            let mut some =
                device.upload(&places.iter().map(|p| before[*p as usize]).collect::<Vec<_>>()).unwrap();
            philox_perturb::add_at(device, &mut some, &device.upload(&places).unwrap(), &direction).unwrap();
            let picked: Vec<f32> = places.iter().map(|p| got[*p as usize]).collect();
            assert_eq!(device.download(&some).unwrap(), picked, "{draw:?} by places");
        }
    }
}

#[test]
fn a_perturbed_linear_is_what_adding_first_gives() {
    let Some(device) = device("a_perturbed_linear_is_what_adding_first_gives") else { return };
    perturbed::<f32>(device);
    perturbed::<Bf16>(device);
}

fn perturbed<E: Element>(device: &Device) {
    for seed in 0..24u64 {
        let mut draws = Draws::new(3000 + seed);
        let m = if seed % 3 == 2 { draws.size(9, 200) } else { 1 + seed as usize % 8 };
        let (out, inputs) = (draws.size(1, 400), draws.size(1, 600));
        let draw = if seed.is_multiple_of(2) { Draw::Normal } else { Draw::Sign };
        let direction = Direction { key: seed, id: 9, draw, s: 0.1 };
        let first = seed * 5;
        let what = format!("{} {draw:?} {m} rows, {out}×{inputs}", E::NAME);
        let (x, w) = (draws.normals::<E>(m * inputs), draws.normals::<E>(out * inputs));
        let mut on_device = device.upload(&w).unwrap();
        let x_device = device.upload(&x).unwrap();
        let mut y = device.zeros::<E>(m * out).unwrap();
        let shape = (out, inputs);
        philox_perturb::linear(device, &x_device, m, &on_device, shape, first, &direction, &mut y).unwrap();
        philox_perturb::add(device, &mut on_device, first, &direction).unwrap();
        let moved = wide(&device.download(&on_device).unwrap());
        let x = wide(&x);
        let (want, size) =
            (nt(m, out, inputs, &x, &moved), nt(m, out, inputs, &absolute(&x), &absolute(&moved)));
        close(&what, &device.download(&y).unwrap(), &want, &size, tolerance::<E>());
    }
}

#[test]
fn nothing_of_nothing() {
    let Some(device) = device("nothing_of_nothing") else { return };
    let (mut y, mut inv) = (device.zeros::<f32>(0).unwrap(), device.zeros::<f32>(0).unwrap());
    let (x, w) = (device.upload::<f32>(&[]).unwrap(), device.upload(&[1.0f32; 7]).unwrap());
    rms_norm::forward(device, &x, 7, &w, 1e-5, &mut y, &mut inv).unwrap();
    let direction = Direction { key: 1, id: 2, draw: Draw::Sign, s: 1.0 };
    philox_perturb::add(device, &mut y, 0, &direction).unwrap();
    philox_perturb::linear(device, &x, 0, &w, (1, 7), 0, &direction, &mut y).unwrap();
    assert!(device.download(&y).unwrap().is_empty());
}

#[test]
fn a_device_that_is_not_there_is_a_sentence() {
    let error = Device::open(4096).map(drop).expect_err("nobody has so many");
    let said = error.to_string();
    assert!(said.contains("4096") || said.contains("libcuda.so"), "{said}");
}
