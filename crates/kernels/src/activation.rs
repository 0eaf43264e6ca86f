//! Pointwise activations.
//!
//! y = f(x)      gx = g · f′(x)
//!
//! relu max(x, 0) · gelu x·Φ(x) · silu x·σ(x) · tanh · linear x
//!
//! Sources: Hendrycks & Gimpel 2016, arXiv:1606.08415 (gelu, the exact form); Elfwing et al. 2017,
//! arXiv:1702.03118 (silu).

use crate::Real;
use crate::split::{CHUNK, Tasks};

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// max(x, 0)
    Relu,
    /// x·Φ(x), with the normal distribution's own Φ
    Gelu,
    /// x·σ(x)
    Silu,
    /// tanh x
    Tanh,
    /// x itself
    Linear,
}

/// 1/√2 and 1/√(2π).
const HALVES: (f64, f64) = (std::f64::consts::FRAC_1_SQRT_2, 0.398_942_280_401_432_7);

impl Activation {
    fn value<T: Real>(self, x: T) -> T {
        match self {
            Activation::Relu => x.max(T::ZERO),
            Activation::Gelu => x * cumulative(x),
            Activation::Silu => x * x.sigmoid(),
            Activation::Tanh => x.tanh(),
            Activation::Linear => x,
        }
    }

    fn slope<T: Real>(self, x: T) -> T {
        match self {
            Activation::Relu => {
                if x > T::ZERO {
                    T::ONE
                } else {
                    T::ZERO
                }
            }
            Activation::Gelu => {
                let density = (x * x * T::from_f64(-0.5)).exp() * T::from_f64(HALVES.1);
                cumulative(x) + x * density
            }
            Activation::Silu => {
                let s = x.sigmoid();
                s * (T::ONE + x * (T::ONE - s))
            }
            Activation::Tanh => {
                let t = x.tanh();
                T::ONE - t * t
            }
            Activation::Linear => T::ONE,
        }
    }
}

/// Φ(x) = (1 + erf(x/√2)) / 2
fn cumulative<T: Real>(x: T) -> T {
    (T::ONE + (x * T::from_f64(HALVES.0)).erf()) * T::from_f64(0.5)
}

/// `y = f(x)`
///
/// # Panics
/// If the slices differ in length.
pub fn forward<T: Real>(f: Activation, x: &[T], y: &mut [T]) {
    assert_eq!(x.len(), y.len(), "slices must be equally long");
    y.chunks_mut(CHUNK).zip(x.chunks(CHUNK)).each_task(|(y, x)| {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = f.value(*x));
    });
}

/// `gx = g · f′(x)`, overwritten.
///
/// # Panics
/// If the slices differ in length.
pub fn backward<T: Real>(f: Activation, g: &[T], x: &[T], gx: &mut [T]) {
    assert!(g.len() == x.len() && x.len() == gx.len(), "slices must be equally long");
    gx.chunks_mut(CHUNK).zip(g.chunks(CHUNK)).zip(x.chunks(CHUNK)).each_task(|((gx, g), x)| {
        gx.iter_mut().zip(g).zip(x).for_each(|((gx, g), x)| *gx = *g * f.slope(*x));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_gradient, normal, weighted};

    const ALL: [Activation; 5] =
        [Activation::Relu, Activation::Gelu, Activation::Silu, Activation::Tanh, Activation::Linear];

    fn of(f: Activation, x: &[f64]) -> Vec<f64> {
        let mut y = vec![f64::NAN; x.len()];
        forward(f, x, &mut y);
        y
    }

    #[test]
    fn known_values() {
        let x = [-2.0, -0.5, 0.0, 1.0, 3.0];
        let want: [(Activation, [f64; 5]); 3] = [
            (Activation::Gelu, [-0.0455002639, -0.1542687694, 0.0, 0.8413447461, 2.9959503059]),
            (Activation::Silu, [-0.2384058440, -0.1887703343, 0.0, 0.7310585786, 2.8577223804]),
            (Activation::Tanh, [-0.9640275801, -0.4621171573, 0.0, 0.7615941560, 0.9950547537]),
        ];
        for (f, want) in want {
            assert_close(&of(f, &x), &want, 1e-10);
        }
        assert_eq!(of(Activation::Relu, &x), [0.0, 0.0, 0.0, 1.0, 3.0]);
        assert_eq!(of(Activation::Linear, &x), x);
    }

    #[test]
    fn backward_is_the_gradient() {
        let (x, g) = (normal::<f64>(1, 40), normal::<f64>(2, 40));
        for f in ALL {
            let mut gx = vec![f64::NAN; 40];
            backward(f, &g, &x, &mut gx);
            assert_gradient(&x, &gx, |x| weighted(&g, &of(f, x)));
        }
    }

    #[test]
    fn extremes_give_no_nan() {
        for f in ALL {
            let x = [-1e30f32, -90.0, 90.0, 1e30];
            let (mut y, mut gx) = ([f32::NAN; 4], [f32::NAN; 4]);
            forward(f, &x, &mut y);
            backward(f, &[1.0; 4], &x, &mut gx);
            assert!(y.iter().chain(&gx).all(|v| !v.is_nan()), "{f:?}: {y:?} {gx:?}");
        }
    }
}
