//! What the formats of this crate share: their errors and the tensors that go to files.

use ramekin_kernels::Real;
use ramekin_kernels::elementwise::all_finite;
use safetensors::Dtype;
use thiserror::Error;

/// Why a weight cannot be packed, or a file's tensors not be read.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum CodecError {
    /// A weight is infinite or NaN.
    #[error("the weight holds {value} at row {row}, column {column}; only finite numbers can be packed")]
    NotFinite {
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
        /// The number found.
        value: f32,
    },
    /// The slice does not fill the shape.
    #[error("the weight has {got} numbers where {rows}×{columns} were expected")]
    Length {
        /// Numbers given.
        got: usize,
        /// Outputs.
        rows: usize,
        /// Inputs.
        columns: usize,
    },
    /// A block size that NF4 does not have.
    #[error("`block_size` is {0}; it must be a power of two from 32 to 4096")]
    BlockSize(usize),
    /// A number of bits that RTN does not have.
    #[error("`bits` is {0}; it must be 2, 3, 4 or 8")]
    Bits(u32),
    /// Groups that do not fill a row.
    #[error(
        "`group_size` is {group_size}, which does not divide the {columns} inputs of the weight; use a divisor, or -1 for a whole row"
    )]
    GroupSize {
        /// The setting.
        group_size: i64,
        /// Inputs of the weight.
        columns: usize,
    },
    /// A tensor is not in the file.
    #[error("tensor `{0}` is missing")]
    Missing(String),
    /// A tensor of another size or type than its neighbours ask for.
    #[error("tensor `{name}` is {got}; expected {want}")]
    Tensor {
        /// Its name.
        name: String,
        /// Type and size found.
        got: String,
        /// Type and size expected.
        want: String,
    },
    /// Numbers or words in a tensor that make no sense.
    #[error("tensor `{name}`: {why}")]
    Content {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

/// A tensor as a file holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct ByteTensor {
    /// Its name in the file.
    pub name: String,
    /// Its number type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Numbers, little endian.
    pub bytes: Vec<u8>,
}

impl ByteTensor {
    pub(crate) fn u8(name: String, shape: Vec<usize>, bytes: Vec<u8>) -> Self {
        ByteTensor { name, dtype: Dtype::U8, shape, bytes }
    }

    pub(crate) fn f32(name: String, shape: Vec<usize>, values: &[f32]) -> Self {
        ByteTensor {
            name,
            dtype: Dtype::F32,
            shape,
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    pub(crate) fn bf16(name: String, shape: Vec<usize>, bits: &[u16]) -> Self {
        ByteTensor {
            name,
            dtype: Dtype::BF16,
            shape,
            bytes: bits.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    /// The bytes, if the tensor is `n` of type `u8`.
    pub(crate) fn into_u8(self, n: usize) -> Result<Vec<u8>, CodecError> {
        self.expect(Dtype::U8, n, 1)?;
        Ok(self.bytes)
    }

    /// The numbers, if the tensor is `n` finite ones of type `f32`.
    pub(crate) fn into_f32(self, n: usize) -> Result<Vec<f32>, CodecError> {
        self.expect(Dtype::F32, n, 4)?;
        let values: Vec<f32> = self.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        match values.iter().find(|v| !v.is_finite()) {
            Some(bad) => Err(CodecError::Content { name: self.name, why: format!("holds {bad}") }),
            None => Ok(values),
        }
    }

    /// The numbers' bits, if the tensor is `n` finite ones of type `bf16`.
    pub(crate) fn into_bf16(self, n: usize) -> Result<Vec<u16>, CodecError> {
        self.expect(Dtype::BF16, n, 2)?;
        let bits: Vec<u16> = self.bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
        match bits.iter().map(|b| ramekin_kernels::bf16::widen(*b)).find(|v| !v.is_finite()) {
            Some(bad) => Err(CodecError::Content { name: self.name, why: format!("holds {bad}") }),
            None => Ok(bits),
        }
    }

    fn expect(&self, dtype: Dtype, n: usize, width: usize) -> Result<(), CodecError> {
        let same = self.dtype == dtype && self.bytes.len() == n.saturating_mul(width);
        if same { Ok(()) } else { Err(self.unlike(format!("{n} of type {dtype:?}"))) }
    }

    pub(crate) fn unlike(&self, want: String) -> CodecError {
        let got = format!("{:?} of type {:?}, {} bytes", self.shape, self.dtype, self.bytes.len());
        CodecError::Tensor { name: self.name.clone(), got, want }
    }
}

/// Refuses a weight that does not fill its shape or has numbers that are not finite.
pub(crate) fn check_weight(w: &[f32], (rows, columns): (usize, usize)) -> Result<(), CodecError> {
    if rows.checked_mul(columns) != Some(w.len()) {
        return Err(CodecError::Length { got: w.len(), rows, columns });
    }
    if all_finite(w) {
        return Ok(());
    }
    let at = w.iter().position(|x| !x.is_finite()).unwrap_or_default();
    Err(CodecError::NotFinite { row: at / columns, column: at % columns, value: w[at] })
}

/// Runs `decode` on `out` if it is f32, else on pieces of scratch that are then widened.
///
/// `decode(i, piece)` fills `piece` with the entries from number i of `out` on.
pub(crate) fn decode_as<T: Real>(out: &mut [T], mut decode: impl FnMut(usize, &mut [f32])) {
    if let Some(out) = T::as_f32_mut(out) {
        return decode(0, out);
    }
    let mut scratch = [0f32; 2048];
    for (c, out) in out.chunks_mut(scratch.len()).enumerate() {
        let piece = &mut scratch[..out.len()];
        decode(c * 2048, piece);
        for (o, x) in out.iter_mut().zip(piece) {
            *o = T::from_f32(*x);
        }
    }
}
