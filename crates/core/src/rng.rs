//! Randomness by address: a number is a pure function of (run seed, stream
//! name, id, index), so order, threads and residency cannot change it.

use ramekin_kernels::philox::Stream;

/// The run's seed, from which every stream is derived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rng {
    seed: u64,
}

impl Rng {
    /// Randomness of a run with this seed.
    pub fn new(seed: u64) -> Self {
        Rng { seed }
    }

    /// The stream `name` for one object, such as a parameter or a batch.
    pub fn stream(&self, name: &str, id: u64) -> Stream {
        Stream::new(mix(self.seed, name.as_bytes()), id)
    }

    /// The stream `name` for an object that is known by a name.
    pub fn named(&self, name: &str, object: &str) -> Stream {
        self.stream(name, mix(0, object.as_bytes()))
    }
}

/// FNV-1a over the bytes, then SplitMix64's finaliser; fixed for all time,
/// because saved runs depend on it.
fn mix(seed: u64, bytes: &[u8]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for b in bytes {
        h = (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

/// Numbers of one stream, one after the other.
pub struct Draws {
    stream: Stream,
    next: u64,
}

impl Draws {
    /// Begins at index 0 of the stream.
    pub fn new(stream: Stream) -> Self {
        Draws { stream, next: 0 }
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> u64 {
        let v = self.stream.u64_at(self.next);
        self.next += 1;
        v
    }

    /// Uniform in `0..n` (multiply-shift; the bias is below n/2⁶⁴). `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.u64()) * n as u128) >> 64) as usize
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Fisher–Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
