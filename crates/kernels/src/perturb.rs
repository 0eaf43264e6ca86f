//! Random directions by address, added where they are needed: x ← x + s·z.
//!
//! z(i) is a pure function of a stream and the entry's place, so a direction is never stored: it is
//! drawn again for each use, in any order and on any number of threads.
//!
//! | draw | z(i) |
//! |---|---|
//! | normal | N(0, 1) by [`box_muller`](crate::box_muller) |
//! | sign | −1 or +1, each with ½ |

use crate::Real;
use crate::philox::Stream;
use crate::split::{CHUNK, Tasks, partials};

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
            Draw::Normal => stream.normal_at(index).into(),
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

/// `x[i] += s · z(i)` as [`add`], and `g[i] = c · z(i)` of the same draws.
///
/// # Panics
/// If `g` is not as long as `x`.
pub fn add_and_give<T: Real>(x: &mut [T], g: &mut [T], stream: &Stream, draw: Draw, (s, c): (f64, f64)) {
    assert_eq!(x.len(), g.len(), "a direction for {} entries of {}", g.len(), x.len());
    let (s, c) = (T::from_f64(s), T::from_f64(c));
    x.chunks_mut(CHUNK).zip(g.chunks_mut(CHUNK)).enumerate().each_task(|(chunk, (x, g))| {
        for (p, (x, g)) in x.chunks_mut(PIECE).zip(g.chunks_mut(PIECE)).enumerate() {
            draw.fill(stream, (chunk * CHUNK + p * PIECE) as u64, g);
            for (x, g) in x.iter_mut().zip(g) {
                *x += s * *g;
                *g = c * *g;
            }
        }
    });
}

/// How many entries `x[i] + s · z(i)` leaves as they are: those whose rounding is coarser than the step.
pub fn unmoved<T: Real>(x: &[T], stream: &Stream, draw: Draw, s: f64) -> usize {
    let s = T::from_f64(s);
    let counts = partials(x.len().div_ceil(CHUNK), |c| {
        let mut z = [T::from_f64(0.0); PIECE];
        let pieces = x[c * CHUNK..x.len().min((c + 1) * CHUNK)].chunks(PIECE).enumerate();
        let counts = pieces.map(|(p, x)| {
            let z = &mut z[..x.len()];
            draw.fill(stream, (c * CHUNK + p * PIECE) as u64, z);
            x.iter().zip(z).filter(|(x, z)| **x + s * **z == **x).count()
        });
        counts.sum::<usize>()
    });
    counts.into_iter().sum()
}

/// [`unmoved`] of `x[i] + s · z(places[i])`.
pub fn unmoved_at<T: Real>(x: &[T], places: &[u32], stream: &Stream, draw: Draw, s: f64) -> usize {
    let s = T::from_f64(s);
    let stays = |(x, p): &(&T, &u32)| **x + s * T::from_f64(draw.at(stream, u64::from(**p))) == **x;
    x.iter().zip(places).filter(stays).count()
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
    fn one_pass_of_two_is_the_two() {
        let n = CHUNK + 1030;
        let start: Vec<f32> = (0..n).map(|i| i as f32 * 1e-3).collect();
        let (mut x, mut g) = (start.clone(), vec![f32::NAN; n]);
        add_and_give(&mut x, &mut g, &stream(), Draw::Normal, (1e-3, -0.7));
        let (mut moved, mut given) = (start, vec![0.0; n]);
        add(&mut moved, &stream(), Draw::Normal, 1e-3);
        add(&mut given, &stream(), Draw::Normal, -0.7);
        assert_eq!((x, g), (moved, given));
    }

    #[test]
    fn counts_what_a_step_below_the_rounding_leaves() {
        let x: Vec<f32> = (0..CHUNK + 77).map(|i| if i % 3 == 0 { 1e9 } else { 1.0 }).collect();
        let large = x.iter().filter(|x| **x > 1.0).count();
        assert_eq!(unmoved(&x, &stream(), Draw::Sign, 1e-3), large);
        let places: Vec<u32> = (0..90).collect();
        assert_eq!(unmoved_at(&x[..90], &places, &stream(), Draw::Sign, 1e-3), 30);
        assert_eq!(unmoved(&x, &stream(), Draw::Normal, 1e-30), x.len());
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
