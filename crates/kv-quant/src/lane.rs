//! Lanes whose entries are packed, all but the newest.

use std::collections::VecDeque;
use std::ops::Range;

use half::f16;
use ramekin_kernels::attention::Stored;
use ramekin_kernels::packed;
use ramekin_lanes::{Entries, Storage};

/// Entries in few bits.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    /// Bits a number: 2, 4 or 8.
    pub bits: u32,
    /// Numbers that share a scale.
    pub group: usize,
    /// Newest entries that stay in f32.
    pub newest: usize,
}

impl Packed {
    /// Bytes of one packed row of a head: codes, then scale and zero of each group.
    fn row(&self, head_dim: usize) -> usize {
        packed::stream_bytes(head_dim, self.bits) + 4 * head_dim.div_ceil(self.group)
    }
}

impl Storage for Packed {
    type Lane = PackedLane;

    fn lane(&self, room: usize, head_dim: usize, rollback: usize) -> PackedLane {
        let packed = room.saturating_sub(self.newest) * self.row(head_dim);
        let newest = room.min(self.newest) * head_dim;
        PackedLane {
            form: *self,
            head_dim,
            packed: [Vec::with_capacity(packed), Vec::with_capacity(packed)],
            newest: [Vec::with_capacity(newest), Vec::with_capacity(newest)],
            noted: VecDeque::with_capacity(rollback),
            rollback,
        }
    }

    fn ages(&self) -> bool {
        true
    }

    fn bytes(&self, room: usize, head_dim: usize, rollback: usize) -> u64 {
        let packed = room.saturating_sub(self.newest) * self.row(head_dim);
        let newest = (room.min(self.newest) + rollback) * head_dim * 4;
        2 * (packed + newest) as u64
    }
}

/// Keys and values; `[0]` of each pair are the keys'.
#[derive(Clone)]
pub struct PackedLane {
    form: Packed,
    head_dim: usize,
    packed: [Vec<u8>; 2],
    newest: [Vec<f32>; 2],
    /// What each of the last pushes packed, as it was.
    noted: VecDeque<Option<Row>>,
    rollback: usize,
}

/// Key and value of an entry.
type Row = [Vec<f32>; 2];

/// An entry out of its lane.
#[derive(Clone)]
pub enum Taken {
    /// Packed key and value.
    Packed([Vec<u8>; 2]),
    /// Key and value as they came.
    AsItCame([Vec<f32>; 2]),
}

impl PackedLane {
    fn packed_len(&self) -> usize {
        self.packed[0].len() / self.form.row(self.head_dim)
    }

    fn newest_len(&self) -> usize {
        self.newest[0].len() / self.head_dim
    }

    fn read<'a>(&'a self, side: usize, entries: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let (d, row, split) = (self.head_dim, self.form.row(self.head_dim), self.packed_len());
        if entries.start >= split {
            return &self.newest[side][(entries.start - split) * d..(entries.end - split) * d];
        }
        let packed = &self.packed[side][entries.start * row..entries.end.min(split) * row];
        scratch.resize(entries.len() * d, 0.0);
        let (unpacked, newest) = scratch.split_at_mut(packed.len() / row * d);
        unpack(packed, &self.form, d, unpacked);
        newest.copy_from_slice(&self.newest[side][..newest.len()]);
        scratch
    }

    /// Packs the oldest of those that are not.
    fn pack_oldest(&mut self) -> Row {
        let d = self.head_dim;
        [0, 1].map(|side| {
            let row: Vec<f32> = self.newest[side].drain(..d).collect();
            pack(&row, &self.form, &mut self.packed[side]);
            row
        })
    }
}

impl Stored<f32> for PackedLane {
    fn keys<'a>(&'a self, entries: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        self.read(0, entries, scratch)
    }

    fn values<'a>(&'a self, entries: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        self.read(1, entries, scratch)
    }
}

impl Entries for PackedLane {
    type Entry = Taken;

    fn len(&self) -> usize {
        self.packed_len() + self.newest_len()
    }

    fn push(&mut self, k: &[f32], v: &[f32]) {
        let mut gone = None;
        if self.form.newest == 0 {
            pack(k, &self.form, &mut self.packed[0]);
            pack(v, &self.form, &mut self.packed[1]);
        } else {
            if self.newest_len() == self.form.newest {
                gone = Some(self.pack_oldest());
            }
            self.newest[0].extend_from_slice(k);
            self.newest[1].extend_from_slice(v);
        }
        if self.rollback > 0 {
            if self.noted.len() == self.rollback {
                self.noted.pop_front();
            }
            self.noted.push_back(gone);
        }
    }

    fn pop(&mut self) {
        let (d, row) = (self.head_dim, self.form.row(self.head_dim));
        for side in [0, 1] {
            if self.newest[side].is_empty() {
                let keep = self.packed[side].len().saturating_sub(row);
                self.packed[side].truncate(keep);
            } else {
                let keep = self.newest[side].len() - d;
                self.newest[side].truncate(keep);
            }
        }
        if let Some(Some(gone)) = self.noted.pop_back() {
            for (side, x) in gone.into_iter().enumerate() {
                let keep = self.packed[side].len() - row;
                self.packed[side].truncate(keep);
                self.newest[side].splice(0..0, x);
            }
        }
    }

    fn poppable(&self) -> usize {
        // What never left the newest, or went packed at once, needs no note.
        if self.packed_len() == 0 || self.form.newest == 0 { self.len() } else { self.noted.len() }
    }

    fn remove(&mut self, index: usize) -> Taken {
        let (d, row, split) = (self.head_dim, self.form.row(self.head_dim), self.packed_len());
        if index < split {
            return Taken::Packed(
                [0, 1].map(|s| self.packed[s].drain(index * row..(index + 1) * row).collect()),
            );
        }
        let at = (index - split) * d;
        Taken::AsItCame([0, 1].map(|s| self.newest[s].drain(at..at + d).collect()))
    }

    fn insert(&mut self, index: usize, entry: Taken) {
        let (d, row, split) = (self.head_dim, self.form.row(self.head_dim), self.packed_len());
        match entry {
            Taken::Packed(sides) => {
                for (side, x) in sides.into_iter().enumerate() {
                    self.packed[side].splice(index * row..index * row, x);
                }
            }
            Taken::AsItCame(sides) => {
                let at = (index - split) * d;
                for (side, x) in sides.into_iter().enumerate() {
                    self.newest[side].splice(at..at, x);
                }
            }
        }
    }

    fn bytes(&self) -> u64 {
        let sides = [0, 1].map(|s| self.packed[s].len() + 4 * self.newest[s].len());
        (sides[0] + sides[1]) as u64
    }
}

/// Appends a row's codes and then its groups' scales and zeros.
fn pack(x: &[f32], form: &Packed, to: &mut Vec<u8>) {
    let levels = ((1u32 << form.bits) - 1) as f32;
    let params: Vec<(f16, f16)> = x
        .chunks(form.group)
        .map(|g| {
            let (least, most) =
                g.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), x| (a.min(*x), b.max(*x)));
            // What f16 cannot hold is held as near as it can.
            let near = |x: f32| f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
            let zero = near(least);
            (near((most - zero.to_f32()).max(0.0) / levels), zero)
        })
        .collect();
    let code = |(i, x): (usize, &f32)| {
        let (scale, zero) = params[i / form.group];
        let scale = scale.to_f32();
        if scale == 0.0 { 0 } else { ((x - zero.to_f32()) / scale).round().clamp(0.0, levels) as u8 }
    };
    let codes: Vec<u8> = x.iter().enumerate().map(code).collect();
    let start = to.len();
    to.resize(start + packed::stream_bytes(x.len(), form.bits), 0);
    packed::pack_bits(&codes, form.bits, &mut to[start..]);
    for (scale, zero) in params {
        to.extend_from_slice(&scale.to_le_bytes());
        to.extend_from_slice(&zero.to_le_bytes());
    }
}

/// The `d` numbers of each packed row.
fn unpack(rows: &[u8], form: &Packed, d: usize, to: &mut [f32]) {
    let mut codes = vec![0; d];
    for (row, to) in rows.chunks_exact(form.row(d)).zip(to.chunks_exact_mut(d)) {
        let (stream, params) = row.split_at(packed::stream_bytes(d, form.bits));
        packed::unpack_bits(stream, form.bits, &mut codes);
        let groups = to.chunks_mut(form.group).zip(codes.chunks(form.group));
        for ((to, codes), p) in groups.zip(params.as_chunks::<4>().0) {
            let [scale, least] = [[p[0], p[1]], [p[2], p[3]]].map(|x| f16::from_le_bytes(x).to_f32());
            packed::offset(codes, scale, least, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use ramekin_kernels::philox::Stream;

    use super::*;

    fn normal(seed: u64, n: usize) -> Vec<f32> {
        let mut x = vec![0.0; n];
        Stream::new(seed, 1).fill_normal(0, 1.0, &mut x);
        x
    }

    fn all(lane: &PackedLane) -> Vec<f32> {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        [lane.keys(0..lane.len(), &mut a).to_vec(), lane.values(0..lane.len(), &mut b).to_vec()].concat()
    }

    #[test]
    fn numbers_come_back_within_half_a_step() {
        for (bits, group, d) in [(8, 64, 32), (4, 8, 24), (4, 64, 7), (2, 5, 13)] {
            let form = Packed { bits, group, newest: 0 };
            let x = normal(3, d);
            let (mut row, mut y) = (Vec::new(), vec![0.0; d]);
            pack(&x, &form, &mut row);
            assert_eq!(row.len(), form.row(d));
            unpack(&row, &form, d, &mut y);
            for (x, y) in x.chunks(group).zip(y.chunks(group)) {
                let (least, most) = x.iter().fold((9f32, -9f32), |(a, b), x| (a.min(*x), b.max(*x)));
                let step = (most - least) / ((1 << bits) - 1) as f32;
                // f16 holds zero and scale to a part in 2048.
                let allowed = 0.5 * step + (most - least) / 1024.0 + least.abs() / 2048.0;
                assert!(x.iter().zip(y).all(|(x, y)| (x - y).abs() <= allowed), "{bits} bits: {x:?} {y:?}");
            }
        }
    }

    #[test]
    fn the_newest_stay_and_what_was_packed_comes_back() {
        let (d, form) = (8, Packed { bits: 4, group: 8, newest: 3 });
        let x = normal(1, 20 * d);
        let mut lane = form.lane(12, d, 4);
        let push = |lane: &mut PackedLane, i: usize| {
            lane.push(&x[i * d..(i + 1) * d], &x[(10 + i) * d..(11 + i) * d]);
        };
        (0..6).for_each(|i| push(&mut lane, i));
        let before = all(&lane);
        assert_eq!(before[3 * d..6 * d], x[3 * d..6 * d]);
        assert!(before[..3 * d] != x[..3 * d]);
        (6..10).for_each(|i| push(&mut lane, i));
        assert_eq!(lane.bytes(), 2 * (7 * form.row(d) + 3 * 4 * d) as u64);
        assert_eq!(lane.poppable(), 4);
        let newest = lane.remove(8);
        let older = lane.remove(2);
        lane.insert(2, older);
        lane.insert(8, newest);
        (0..4).for_each(|_| lane.pop());
        assert_eq!(all(&lane), before);
    }

    #[test]
    fn a_row_of_one_number_is_exact_up_to_f16() {
        let form = Packed { bits: 4, group: 8, newest: 0 };
        let (mut row, mut y) = (Vec::new(), vec![0.0; 8]);
        pack(&[0.75; 8], &form, &mut row);
        unpack(&row, &form, 8, &mut y);
        assert_eq!(y, [0.75; 8]);
    }
}
