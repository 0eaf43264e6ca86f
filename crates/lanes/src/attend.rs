//! One layer's step: prompts attend to themselves and are stored, later tokens attend to their lanes.

use std::ops::Range;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use ramekin_core::{Array, Category};
use ramekin_kernels::attention as kernel;
use ramekin_kernels::rope::Table;
use ramekin_slots::Attend;
use ramekin_tape::ops::{AttentionSpec, Segment};

use crate::cache::{Cache, layer_bytes};
use crate::cell;
use crate::lane::Lane;
use crate::rows::{Prefix, Rows};
use crate::{Prompt, Rule, Storage, Trigger};

impl<R: Rule, S: Storage> Cache<R, S> {
    pub(crate) fn take(&mut self, layer: usize, mut step: Attend<'_>) -> Result<Array> {
        let sequences =
            self.cells.get(layer).with_context(|| format!("no layer {layer} in the cache"))?.len();
        ensure!(
            step.segments.len() == sequences,
            "{} sequences in a cache of {sequences}",
            step.segments.len()
        );
        let before = step.prefix.as_ref().filter(|p| !p.k.is_empty());
        let before = before.map_or(0, |p| p.k.rows().0);
        ensure!(before == 0 || step.spec.reach.limit().is_none(), "a prefix in a layer that forgets");
        let by_slot = self.rule.by_slot() && step.inv_freq.is_some();
        // Rules that turn by slot store keys as they came.
        let plain = by_slot.then(|| (step.q.clone(), step.k.clone()));
        step.rotate(step.positions)?;
        let spec = step.spec;
        let (prompts, later): (Vec<_>, Vec<_>) = step
            .segments
            .iter()
            .cloned()
            .enumerate()
            .filter(|(_, rows)| !rows.is_empty())
            .partition(|(i, rows)| self.comes_whole(layer, *i, rows.len()));
        for (i, rows) in prompts.iter().chain(&later) {
            self.make_room(layer, *i, rows.len(), step.q.is_shape_only())?;
        }
        if let (true, Some(inv_freq)) = (by_slot && self.slots.is_none(), step.inv_freq) {
            let all = self.shape.capacity + self.shape.rollback;
            let most = self.rule.limit(self.shape.prompt).map_or(all, |limit| (limit + 1).min(all));
            self.slots = Some(Rc::new(Table::new(before + most, inv_freq)));
        }
        Array::build::<f32>(step.q.dims(), step.q.is_shape_only(), Category::Workspace, |out| {
            let (q, k, v) = (step.q.view::<f32>()?, step.k.view::<f32>()?, step.v.view::<f32>()?);
            let before = match &step.prefix {
                Some(p) => Some((p.k.view::<f32>()?, p.v.view::<f32>()?)),
                None => None,
            };
            let prefix =
                before.as_ref().map(|(k, v)| Prefix { k, v, len: k.len() / (spec.kv_heads * spec.head_dim) });
            let rows = Rows { q: &q, k: &k, v: &v, positions: step.positions, prefix, spec };
            match &plain {
                Some((q, k)) => {
                    let (q, k) = (q.view::<f32>()?, k.view::<f32>()?);
                    self.prompts(layer, &prompts, &rows, &k, out);
                    self.tokens(layer, &later, &Rows { q: &q, k: &k, ..rows }, out);
                }
                None => {
                    self.prompts(layer, &prompts, &rows, &k, out);
                    self.tokens(layer, &later, &rows, out);
                }
            }
            Ok(())
        })
    }

    /// Whether these rows are a prompt that attends to itself in full.
    fn comes_whole(&self, layer: usize, sequence: usize, rows: usize) -> bool {
        let fits = || self.rule.limit(rows).is_none_or(|limit| rows <= limit);
        self.cells[layer][sequence].seen == 0 && (self.rule.trigger() != Trigger::Before || fits())
    }

    /// Makes sure that the cache was made for so many tokens; charges a plan's bytes.
    fn make_room(&mut self, layer: usize, sequence: usize, rows: usize, shape_only: bool) -> Result<()> {
        let cell = &mut self.cells[layer][sequence];
        if cell.seen == 0 {
            cell.prompt = rows;
        }
        let most = cell.prompt + self.shape.capacity - self.shape.prompt + self.shape.rollback;
        ensure!(cell.seen + rows <= most, "a cache of {} tokens is full", self.shape.capacity);
        if shape_only {
            if cell.seen == 0 {
                let lanes = if self.rule.by_query_head() { self.shape.heads } else { self.shape.kv_heads };
                let kept = self.rule.kept(layer, self.shape.layers, lanes, rows);
                let bytes = layer_bytes(&self.rule, &self.storage, &self.shape, rows, lanes, kept);
                cell.hold(bytes);
            }
            cell.seen += rows;
        }
        Ok(())
    }

    /// Prompts attend to themselves; what the rule keeps of them is stored. `k` is what is stored of keys.
    fn prompts(
        &mut self,
        layer: usize,
        prompts: &[(usize, Range<usize>)],
        rows: &Rows<'_>,
        k: &[f32],
        out: &mut [f32],
    ) {
        if prompts.is_empty() {
            return;
        }
        let segment =
            |r: &Range<usize>| Segment { q_start: r.start, q_len: r.len(), k_start: r.start, k_len: r.len() };
        let segments: Vec<Segment> = prompts.iter().map(|(_, r)| segment(r)).collect();
        let shape = rows.spec.shape();
        let mut lse = vec![0.0f32; rows.positions.len() * rows.spec.heads];
        // Rows outside the segments belong to later tokens and are written after this.
        match rows.prefix {
            None => kernel::forward(rows.q, rows.k, rows.v, None, &segments, &shape, out, &mut lse),
            Some(prefix) => {
                let (k, v, longer) = with_prefix(rows, prefix, &segments);
                kernel::forward(rows.q, &k, &v, None, &longer, &shape, out, &mut lse);
            }
        }
        for ((sequence, range), s) in prompts.iter().zip(&segments) {
            let n = range.len();
            let back = self.rule.looks_back(n).min(n);
            let votes = match back {
                0 => Vec::new(),
                _ => kernel::column_sums(rows.q, rows.k, &lse, s, &shape, n - back..n),
            };
            let (heads, kv_heads) = (rows.spec.heads, rows.spec.kv_heads);
            let prompt = Prompt { layer, layers: self.shape.layers, len: n, heads, kv_heads, votes: &votes };
            self.store(layer, *sequence, range.clone(), rows, k, &prompt);
        }
    }

    fn store(
        &mut self,
        layer: usize,
        sequence: usize,
        range: Range<usize>,
        rows: &Rows<'_>,
        k: &[f32],
        prompt: &Prompt<'_>,
    ) {
        let lanes = self.lanes(&rows.spec);
        let kept = self.rule.keep(prompt);
        let sums =
            if self.rule.accumulates() { prompt.votes_by_lane(lanes, |a, b| a + b) } else { Vec::new() };
        let cell = &mut self.cells[layer][sequence];
        (cell.seen, cell.whole) = (range.len(), kept.is_none());
        let mut bytes = 0;
        for lane in 0..lanes {
            let all: Vec<usize>;
            let kept = match &kept {
                Some(kept) => &kept[lane],
                None => {
                    all = (0..range.len()).collect();
                    &all
                }
            };
            let room = cell::room(&self.rule, &self.shape, range.len(), kept.len());
            bytes += cell::lane_bytes(&self.rule, &self.storage, &self.shape, room);
            let entries = self.storage.lane(room, rows.spec.head_dim, self.shape.rollback);
            let mut new = Lane::new(entries, cell::drops(&self.rule));
            let head = lane * rows.spec.kv_heads / lanes;
            for j in kept {
                let row = range.start + j;
                let (k, v) = (rows.key(k, row, head), rows.key(rows.v, row, head));
                new.push(k, v, rows.positions[row], None, 0);
            }
            if let Some(sums) = sums.get(lane) {
                new.scores = kept.iter().map(|j| sums[*j]).collect();
            }
            cell.lanes.push(new);
        }
        cell.hold(bytes);
    }

    pub(crate) fn lanes(&self, spec: &AttentionSpec) -> usize {
        if self.rule.by_query_head() { spec.heads } else { spec.kv_heads }
    }
}

/// Keys and values of each segment with the prefix before them, and where they lie.
fn with_prefix(
    rows: &Rows<'_>,
    prefix: Prefix<'_>,
    segments: &[Segment],
) -> (Vec<f32>, Vec<f32>, Vec<Segment>) {
    let width = rows.key_width();
    let (mut k, mut v, mut longer) = (Vec::new(), Vec::new(), Vec::new());
    for s in segments {
        longer.push(Segment { k_start: k.len() / width, k_len: prefix.len + s.k_len, ..*s });
        let own = s.k_start * width..(s.k_start + s.k_len) * width;
        k.extend_from_slice(prefix.k);
        k.extend_from_slice(&rows.k[own.clone()]);
        v.extend_from_slice(prefix.v);
        v.extend_from_slice(&rows.v[own]);
    }
    (k, v, longer)
}
