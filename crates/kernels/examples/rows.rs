use ramekin_kernels::packed_rows::*;
use std::time::Instant;
fn main() {
    let threads: usize = std::env::args().nth(1).map_or(2, |s| s.parse().unwrap());
    rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global().unwrap();
    ramekin_kernels::team::start(threads);
    for (n, k) in [(576usize, 576usize), (1536, 576), (576, 1536), (32000, 576), (2048, 2048)] {
        for bits in [4u32, 8] {
            let copies = if std::env::var("ONE").is_ok() { 1 } else { 1 }
                * (if std::env::var("ONE").is_ok() { 1 } else { 80_000_000 } / (n * k * bits as usize / 8))
                    .max(1);
            let ws: Vec<_> = (0..copies)
                .map(|c| (vec![(c * 37 % 251) as u8; n * k * bits as usize / 8], vec![0.01f32; n * k / 32]))
                .collect();
            let x: Vec<f32> = (0..k).map(|i| (i % 17) as f32 - 8.0).collect();
            let mut y = vec![0.0; n];
            let mut best = 1e9f64;
            for _ in 0..if copies == 1 { 200 } else { 5 } {
                let t = Instant::now();
                for (p, s) in &ws {
                    let w = Layout::Grid(Grid {
                        packed: p,
                        bits,
                        group: 32,
                        scales: s,
                        zeros: &[],
                        middle: 8.0,
                        shape: (n, k),
                    });
                    assert!(forward(&x, 1, &w, true, &mut y));
                }
                best = best.min(t.elapsed().as_secs_f64());
            }
            let bytes = copies * (n * k * bits as usize / 8 + n * k / 8);
            println!(
                "{n}x{k} {bits} bits: {:.1} GB/s, {:.1} us each",
                bytes as f64 / best / 1e9,
                best * 1e6 / copies as f64
            );
        }
    }
}
