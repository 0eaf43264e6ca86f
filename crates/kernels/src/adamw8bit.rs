//! AdamW whose moments are bytes: codes of the dynamic 8-bit maps and one largest value a block.
//!
//! m̂ = code±\[m\] · max|m|_block,  v̂ = code₊\[v\] · max v_block
//! p ← p · (1 − lr·wd)
//! m̂ ← β₁ m̂ + (1 − β₁) g        v̂ ← β₂ v̂ + (1 − β₂) g²
//! p ← p − lr·√(1 − β₂ᵗ)/(1 − β₁ᵗ) · m̂ / (√v̂ + ε·√(1 − β₂ᵗ))
//! m, v ← nearest codes of m̂ / max|m̂| and v̂ / max v̂; a negative m̂ keeps a negative code
//!
//! An entry whose gradient is not finite forgets its moments and leaves `p` alone.
//!
//! Source: Dettmers et al. 2021, arXiv:2110.02861; bitsandbytes, with the decay before the step as its
//! CPU path has it.

use crate::adamw::AdamW;
use crate::dynamic_code::{ZERO, nearest_between, signed, signed_midpoints, unsigned, unsigned_midpoints};
use crate::split::{CHUNK, Tasks};
use crate::wide::wide;

/// The largest block there is.
pub const LARGEST_BLOCK: usize = 2048;

/// Both moments of a tensor: a byte an entry, an f32 a block.
pub struct Moments<'a> {
    /// Codes of the first moment.
    pub m: &'a mut [u8],
    /// The largest |first moment| of each block.
    pub m_max: &'a mut [f32],
    /// Codes of the second moment.
    pub v: &'a mut [u8],
    /// The largest second moment of each block.
    pub v_max: &'a mut [f32],
}

/// One update of `p` and its moments from the gradient `g`; blocks of `block` entries, the last may be short.
///
/// # Panics
/// If lengths do not fit, `block` is no power of two up to [`LARGEST_BLOCK`], or step or ε are 0: a
/// second moment may well round to 0.
pub fn step(o: &AdamW, block: usize, p: &mut [f32], g: &[f32], s: Moments<'_>) {
    assert!([g.len(), s.m.len(), s.v.len()] == [p.len(); 3], "slices must be equally long");
    assert!(block.is_power_of_two() && block <= LARGEST_BLOCK, "a block of {block}");
    let blocks = p.len().div_ceil(block);
    assert!([s.m_max.len(), s.v_max.len()] == [blocks; 2], "one number a block");
    assert!(o.step > 0 && o.eps > 0.0, "step {} and eps {} must be above 0", o.step, o.eps);
    let root = (1.0 - o.beta2.powf(o.step as f64)).sqrt();
    let scalars = Scalars {
        keep: (1.0 - o.lr * o.weight_decay) as f32,
        rate: (o.lr * root / (1.0 - o.beta1.powf(o.step as f64))) as f32,
        beta1: o.beta1 as f32,
        new1: (1.0 - o.beta1) as f32,
        beta2: o.beta2 as f32,
        new2: (1.0 - o.beta2) as f32,
        eps: (o.eps * root) as f32,
    };
    let most = CHUNK / block;
    p.chunks_mut(CHUNK)
        .zip(g.chunks(CHUNK))
        .zip(s.m.chunks_mut(CHUNK).zip(s.m_max.chunks_mut(most)))
        .zip(s.v.chunks_mut(CHUNK).zip(s.v_max.chunks_mut(most)))
        .each_task(|(((p, g), (m, m_max)), (v, v_max))| {
            let blocks = p.chunks_mut(block).zip(g.chunks(block));
            let moments = m.chunks_mut(block).zip(m_max).zip(v.chunks_mut(block).zip(v_max));
            for ((p, g), ((m, m_max), (v, v_max))) in blocks.zip(moments) {
                one_block(&scalars, p, g, m, m_max, v, v_max);
            }
        });
}

/// A moment's numbers from its codes.
///
/// # Panics
/// If there are fewer scales than blocks.
pub fn unpack(codes: &[u8], max: &[f32], block: usize, both_signs: bool) -> Vec<f32> {
    let code = if both_signs { signed() } else { unsigned() };
    codes.iter().enumerate().map(|(i, c)| code[*c as usize] * max[i / block]).collect()
}

/// A moment's codes from its numbers.
///
/// # Panics
/// If lengths do not fit.
pub fn pack(x: &[f32], block: usize, both_signs: bool, codes: &mut [u8], max: &mut [f32]) {
    assert!(codes.len() == x.len() && max.len() == x.len().div_ceil(block), "one code an entry");
    for ((x, codes), max) in x.chunks(block).zip(codes.chunks_mut(block)).zip(max) {
        *max = x.iter().fold(0.0, |a, x| x.abs().max(a));
        encode(
            if both_signs { signed_midpoints() } else { unsigned_midpoints() },
            x,
            *max,
            both_signs,
            codes,
        );
    }
}

/// Nearest codes of `x / max`; a negative one keeps its sign.
#[inline(always)]
fn encode(midpoints: &[f32; 255], x: &[f32], max: f32, both_signs: bool, codes: &mut [u8]) {
    let max = if max > 0.0 { max } else { 1.0 };
    for (x, c) in x.iter().zip(codes) {
        let code = nearest_between(midpoints, *x / max);
        *c = if both_signs && *x < 0.0 && code >= ZERO { ZERO - 1 } else { code };
    }
}

/// What the inner loop needs, rounded once.
struct Scalars {
    keep: f32,
    rate: f32,
    beta1: f32,
    new1: f32,
    beta2: f32,
    new2: f32,
    eps: f32,
}

wide! {
    fn one_block[](
        o: &Scalars, p: &mut [f32], g: &[f32], m: &mut [u8], m_max: &mut f32, v: &mut [u8], v_max: &mut f32,
    ) {
        let (signed, unsigned) = (&**signed(), &**unsigned());
        let (mut new_m, mut new_v) = ([0.0f32; LARGEST_BLOCK], [0.0f32; LARGEST_BLOCK]);
        let n = p.len();
        for i in 0..n {
            new_m[i] = signed[m[i] as usize];
            new_v[i] = unsigned[v[i] as usize];
        }
        let (old_m, old_v) = (*m_max, *v_max);
        let (mut top_m, mut top_v) = (0.0f32, 0.0f32);
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(&mut new_m).zip(&mut new_v) {
            let finite = g.is_finite();
            let g = if finite { *g } else { 0.0 };
            let m1 = o.beta1 * (*m * old_m) + o.new1 * g;
            let v1 = o.beta2 * (*v * old_v) + o.new2 * g * g;
            let p1 = *p * o.keep - o.rate * (m1 / (v1.sqrt() + o.eps));
            (*m, *v) = if finite { (m1, v1) } else { (0.0, 0.0) };
            *p = if finite { p1 } else { *p };
            top_m = if m.abs() > top_m { m.abs() } else { top_m };
            top_v = if *v > top_v { *v } else { top_v };
        }
        (*m_max, *v_max) = (top_m, top_v);
        encode(signed_midpoints(), &new_m[..n], top_m, true, m);
        encode(unsigned_midpoints(), &new_v[..n], top_v, false, v);
    }
}

/// The same written down directly in f64, block by block.
pub mod reference {
    use super::AdamW;
    use crate::dynamic_code::{nearest, signed, unsigned};

    /// A block's state: codes and largest values of both moments.
    #[derive(Clone, Debug, Default)]
    pub struct Block {
        /// Codes of the first moment and its largest |value|.
        pub m: (Vec<u8>, f64),
        /// Codes of the second moment and its largest value.
        pub v: (Vec<u8>, f64),
    }

    /// One update of a block; all gradients finite.
    pub fn step(o: &AdamW, p: &mut [f64], g: &[f64], s: &mut Block) {
        let (c1, c2) = (1.0 - o.beta1.powi(o.step as i32), 1.0 - o.beta2.powi(o.step as i32));
        let (mut m, mut v) = (Vec::new(), Vec::new());
        for i in 0..p.len() {
            m.push(o.beta1 * f64::from(signed()[s.m.0[i] as usize]) * s.m.1 + (1.0 - o.beta1) * g[i]);
            let old = f64::from(unsigned()[s.v.0[i] as usize]) * s.v.1;
            v.push(o.beta2 * old + (1.0 - o.beta2) * g[i] * g[i]);
            p[i] -= o.lr * o.weight_decay * p[i];
            p[i] -= o.lr * (m[i] / c1) / ((v[i] / c2).sqrt() + o.eps);
        }
        s.m.1 = m.iter().fold(0.0, |a, x| a.max(x.abs()));
        s.v.1 = v.iter().fold(0.0, |a, x| a.max(*x));
        for i in 0..p.len() {
            let code = nearest(signed(), (m[i] / s.m.1) as f32);
            s.m.0[i] = if m[i] < 0.0 && code >= 127 { 126 } else { code };
            s.v.0[i] = nearest(unsigned(), (v[i] / s.v.1) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamic_code::nearest;
    use crate::testing::{assert_close, assert_same_for_threads, normal, wide};

    const O: AdamW = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1 };

    // Recorded from the CPU library of bitsandbytes 0.50.2 (`AdamW8bit`) on 520 numbers: codes and largest
    // values of both moments after steps 3 and 4, and after step 4 every twentieth weight.
    const M3: &str = "\
        a1549e8a782942927587d8666a6f85a8c09e89832ab49372770ca26b8f8642565f8b7bfab57b7978dba2687076b4579f8b79\
        2d44947787dd9c6d7186bb52606e832eb79476790fa46d90875d59628c83ffb8917a79e0a4697076c15a9f8c7a3246967b88\
        e19f6f7186c254636e8333b996767915a76f9087a75b648d832b495e8579e4a76a7076c55c9f8e84364a978488e5a0727286\
        c658646f8437bd98767a18a9739087be5e658e832f4a5e8779e9aa6f7477ca5ea08e843a4c9987781c3e8a7387cb59646f84\
        3cbe9a777a1dac8b9087c366668f84344f5f8879edad707477cf6aa08e853f4f9b8878203f8f7487cf5d686f8442bf9b887a\
        21af8f7177038e688f8438505f897af2af727578d292a18f8553519d8978243f917487d45e696f8559c09e887a25b2917277\
        079b6a8f863c535f8a7bf6b2757578d79f666f769b549e8a782940927587d8736c6f85a4c09e89832ab49375770ca16b9086\
        4556608b7bfab57a7979dca2687076b8569f8b792d45947687dd916d6f86ba52606e832eb79576790fa36d90875c59608c7b\
        ffb8917a79e0a5687076c15a9f8c7a3247967b88e09f6e7186c254636e8333b996767914a76e9087a75b648e832b495d8379\
        e4a76c7076c65c9f8e843648978688e6a4727386c657646f8437bc98767a19a9739087bd5e658e842f4a5e8779e9aa6f7477\
        ca5fa08e843a4c9987771c3e8c6d8aff425b6887";
    const V3: &str = "\
        b539100707c3400e0707c3420f0707b542100707c23e0f0707ea360f0707f939100707f33e110707c635110707b539100707\
        c0400e0707c7420f0707b542100707be3f0f0707e3360e0707f937100707fb3e110707ca38110707b638100707bc3f0e0707\
        cd430e0707b642100707bc3f0f0707dc370f0707fa37100707ff3f110707d038110707b737100707ba3f0f0707d2420e0707\
        b842100707b9400f0707d5380f0707fc36100707fb3f110707d538110707b937100707b83f0f0707d2420f0707b9420f0707\
        b7400f0707d0390f0707fe350f0707fa3d110707dc3b110707bb36100707b63b0f0707cc420e0707bc420f0707b641100707\
        ca3b0f0707fb360e0707f93a100707e33b110707be36110707b53a0f0707c7410e0707bf420f0707b542100707c63d0f0707\
        f2360e0707f93b100707ea3b110707c235110707b539100707c3400e0707c3420f0707b542100707c23e0f0707ea360f0707\
        f839100707f33e110707c635100707b539100707bf3f0e0707c7420f0707b442100707be3f0f0707e3360e0707f937100707\
        fb3f110707ca38110707b638100707bc3f0e0707cd420e0707b642100707bc3f0f0707dc370f0707fa37100707ff3f110707\
        d038110707b737100707ba3f0f0707d2420e0707b742100707b8400f0707d5380f0707fc36100707fc3f110707d638110707\
        b937100707b83c0f0707d242110707ff4c110707";
    const M4: &str = "\
        36a79b717a1058758e873ba4617783ebc08c8e7ac5ae6576762f61988f79c2476c8887f771957384d14b6d6e773aaa9e737b\
        155b8e8f8747aa6588841b5a5d707acab2668777336f9a907bc84b788987fd9d997385d74e6f6e7742ae9e74831b5e918f88\
        64ac678884205c5e707ad0b56987773a9d9d9083cd4e8f8a77373e657485dc52736e775cb19e7686206d928f88b2ae688a85\
        25665e757bd5b96b88773ea19e9083d351908c773c3e657685e255916f7ab1b4a076862596956f7a004d6b8b872b6f5e767b\
        dbbb6d897856a49f9083d855928e784d3f6a7785e759926f7bc2b8a077872ba097707a05526d8c87309f5f767be0be6f8d78\
        a7a86074762458948e789b406b7a86ed5c937084c6bba1878730a399707a0a536f8c8736a1607683e6c0898d78bfac627576\
        295b978f79b7446b8687f25f947084cc486b6e7735a79b717a1057758e873ba6637783ebc08c8e7ac5ae657b762f5f989079\
        c3476f8887f771957385d24b6d6e773baa9e737b155c8e8e8747a86577841a5a5d707acab2678777336b9a907bc84b708987\
        fd9d997385d74f6e6e7742ae9e74831b5f918f885cac668884205c5e707ad0b5698777399d9c9083cd4e8f8b77373e607485\
        dc52896e7763b19e76862065928f88b6b1688a8525615e757bd5b86b88773fa19e9083d351908c773c3e657685e255916f7a\
        b1b4a076862596956f78004d608f880091586f7b";
    const V4: &str = "\
        b841100707d5410e0707ef420f0707ff41110707ea3a110707f536110707f23e110707e441110707bd42110707b641100707\
        d0410c0707ee420f0707ff41110707ea3d110707f135100707f43b110707ec41110707c042110707b541100707c9410c0707\
        ef430e0707fa41110707ed3c110707ee35110707f63a110707f041110707c542110707b442100707c5410e0707f0420e0707\
        f741110707ef3f100707ec36110707fa39110707ee41110707c941110707b542100707c1410e0707ec420f0707f341100707\
        f13f100707eb36110707ff37100707ee40110707cf42110707b642100707bd410e0707e4420e0707f141100707f540110707\
        e938110707fe37100707ef3f100707d541110707b743110707ba410e0707dc420e0707ef410f0707f941110707e939110707\
        f936100707f03f110707dc41110707ba42110707b841100707d5410e0707ef420f0707ff41110707ea3a110707f536110707\
        f13e110707e441110707bd42100707b641100707cf410c0707ee420f0707fe41110707ea3d110707f135100707f43b110707\
        ec41110707c042110707b541100707c9410c0707ef420e0707fa41110707ed3c110707ee35110707f63a110707f041110707\
        c542110707b442100707c5410e0707f0420e0707f641110707ee3f100707ec36110707fa39110707ef41110707ca41110707\
        b542100707c1400e0707ec420f0707ff42100707";
    const M3_MAX: [u32; 3] = [0x3f0cc166, 0x3f0c9af4, 0x3e1c2a97];
    const V3_MAX: [u32; 3] = [0x3cc2c656, 0x3cc2d2bf, 0x3c48a971];
    const M4_MAX: [u32; 3] = [0x3f10b57f, 0x3f10a0c4, 0x3e604012];
    const V4_MAX: [u32; 3] = [0x3cdd0797, 0x3cdd0d95, 0x3ccc32d9];
    const P4: [u32; 26] = [
        0xbfc786c8, 0x3f4777c2, 0xbd0c9fcc, 0xbf56c8b7, 0x3fbef64c, 0x3f2fd632, 0xbe01e9cf, 0xbf6e9ca4,
        0x3fb3ecbd, 0x3f17b35a, 0xbe632bca, 0xbf84887c, 0x3fa81a15, 0x3effb72e, 0xbe9ca6cd, 0xbf8f82e6,
        0x3f9c2063, 0x3ecf2058, 0xbed17025, 0xbf9b5727, 0x3f8f02d2, 0x3e9fe8cc, 0xbf0061d9, 0xbfa7421a,
        0x3f83f626, 0x3e5f304f,
    ];

    struct Owned {
        m: Vec<u8>,
        m_max: Vec<f32>,
        v: Vec<u8>,
        v_max: Vec<f32>,
    }

    impl Owned {
        fn new(n: usize, block: usize) -> Self {
            let blocks = n.div_ceil(block);
            Owned { m: vec![0; n], m_max: vec![0.0; blocks], v: vec![0; n], v_max: vec![0.0; blocks] }
        }
        fn lent(&mut self) -> Moments<'_> {
            Moments { m: &mut self.m, m_max: &mut self.m_max, v: &mut self.v, v_max: &mut self.v_max }
        }
    }

    /// Gradients of very different size, as a block mixes them.
    fn mixed(seed: u64, n: usize) -> Vec<f32> {
        let mut g = normal::<f32>(seed, n);
        g.iter_mut().enumerate().for_each(|(i, g)| *g *= 10f32.powi(-((i % 5) as i32)));
        g
    }

    #[test]
    fn equals_the_reference_over_steps() {
        for (n, block) in [(0, 256), (1, 256), (300, 256), (20_000, 256), (5000, 2048)] {
            let mut p = normal::<f32>(1, n);
            let mut s = Owned::new(n, block);
            let mut want = wide(&p);
            let mut blocks: Vec<reference::Block> = want
                .chunks(block)
                .map(|b| reference::Block { m: (vec![0; b.len()], 0.0), v: (vec![0; b.len()], 0.0) })
                .collect();
            let mut off = 0;
            for t in 1..=5 {
                let g = mixed(10 + t, n);
                let o = AdamW { step: t, ..O };
                // Both begin from the same codes, so that one entry on the edge between two codes is one entry.
                step(&o, block, &mut p, &g, s.lent());
                for (i, b) in blocks.iter_mut().enumerate() {
                    let range = i * block..n.min((i + 1) * block);
                    reference::step(&o, &mut want[range.clone()], &wide(&g[range.clone()]), b);
                    for (ours, theirs) in [(&s.m, &b.m.0), (&s.v, &b.v.0)] {
                        let pairs = ours[range.clone()].iter().zip(theirs);
                        assert!(pairs.clone().all(|(a, b)| a.abs_diff(*b) <= 1), "codes more than one apart");
                        off += pairs.filter(|(a, b)| a != b).count();
                    }
                    assert!((f64::from(s.m_max[i]) - b.m.1).abs() <= 1e-5 * b.m.1);
                    b.m = (s.m[range.clone()].to_vec(), f64::from(s.m_max[i]));
                    b.v = (s.v[range.clone()].to_vec(), f64::from(s.v_max[i]));
                }
            }
            assert_close(&p, &want, 1e-5);
            assert!(off * 1000 <= n, "{off} of {n} codes differ");
        }
    }

    /// One step from bitsandbytes' own state: the same weights and largest values. Its CPU library looks codes
    /// up in a table of 2¹⁶ cells over [−1, 1] or [0, 1] where ours are the nearest ones; so each of its codes
    /// is the nearest of some number within a cell of ours.
    #[test]
    fn equals_bitsandbytes() {
        let n = 520;
        let bytes = |hex: &str| -> Vec<u8> {
            let digit = |c: u8| char::from(c).to_digit(16).unwrap() as u8;
            hex.as_bytes().chunks(2).map(|c| 16 * digit(c[0]) + digit(c[1])).collect()
        };
        let floats = |bits: [u32; 3]| bits.map(f32::from_bits).to_vec();
        let mut s = Owned { m: bytes(M3), m_max: floats(M3_MAX), v: bytes(V3), v_max: floats(V3_MAX) };
        let mut p: Vec<f32> = (0..n).map(|i| ((i * 29 % 101) as f32 - 50.0) / 32.0).collect();
        let g: Vec<f32> = (0..n)
            .map(|i| (((i * 37 + 404) % 64) as f32 - 31.5) / 8.0 * 0.125f32.powi((i % 5) as i32))
            .collect();
        let (old_m, old_v) = (unpack(&s.m, &s.m_max, 256, true), unpack(&s.v, &s.v_max, 256, false));
        step(&AdamW { step: 4, ..O }, 256, &mut p, &g, s.lent());
        let near = |ours: f32, theirs: u32| (ours - f32::from_bits(theirs)).abs() < 1e-6;
        assert!(s.m_max.iter().zip(M4_MAX).all(|(a, b)| near(*a, b)));
        assert!(s.v_max.iter().zip(V4_MAX).all(|(a, b)| near(*a, b)));
        assert!(p.iter().step_by(20).zip(P4).all(|(a, b)| near(*a, b)));
        let (m, v) = (bytes(M4), bytes(V4));
        for i in 0..n {
            let m_now = (0.9 * old_m[i] + 0.1 * g[i]) / s.m_max[i / 256];
            let v_now = (0.999 * old_v[i] + 0.001 * g[i] * g[i]) / s.v_max[i / 256];
            let cell = 1.01 / 65536.0;
            let within = |code: &[f32; 256], x: f32, cell: f32, found: u8| {
                (nearest(code, x - cell)..=nearest(code, x + cell)).contains(&found)
            };
            assert!(within(signed(), m_now, 2.0 * cell, m[i]) && within(signed(), m_now, cell, s.m[i]));
            assert!(within(unsigned(), v_now, cell, v[i]) && within(unsigned(), v_now, cell, s.v[i]));
        }
    }

    #[test]
    fn a_negative_moment_stays_negative_and_zero_stays_zero() {
        let n = 256;
        let mut g = vec![-1e-12f32; n];
        (g[0], g[1]) = (1.0, 0.0);
        let (mut p, mut s) = (vec![0.0; n], Owned::new(n, 256));
        step(&O, 256, &mut p, &g, s.lent());
        assert_eq!((s.m[0], s.m[1], s.m[2]), (255, ZERO, ZERO - 1));
        assert_eq!((s.v[0], s.v[1]), (255, 0));
        assert_eq!(p[1], 0.0);
    }

    #[test]
    fn an_entry_without_a_finite_gradient_forgets_and_stays() {
        let (mut p, mut s) = (vec![1.0f32; 512], Owned::new(512, 256));
        step(&O, 256, &mut p, &vec![1.0; 512], s.lent());
        let before = p.clone();
        let mut g = vec![1.0; 512];
        (g[3], g[300]) = (f32::NAN, f32::INFINITY);
        step(&AdamW { step: 2, ..O }, 256, &mut p, &g, s.lent());
        assert_eq!((p[3], p[300], s.m[3], s.v[300]), (before[3], before[300], ZERO, 0));
        assert!(p[4] < before[4] && p.iter().all(|x| x.is_finite()));
    }

    /// The code with signs has 1 and not −1, so a block whose largest entry is negative shrinks a little.
    #[test]
    fn packing_what_was_unpacked_changes_nothing() {
        for both_signs in [true, false] {
            let mut x = mixed(3, 700);
            for block in x.chunks_mut(256) {
                block[7] = 5.0;
                block.iter_mut().for_each(|x| *x = if both_signs { *x } else { x.abs() });
            }
            let (mut codes, mut max) = (vec![0; 700], vec![0.0; 3]);
            pack(&x, 256, both_signs, &mut codes, &mut max);
            let back = unpack(&codes, &max, 256, both_signs);
            // Half a step of the largest decade, which has 64 codes; smaller ones have fewer but are finer.
            let off = |i: usize| (x[i] - back[i]).abs() / max[i / 256];
            assert!((0..700).all(|i| off(i) <= 0.0075));
            let (mut again, mut max_again) = (vec![0; 700], vec![0.0; 3]);
            pack(&back, 256, both_signs, &mut again, &mut max_again);
            assert_eq!((codes, max), (again, max_again));
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let n = 100_000;
        let (g, start) = (mixed(1, n), normal::<f32>(2, n));
        assert_same_for_threads(|| {
            let (mut p, mut s) = (start.clone(), Owned::new(n, 256));
            step(&O, 256, &mut p, &g, s.lent());
            step(&AdamW { step: 2, ..O }, 256, &mut p, &g, s.lent());
            p.extend(s.m.iter().chain(&s.v).map(|b| f32::from(*b)));
            p
        });
    }
}
