//! How the operands of attention's products are held: as they are, or rounded to bf16, two in a word.
//!
//! Words of two lie along the dimension that is summed over, as the processor's dot products of bf16 want them:
//! a *left* operand `[r×c]` summed over c has them along its rows, one that is *beside* `[r×c]`, summed over r, has
//! those of two rows in each word. Words travel as numbers of f32 that nobody calculates with. Sums, the softmax and
//! everything else stay in f32.

use super::Shape;
use crate::matmul::Strided;
use crate::wide::wide;
use crate::{Real, bf16, tile};

/// How operands are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Plain,
    /// Two bf16 in a word.
    Pairs,
}

impl Form {
    /// Pairs where they are asked for, the machine multiplies them and a head has an even width.
    pub fn of<T: Real>(shape: &Shape) -> Self {
        let pairs = shape.bf16
            && T::as_f32(&[]).is_some()
            && shape.head_dim.is_multiple_of(2)
            && bf16::unit().is_some();
        if pairs { Form::Pairs } else { Form::Plain }
    }

    /// Words of `n` numbers.
    pub fn words(self, n: usize) -> usize {
        match self {
            Form::Plain => n,
            Form::Pairs => n.div_ceil(2),
        }
    }

    /// Rows of an even number of columns as a left operand.
    pub fn left<'a, T: Real>(self, x: &'a [T], scratch: &'a mut Vec<T>) -> &'a [T] {
        let (Form::Pairs, Some(from)) = (self, T::as_f32(x)) else { return x };
        scratch.resize(x.len() / 2, T::ZERO);
        if let Some(to) = T::as_f32_mut(scratch) {
            // SAFETY: two numbers of 16 bits for each of 32, which any bits are.
            let to = unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast::<u16>(), 2 * to.len()) };
            bf16::round_all(from, to);
        }
        scratch
    }

    /// Rows of `columns` numbers as an operand that is summed over rows.
    pub fn beside<'a, T: Real>(self, x: &'a [T], columns: usize, scratch: &'a mut Vec<T>) -> &'a [T] {
        let (Form::Pairs, Some(from)) = (self, T::as_f32(x)) else { return x };
        scratch.resize(self.words(x.len() / columns) * columns, T::ZERO);
        if let Some(to) = T::as_f32_mut(scratch) {
            for (two, to) in from.chunks(2 * columns).zip(to.chunks_exact_mut(columns)) {
                let (even, odd) = two.split_at(columns);
                join(even, odd, to);
            }
        }
        scratch
    }

    /// c (+)= α · a · b, summed over so many words.
    ///
    /// # Safety
    /// As for [`tile::product`]; the operands are of this form.
    pub unsafe fn product<T: Real>(
        self,
        shape: (usize, usize, usize),
        alpha: T,
        a: Strided<*const T>,
        b: (*const T, usize),
        onto: bool,
        c: (*mut T, usize),
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Form::Plain => tile::product(shape, alpha, a, b, onto, c),
                Form::Pairs => tile::product_of_pairs(shape, alpha, a, b, onto, c),
            }
        }
    }
}

wide! {
    /// `to[c]` = the words of both rows; without an odd row zeros are in its place.
    fn join[](even: &[f32], odd: &[f32], to: &mut [f32]) {
        if odd.is_empty() {
            for (to, even) in to.iter_mut().zip(even) {
                *to = f32::from_bits(u32::from(bf16::round(*even)));
            }
            return;
        }
        for ((to, even), odd) in to.iter_mut().zip(even).zip(odd) {
            *to = f32::from_bits(u32::from(bf16::round(*even)) | u32::from(bf16::round(*odd)) << 16);
        }
    }
}
