//! Random directions by address, added where they are needed: x ← x + s·z.
//!
//! z(i) is a pure function of a stream and the entry's place, so a direction is never stored: it is
//! drawn again for each use, in any order and on any number of threads.
//!
//! | draw | z(i) |
//! |---|---|
//! | normal | N(0, 1) by Box–Muller in f64 |
//! | sign | −1 or +1, each with ½ |

use crate::Real;
use crate::philox::Stream;
use crate::split::{CHUNK, Tasks};

/// How an entry of a direction is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// Standard normal.
    Normal,
    /// −1 or +1.
    Sign,
}

impl Draw {
    /// Entry `index` of the direction: the plain reference.
    pub fn at(self, stream: &Stream, index: u64) -> f64 {
        match self {
            Draw::Normal => stream.normal_at(index),
            Draw::Sign => sign(stream.u32_at(index)),
        }
    }

    /// `out[i] = z(first + i)`
    pub fn fill<T: Real>(self, stream: &Stream, first: u64, out: &mut [T]) {
        match self {
            Draw::Normal => stream.fill_normal(first, 1.0, out),
            Draw::Sign => {
                for (i, o) in out.iter_mut().enumerate() {
                    *o = T::from_f64(sign(stream.u32_at(first + i as u64)));
                }
            }
        }
    }
}

fn sign(word: u32) -> f64 {
    if word >> 31 == 0 { 1.0 } else { -1.0 }
}

/// Entries whose draws exist at once on a thread.
const PIECE: usize = 1024;

/// Hands out a direction piece by piece: the places' first, the draws and the entries of `x` there.
fn pieces<T: Real>(x: &mut [T], stream: &Stream, draw: Draw, f: impl Fn(&[T], &mut [T]) + Sync) {
    x.chunks_mut(CHUNK).enumerate().each_task(|(c, x)| {
        let mut z = [T::from_f64(0.0); PIECE];
        for (p, x) in x.chunks_mut(PIECE).enumerate() {
            let z = &mut z[..x.len()];
            draw.fill(stream, (c * CHUNK + p * PIECE) as u64, z);
            f(z, x);
        }
    });
}

/// `x[i] += s · z(i)`, the product rounded before the sum.
pub fn add<T: Real>(x: &mut [T], stream: &Stream, draw: Draw, s: f64) {
    let s = T::from_f64(s);
    pieces(x, stream, draw, |z, x| {
        for (x, z) in x.iter_mut().zip(z) {
            *x += s * *z;
        }
    });
}

/// `x[i] += s · z(places[i])`: some entries of a larger tensor.
pub fn add_at<T: Real>(x: &mut [T], places: &[u32], stream: &Stream, draw: Draw, s: f64) {
    let s = T::from_f64(s);
    x.chunks_mut(CHUNK).zip(places.chunks(CHUNK)).each_task(|(x, places)| {
        for (x, p) in x.iter_mut().zip(places) {
            *x += s * T::from_f64(draw.at(stream, u64::from(*p)));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Stream {
        Stream::new(3, 14)
    }

    #[test]
    fn pieces_are_the_reference() {
        for draw in [Draw::Normal, Draw::Sign] {
            for n in [0, 1, 5, 1023, 1025, CHUNK + 3] {
                let mut x: Vec<f64> = (0..n).map(|i| i as f64).collect();
                add(&mut x, &stream(), draw, 0.5);
                let plain: Vec<f64> = (0..n).map(|i| i as f64 + 0.5 * draw.at(&stream(), i as u64)).collect();
                assert_eq!(x, plain, "{draw:?} {n}");
            }
        }
    }

    #[test]
    fn some_places_get_what_they_get_in_the_whole() {
        let mut whole = vec![1.0f32; 5000];
        add(&mut whole, &stream(), Draw::Normal, 1e-3);
        let places: Vec<u32> = (0..5000).step_by(7).collect();
        let mut some = vec![1.0f32; places.len()];
        add_at(&mut some, &places, &stream(), Draw::Normal, 1e-3);
        let picked: Vec<f32> = places.iter().map(|p| whole[*p as usize]).collect();
        assert_eq!(some, picked);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut x = vec![0.25f32; 3 * CHUNK + 5];
            pool.install(|| add(&mut x, &stream(), Draw::Normal, 0.1));
            x
        };
        assert_eq!(run(1), run(3));
    }
}
