//! What this machine multiplies, for guesses of time.

use std::sync::OnceLock;
use std::time::Instant;

use ramekin_kernels::matmul;

/// Side of the matrices: large enough to be no question of reading, small enough to take milliseconds.
const SIDE: usize = 512;

/// Operations a second of a dense f32 product on all threads: the median of a few, measured once.
pub fn operations_per_second() -> f64 {
    static MEASURED: OnceLock<f64> = OnceLock::new();
    *MEASURED.get_or_init(measure)
}

fn measure() -> f64 {
    let (a, b) = (vec![0.5f32; SIDE * SIDE], vec![0.25f32; SIDE * SIDE]);
    let mut c = vec![0.0f32; SIDE * SIDE];
    let mut once = || {
        let begun = Instant::now();
        matmul::nt(SIDE, SIDE, SIDE, 1.0, &a, &b, false, &mut c);
        std::hint::black_box(&c);
        begun.elapsed().as_secs_f64().max(1e-9)
    };
    once(); // threads start, pages come
    let mut seconds: [f64; 7] = std::array::from_fn(|_| once());
    seconds.sort_by(f64::total_cmp);
    2.0 * (SIDE * SIDE * SIDE) as f64 / seconds[seconds.len() / 2]
}
