//! Numbers in fewer bits: f32 to f16, bf16 or 8-bit float and back, rounded to nearest or by chance.
//!
//! With u the spacing of the type at x: ⌊|x|/u⌋ or one more, times u. Nearest takes the closer one, even
//! at a tie; stochastic takes the upper one with the probability of the remainder, so that the mean over
//! draws is x. Numbers beyond the type's largest become the largest; f8 is e4m3.

use crate::philox::Stream;
use crate::split::{CHUNK, Tasks};

/// A narrow number type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Narrow {
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Four bits of exponent, three of mantissa, no infinity.
    F8,
}

/// How a number between two neighbours is rounded.
#[derive(Clone, Copy)]
pub enum Rounding {
    /// To the closer one.
    Nearest,
    /// To the upper one with the probability of the remainder; number i of a tensor draws at place i.
    Stochastic(Stream),
}

impl Narrow {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        if self == Narrow::F8 { 1 } else { 2 }
    }

    /// Bits of the mantissa, the least exponent of a normal number, and the largest number.
    fn shape(self) -> (i32, i32, f64) {
        match self {
            Narrow::F16 => (10, -14, 65504.0),
            Narrow::Bf16 => (7, -126, f64::from(half::bf16::MAX.to_f32())),
            Narrow::F8 => (3, -6, 448.0),
        }
    }

    /// The distance of neighbours at `x`.
    pub fn spacing(self, x: f32) -> f64 {
        let (mantissa, least, _) = self.shape();
        let exponent = if x == 0.0 { least } else { exponent(f64::from(x.abs())).max(least) };
        2f64.powi(exponent - mantissa)
    }

    /// `x` as this type has it; `draw` in [0, 1) decides by chance, without it the closer one is taken.
    pub fn round(self, x: f32, draw: Option<f64>) -> f32 {
        if x == 0.0 || !x.is_finite() {
            return x;
        }
        let spacing = self.spacing(x);
        let q = f64::from(x.abs()) / spacing; // exact: the spacing is a power of two
        let low = q.floor();
        let rest = q - low;
        let up = match draw {
            Some(draw) => draw < rest,
            None => rest > 0.5 || rest == 0.5 && low % 2.0 == 1.0,
        };
        let y = (low + f64::from(u8::from(up))) * spacing;
        (y.min(self.shape().2) as f32).copysign(x)
    }

    fn write(self, y: f32, out: &mut [u8]) {
        match self {
            Narrow::F16 => out.copy_from_slice(&half::f16::from_f32(y).to_le_bytes()),
            Narrow::Bf16 => out.copy_from_slice(&half::bf16::from_f32(y).to_le_bytes()),
            Narrow::F8 => out[0] = to_f8(y),
        }
    }

    fn read(self, code: &[u8]) -> f32 {
        match self {
            Narrow::F16 => half::f16::from_le_bytes([code[0], code[1]]).to_f32(),
            Narrow::Bf16 => half::bf16::from_le_bytes([code[0], code[1]]).to_f32(),
            Narrow::F8 => from_f8(code[0]),
        }
    }

    /// Packs `x` into `out`, [`Narrow::bytes`] a number.
    pub fn pack(self, x: &[f32], rounding: Rounding, out: &mut [u8]) {
        let bytes = self.bytes();
        x.chunks(CHUNK).zip(out.chunks_mut(CHUNK * bytes)).enumerate().each_task(|(c, (x, out))| {
            for (i, (x, out)) in x.iter().zip(out.chunks_mut(bytes)).enumerate() {
                let draw = match rounding {
                    Rounding::Nearest => None,
                    Rounding::Stochastic(stream) => Some(stream.uniform_at((c * CHUNK + i) as u64)),
                };
                self.write(self.round(*x, draw), out);
            }
        });
    }

    /// The numbers again.
    pub fn unpack(self, codes: &[u8], out: &mut [f32]) {
        let bytes = self.bytes();
        out.chunks_mut(CHUNK).zip(codes.chunks(CHUNK * bytes)).each_task(|(out, codes)| {
            out.iter_mut().zip(codes.chunks(bytes)).for_each(|(o, code)| *o = self.read(code));
        });
    }
}

/// ⌊log₂ x⌋ of a normal number above 0.
fn exponent(x: f64) -> i32 {
    ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

/// The code of a number that the type has.
fn to_f8(y: f32) -> u8 {
    let sign = if y.is_sign_negative() { 0x80 } else { 0 };
    if !y.is_finite() {
        return sign | 0x7f;
    }
    let y = f64::from(y.abs());
    let e = if y == 0.0 { -6 } else { exponent(y).max(-6) };
    let m = (y / 2f64.powi(e - 3)) as u8; // below 16; below 8 only without a leading one
    sign | if m < 8 { m } else { ((e + 7) as u8) << 3 | (m - 8) }
}

fn from_f8(code: u8) -> f32 {
    let (field, m) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let x = match (field, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => m * 2f32.powi(-9),
        _ => (8.0 + m) * 2f32.powi(field - 10),
    };
    if code & 0x80 == 0 { x } else { -x }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Narrow; 3] = [Narrow::F16, Narrow::Bf16, Narrow::F8];

    fn through(kind: Narrow, x: &[f32], rounding: Rounding) -> Vec<f32> {
        let (mut codes, mut back) = (vec![0; x.len() * kind.bytes()], vec![0.0; x.len()]);
        kind.pack(x, rounding, &mut codes);
        kind.unpack(&codes, &mut back);
        back
    }

    #[test]
    fn nearest_is_what_the_half_crate_makes() {
        let stream = Stream::new(5, 6);
        for i in 0..200_000 {
            let x = f32::from_bits(stream.u32_at(i));
            if !x.is_finite() || x.abs() > 65504.0 {
                continue;
            }
            assert_eq!(Narrow::F16.round(x, None), half::f16::from_f32(x).to_f32(), "{x:e}");
            assert_eq!(Narrow::Bf16.round(x, None), half::bf16::from_f32(x).to_f32(), "{x:e}");
        }
    }

    #[test]
    fn every_code_comes_back() {
        for code in 0..=255u8 {
            let x = from_f8(code);
            assert!(x.is_nan() || to_f8(x) == code, "{code:#x} is {x} is {:#x}", to_f8(x));
            assert!(x.is_nan() || Narrow::F8.round(x, None) == x);
        }
        assert_eq!((from_f8(0x7e), from_f8(0x01)), (448.0, 2f32.powi(-9)));
    }

    #[test]
    fn what_a_type_has_never_moves_and_the_rest_moves_to_a_neighbour() {
        let stream = Stream::new(7, 8);
        let mut x = vec![0f32; CHUNK + 77];
        stream.fill_normal(0, 1.0, &mut x);
        for kind in ALL {
            let stochastic = Rounding::Stochastic(Stream::new(1, 2));
            let once = through(kind, &x, stochastic);
            for (x, y) in x.iter().zip(&once) {
                assert!(f64::from((x - y).abs()) < kind.spacing(*x), "{kind:?}: {x} became {y}");
            }
            assert_eq!(through(kind, &once, stochastic), once, "{kind:?}");
            assert_eq!(through(kind, &once, Rounding::Nearest), once, "{kind:?}");
        }
    }

    #[test]
    fn too_large_is_the_largest() {
        assert_eq!(through(Narrow::F16, &[1e9, -1e9], Rounding::Nearest), [65504.0, -65504.0]);
        assert_eq!(through(Narrow::F8, &[1e9, -460.0], Rounding::Nearest), [448.0, -448.0]);
    }
}
