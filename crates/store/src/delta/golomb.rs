//! Gaps between entries in few bits: Golomb codes with a power of two.
//!
//! v ↦ v >> b in unary (ones, then a zero), then the b low bits of v, the highest first
//!
//! For entries that are there with probability k the best b is 1 + ⌊log₂(ln(φ−1) / ln(1−k))⌋, at least 0,
//! φ the golden ratio; a gap then takes b + 1/(1 − (1−k)^(2^b)) bits.
//!
//! Source: Golomb 1966; Sattler et al. 2019, arXiv:1903.02891; sheet `compeft`, rule 6.

/// The best b for this share of entries.
pub fn parameter(density: f64) -> u32 {
    let golden = (1.0 + 5f64.sqrt()) / 2.0;
    let ratio = (golden - 1.0).ln() / (1.0 - density.clamp(1e-12, 1.0)).ln();
    (1.0 + ratio.log2().floor()).clamp(0.0, 62.0) as u32
}

/// Bits that a gap takes on average, without a sign.
pub fn expected_bits(density: f64) -> f64 {
    let b = parameter(density);
    f64::from(b) + 1.0 / (1.0 - (1.0 - density).powf(2f64.powi(b as i32)))
}

/// Bits of a ternary vector of `d` numbers with a 16-bit scale that no code can beat on average.
pub fn entropy_bits(density: f64, d: f64) -> f64 {
    let term = |p: f64, q: f64| if p == 0.0 { 0.0 } else { p * q.log2() };
    -(term(1.0 - density, 1.0 - density) + term(density, density / 2.0)) * d + 16.0
}

/// Bits, one after the other, the highest of a byte first.
#[derive(Clone, Debug, Default)]
pub struct BitWriter {
    bytes: Vec<u8>,
    /// Bits of the last byte that are taken.
    taken: u32,
}

impl BitWriter {
    /// One bit more.
    pub fn put(&mut self, bit: bool) {
        if self.taken == 0 {
            self.bytes.push(0);
        }
        if let Some(last) = self.bytes.last_mut() {
            *last |= u8::from(bit) << (7 - self.taken);
        }
        self.taken = (self.taken + 1) % 8;
    }

    /// A gap more.
    pub fn gap(&mut self, gap: u64, b: u32) {
        for _ in 0..gap >> b {
            self.put(true);
        }
        self.put(false);
        for i in (0..b).rev() {
            self.put(gap >> i & 1 == 1);
        }
    }

    /// The bytes, the last one filled up with zeros.
    pub fn bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Bits of bytes from elsewhere.
pub struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> BitReader<'a> {
    /// From bit number `at` on.
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        BitReader { bytes, at }
    }

    /// Bits that were read or skipped.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The next bit; `None` at the end.
    pub fn take(&mut self) -> Option<bool> {
        let byte = self.bytes.get(self.at / 8)?;
        let bit = byte >> (7 - self.at % 8) & 1 == 1;
        self.at += 1;
        Some(bit)
    }

    /// The next gap; `None` where the bits end too early.
    pub fn gap(&mut self, b: u32) -> Option<u64> {
        let mut quotient = 0u64;
        while self.take()? {
            quotient += 1;
        }
        let mut gap = quotient.checked_shl(b).filter(|g| g >> b == quotient)?;
        for i in (0..b).rev() {
            gap |= u64::from(self.take()?) << i;
        }
        Some(gap)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parameters_of_the_sheet() {
        assert_eq!(parameter(0.05), 4);
        assert!((0.05 * (expected_bits(0.05) + 1.0) - 0.339).abs() < 5e-4);
        assert_eq!(parameter(1.0), 0);
        assert!((entropy_bits(0.05, 1e6) / 1e6 - 0.336).abs() < 5e-4);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        #[test]
        fn gaps_come_back(gaps in prop::collection::vec(0u64..5000, 0..100), b in 0u32..14) {
            let mut w = BitWriter::default();
            gaps.iter().for_each(|g| w.gap(*g, b));
            let bytes = w.bytes();
            let mut r = BitReader::new(&bytes, 0);
            for g in &gaps {
                prop_assert_eq!(r.gap(b), Some(*g));
            }
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..64), b in 0u32..70) {
            let mut r = BitReader::new(&bytes, 0);
            while r.gap(b).is_some() {}
        }
    }
}
