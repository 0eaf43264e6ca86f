//! The CUDA twins against the device's own copy bandwidth: medians of 20 launches, in one run.
//!
//! `cargo run --release --features cuda --package ramekin-kernels-cuda --example cuda-bandwidth`

use std::process::ExitCode;

use cudarc::driver::sys::CUevent_flags;
use ramekin_kernels_cuda::nf4_linear::{self, Nf4Weight, Scales};
use ramekin_kernels_cuda::philox_perturb::{self, Direction, Draw};
use ramekin_kernels_cuda::{Bf16, CudaError, Device, Element, rms_norm};

const RUNS: usize = 20;

/// Seconds of the median launch; the first ones, which load the kernel and fill caches, do not count.
fn median(device: &Device, mut launch: impl FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    let mut seconds = Vec::new();
    for run in 0..RUNS + 3 {
        let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let begun = device.stream().record_event(flags)?;
        launch()?;
        let ended = device.stream().record_event(flags)?;
        if run >= 3 {
            seconds.push(f64::from(begun.elapsed_ms(&ended)?) / 1e3);
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// One line: what, how long, which bytes must move, and how that compares with copying as many.
fn line(what: &str, seconds: f64, bytes: f64, copy: f64, operations: f64) {
    let rate = bytes / seconds;
    let work =
        if operations > 0.0 { format!("{:8.1} TFLOP/s", operations / seconds / 1e12) } else { String::new() };
    println!(
        "{what:<44} {:9.1} µs {:8.0} GB/s {:5.2} of copy {work}",
        seconds * 1e6,
        rate / 1e9,
        rate / copy
    );
}

fn norms<E: Element>(device: &Device, copy: f64) -> Result<(), CudaError> {
    for d in [1024, 4096, 8192] {
        let rows = (1 << 26) / d;
        let n = (rows * d * size_of::<E>()) as f64;
        let (x, g) = (device.zeros::<E>(rows * d)?, device.zeros::<E>(rows * d)?);
        let (w, mut y) = (device.zeros::<E>(d)?, device.zeros::<E>(rows * d)?);
        let (mut inv, mut gw) = (device.zeros::<f32>(rows)?, device.zeros::<f32>(d)?);
        let name = |what: &str| format!("rms_norm {what} {} {rows}×{d}", E::NAME);
        let t = median(device, || rms_norm::forward(device, &x, d, &w, 1e-5, &mut y, &mut inv))?;
        line(&name("forward"), t, 2.0 * n, copy, 0.0);
        let t = median(device, || rms_norm::backward_input(device, &g, &x, &w, &inv, d, &mut y))?;
        line(&name("backward to x"), t, 3.0 * n, copy, 0.0);
        let t = median(device, || rms_norm::backward_weight(device, &g, &x, &inv, d, &mut gw))?;
        line(&name("backward to w"), t, 2.0 * n, copy, 0.0);
    }
    Ok(())
}

fn packed<E: Element>(device: &Device, copy: f64) -> Result<(), CudaError> {
    for (out, inputs) in [(4096usize, 4096usize), (14336, 4096), (32768, 8192)] {
        // Codes and scales that differ, so that look-ups meet what they meet in a weight.
        let codes: Vec<u8> = (0..out * inputs / 2).map(|i| ((i * 2_654_435_761) >> 13) as u8).collect();
        let blocks: usize = out * inputs / 64;
        let scales: Vec<u8> = (0..blocks).map(|i| ((i * 40_503) >> 5) as u8).collect();
        let map: [f32; 256] = std::array::from_fn(|i| i as f32 / 256.0 - 0.5);
        let absmax = vec![0.02f32; blocks.div_ceil(256)];
        let nested = Scales::Nested { codes: &scales, absmax: &absmax, offset: 0.03, map: &map };
        let w = Nf4Weight::upload(device, &codes, nested, 64, (out, inputs))?;
        for m in [1, 2, 4, 8, 64, 512, 4096] {
            let x = device.zeros::<E>(m * inputs)?;
            let mut y = device.zeros::<E>(m * out)?;
            let bytes = (w.bytes() + m * (out + inputs) * size_of::<E>()) as f64;
            let operations = 2.0 * (m * out * inputs) as f64;
            let t = median(device, || nf4_linear::forward(device, &x, m, &w, &mut y))?;
            line(&format!("nf4_linear {} {m} rows {out}×{inputs}", E::NAME), t, bytes, copy, operations);
            if m >= 512 {
                let (g, mut gx) = (y, x);
                let t = median(device, || nf4_linear::backward_input(device, &g, m, &w, &mut gx))?;
                line(
                    &format!("nf4_linear to x {} {m} rows {out}×{inputs}", E::NAME),
                    t,
                    bytes,
                    copy,
                    operations,
                );
            }
        }
    }
    Ok(())
}

fn perturbed<E: Element>(device: &Device, copy: f64) -> Result<(), CudaError> {
    for draw in [Draw::Normal, Draw::Sign] {
        let direction = Direction { key: 1, id: 2, draw, s: 1e-3 };
        let mut x = device.zeros::<E>(1 << 28)?;
        let bytes = (2 * x.num_bytes()) as f64;
        let t = median(device, || philox_perturb::add(device, &mut x, 0, &direction))?;
        line(&format!("perturb add {draw:?} {} 2²⁸", E::NAME), t, bytes, copy, 0.0);
        let shape = (14336, 4096);
        let w = device.zeros::<E>(shape.0 * shape.1)?;
        for m in [1, 8, 512] {
            let (x, mut y) = (device.zeros::<E>(m * shape.1)?, device.zeros::<E>(m * shape.0)?);
            let t =
                median(device, || philox_perturb::linear(device, &x, m, &w, shape, 0, &direction, &mut y))?;
            let operations = 2.0 * (m * shape.0 * shape.1) as f64;
            let what = format!("perturb linear {draw:?} {} {m} rows", E::NAME);
            line(&what, t, w.num_bytes() as f64, copy, operations);
        }
    }
    Ok(())
}

fn run() -> Result<(), CudaError> {
    let device = Device::open(0)?;
    let (major, minor) = device.capability();
    println!("{}, compute capability {major}.{minor}", device.name()?);
    let (from, mut to) = (device.zeros::<u8>(1 << 30)?, device.zeros::<u8>(1 << 30)?);
    let t = median(&device, || Ok(device.stream().memcpy_dtod(&from, &mut to)?))?;
    let copy = 2.0 * (1u64 << 30) as f64 / t;
    line("copy of 1 GiB, read and written", t, copy * t, copy, 0.0);
    drop((from, to));
    norms::<f32>(&device, copy)?;
    norms::<Bf16>(&device, copy)?;
    packed::<f32>(&device, copy)?;
    packed::<Bf16>(&device, copy)?;
    perturbed::<f32>(&device, copy)?;
    perturbed::<Bf16>(&device, copy)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
