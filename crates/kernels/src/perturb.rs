//! Random directions by address, added where they are needed: x ← x + s·z.
//!
//! z(i) is a pure function of a stream and the entry's place, so a direction is never stored: it is
//! drawn again for each use, in any order and on any number of threads.
//!
//! | draw | z(i) |
//! |---|---|
//! | normal | N(0, 1) by [`box_muller`](crate::box_muller) |
//! | sign | −1 or +1, each with ½ |

use crate::elementwise::scale_assign;
use crate::philox::Stream;
use crate::split::{CHUNK, Tasks, in_pieces, in_pieces_beside, partials};
use crate::wide::wide;
use crate::{Real, bf16};

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

/// Entries whose draws exist at once on a thread: more are slower, beside what they are added to.
const PIECE: usize = 512;

/// Hands out a direction piece by piece: the draws of places `first` on, and the entries of `x` there.
fn pieces<X: Send, T: Real>(
    x: &mut [X],
    first: u64,
    stream: &Stream,
    draw: Draw,
    f: impl Fn(usize, &[T], &mut [X]) + Send + Sync,
) {
    in_pieces(x, |at, x| {
        let mut z = [T::from_f64(0.0); PIECE];
        for (p, x) in x.chunks_mut(PIECE).enumerate() {
            let (z, at) = (&mut z[..x.len()], at + p * PIECE);
            draw.fill(stream, first + at as u64, z);
            f(at, z, x);
        }
    });
}

/// `x[i] += s · z(first + i)`, the product rounded before the sum.
pub fn add<T: Real>(x: &mut [T], first: u64, stream: &Stream, draw: Draw, s: f64) {
    let s = T::from_f64(s);
    pieces(x, first, stream, draw, |_, z, x| add_scaled(x, z, s));
}

/// `x[i] += s · z(first + i)` as [`add`], and `g[i] = c · z(first + i)` of the same draws.
///
/// # Panics
/// If `g` is not as long as `x`.
pub fn add_and_give<T: Real>(
    x: &mut [T],
    g: &mut [T],
    first: u64,
    stream: &Stream,
    draw: Draw,
    (s, c): (f64, f64),
) {
    let (s, c) = (T::from_f64(s), T::from_f64(c));
    in_pieces_beside(x, g, |at, x, g| {
        for (p, (x, g)) in x.chunks_mut(PIECE).zip(g.chunks_mut(PIECE)).enumerate() {
            draw.fill(stream, first + (at + p * PIECE) as u64, g);
            add_scaled(x, g, s);
            scale_assign(g, c);
        }
    });
}

/// The bits of `x[i] + s · z(first + i)` rounded to bf16, `x` in bf16 too: what a direction shows of a weight that is held
/// so.
///
/// # Panics
/// If `out` is not as long as `x`.
pub fn moved_bf16(x: &[u16], out: &mut [u16], first: u64, stream: &Stream, draw: Draw, s: f64) {
    assert_eq!(x.len(), out.len(), "{} numbers moved into {}", x.len(), out.len());
    pieces(out, first, stream, draw, |at, z: &[f32], out| {
        let mut moved = [0.0f32; PIECE];
        let (x, moved) = (&x[at..at + z.len()], &mut moved[..z.len()]);
        widen_and_add(x, z, s as f32, moved);
        bf16::round_all(moved, out);
    });
}

wide! {
    fn add_scaled[T: Real](x: &mut [T], z: &[T], s: T) {
        for (x, z) in x.iter_mut().zip(z) {
            *x += s * *z;
        }
    }

    fn widen_and_add[](x: &[u16], z: &[f32], s: f32, moved: &mut [f32]) {
        for ((m, x), z) in moved.iter_mut().zip(x).zip(z) {
            *m = bf16::widen(*x) + s * *z;
        }
    }
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

/// [`unmoved`] of a weight in bf16, whose sum is rounded to it.
pub fn unmoved_bf16(x: &[u16], stream: &Stream, draw: Draw, s: f64) -> usize {
    let counts = partials(x.len().div_ceil(PIECE), |p| {
        let x = &x[p * PIECE..x.len().min((p + 1) * PIECE)];
        let mut moved = [0; PIECE];
        moved_bf16(x, &mut moved[..x.len()], (p * PIECE) as u64, stream, draw, s);
        moved.iter().zip(x).filter(|(moved, x)| moved == x).count()
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
                add(&mut x, 0, &stream(), draw, 0.5);
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
        add_and_give(&mut x, &mut g, 0, &stream(), Draw::Normal, (1e-3, -0.7));
        let (mut moved, mut given) = (start, vec![0.0; n]);
        add(&mut moved, 0, &stream(), Draw::Normal, 1e-3);
        add(&mut given, 0, &stream(), Draw::Normal, -0.7);
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
        add(&mut whole, 0, &stream(), Draw::Normal, 1e-3);
        let places: Vec<u32> = (0..5000).step_by(7).collect();
        let mut some = vec![1.0f32; places.len()];
        add_at(&mut some, &places, &stream(), Draw::Normal, 1e-3);
        let picked: Vec<f32> = places.iter().map(|p| whole[*p as usize]).collect();
        assert_eq!(some, picked);
    }

    #[test]
    fn a_part_gets_what_it_gets_in_the_whole() {
        let n = 2 * CHUNK + 100;
        let mut whole = vec![1.0f32; n];
        add(&mut whole, 0, &stream(), Draw::Normal, 1e-3);
        for at in [7, CHUNK - 3, CHUNK + 1] {
            let (mut part, mut g) = (vec![1.0f32; n - at], vec![0.0; n - at]);
            add_and_give(&mut part, &mut g, at as u64, &stream(), Draw::Normal, (1e-3, 2.0));
            assert_eq!(part, whole[at..]);
            assert_eq!(g[5], 2.0 * Draw::Normal.at(&stream(), at as u64 + 5) as f32);
        }
    }

    #[test]
    fn a_weight_in_bf16_moves_as_its_numbers_do() {
        let x: Vec<u16> = (0..CHUNK + 50).map(|i| bf16::round((i as f32).sin())).collect();
        let mut out = vec![0; x.len()];
        moved_bf16(&x, &mut out, 3, &stream(), Draw::Normal, 0.05);
        for (i, (x, out)) in x.iter().zip(&out).enumerate() {
            let step = 0.05 * Draw::Normal.at(&stream(), 3 + i as u64) as f32;
            assert_eq!(*out, bf16::round(bf16::widen(*x) + step), "{i}");
        }
        let same = x.iter().zip(&out).filter(|(x, out)| x == out).count();
        assert!(same < x.len() / 10);
        assert_eq!(unmoved_bf16(&x, &stream(), Draw::Normal, 1e-9), x.len() - 1, "all but the 0");
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut x = vec![0.25f32; 3 * CHUNK + 5];
            pool.install(|| add(&mut x, 0, &stream(), Draw::Normal, 0.1));
            x
        };
        assert_eq!(run(1), run(3));
    }
}
