//! Tokens after the prompt: each comes to its lanes, looks, and drives something out.

use std::ops::Range;

use ramekin_kernels::attention::{self as kernel, Found, Query, Stored};

use crate::cache::Cache;
use crate::cell::{self, Cell};
use crate::lane::Lane;
use crate::rows::{PrefixLane, Rows, Turned};
use crate::{Entries, Look, Rule, Storage, Trigger};

impl<R: Rule, S: Storage> Cache<R, S> {
    /// Later tokens: all at once where entries only come, one after the other where they also go or age.
    pub(crate) fn tokens(
        &mut self,
        layer: usize,
        later: &[(usize, Range<usize>)],
        rows: &Rows<'_>,
        out: &mut [f32],
    ) {
        if self.rule.trigger() == Trigger::Prompt && !self.storage.ages() {
            self.round(layer, later, rows, out);
            return;
        }
        let longest = later.iter().map(|(_, r)| r.len()).max().unwrap_or(0);
        for nth in 0..longest {
            let now: Vec<_> = later
                .iter()
                .filter(|(_, r)| nth < r.len())
                .map(|(i, r)| (*i, r.start + nth..r.start + nth + 1))
                .collect();
            self.round(layer, &now, rows, out);
        }
    }

    /// Adds rows to their lanes, then lets each look at its lane up to itself.
    fn round(&mut self, layer: usize, now: &[(usize, Range<usize>)], rows: &Rows<'_>, out: &mut [f32]) {
        let (lanes, d) = (self.lanes(&rows.spec), rows.spec.head_dim);
        let group = rows.spec.heads / lanes;
        for (sequence, range) in now {
            self.push(layer, *sequence, range.clone(), rows, lanes);
        }
        let found = self.look(layer, now, rows, lanes);
        let places =
            now.iter().flat_map(|(_, r)| r.clone().flat_map(|row| (0..lanes).map(move |l| (row, l))));
        for ((row, lane), found) in places.zip(&found) {
            let at = row * rows.query_width() + lane * group * d;
            out[at..at + group * d].copy_from_slice(&found.out);
        }
        if self.rule.trigger() == Trigger::After {
            let prefix = rows.prefix.map_or(0, |p| p.len);
            for ((sequence, _), found) in now.iter().zip(found.chunks(lanes)) {
                self.drop_after(layer, *sequence, rows.spec.heads, prefix, found);
            }
        }
    }

    /// What each row finds in each lane.
    fn look(
        &self,
        layer: usize,
        now: &[(usize, Range<usize>)],
        rows: &Rows<'_>,
        lanes: usize,
    ) -> Vec<Found<f32>> {
        let (spec, before) = (&rows.spec, rows.prefix.map_or(0, |p| p.len));
        let group = spec.heads / lanes;
        let slots = self.slots.as_deref().filter(|_| self.rule.by_slot());
        let cells = &self.cells[layer];
        let mut turned = Vec::new();
        // By slot, a query stands at its own entry's slot.
        let mut own = Vec::new();
        if let Some(slots) = slots {
            for (sequence, range) in now {
                let lanes = &cells[*sequence].lanes;
                turned.extend(lanes.iter().map(|l| Turned { entries: &l.entries, slots, first: before }));
                let stored = lanes.first().map_or(0, |l| l.entries.len());
                let mut q = rows.q[range.start * rows.query_width()..range.end * rows.query_width()].to_vec();
                slots.turn(&mut q, spec.heads, before + stored - range.len());
                own.push(q);
            }
        }
        let prefix: Vec<PrefixLane<'_>> = rows
            .prefix
            .iter()
            .flat_map(|p| {
                (0..spec.kv_heads).map(|head| PrefixLane { prefix: *p, head, head_dim: spec.head_dim })
            })
            .collect();
        let mut queries = Vec::new();
        for (at, (sequence, range)) in now.iter().enumerate() {
            for (nth, row) in range.clone().enumerate() {
                for lane in 0..lanes {
                    let entries = &cells[*sequence].lanes[lane].entries;
                    let end = entries.len() - (range.len() - 1 - nth);
                    let start = spec.reach.first(end);
                    let mut sees: Vec<(&dyn Stored<f32>, Range<usize>)> = Vec::new();
                    if let Some(prefix) = prefix.get(lane * spec.kv_heads / lanes) {
                        sees.push((prefix, 0..before));
                    }
                    let q = if slots.is_some() {
                        sees.push((&turned[at * lanes + lane], start..end));
                        rows.query(&own[at], nth, lane * group, group)
                    } else {
                        sees.push((entries, start..end));
                        rows.query(rows.q, row, lane * group, group)
                    };
                    queries.push(Query { q, sees });
                }
            }
        }
        let weights = self.rule.trigger() == Trigger::After;
        kernel::lanes(&queries, spec.head_dim, spec.scale, weights)
    }

    fn push(&mut self, layer: usize, sequence: usize, range: Range<usize>, rows: &Rows<'_>, lanes: usize) {
        let cell = &mut self.cells[layer][sequence];
        let limit = self.rule.limit(cell.prompt);
        if cell.lanes.is_empty() {
            // A prompt that is taken token by token.
            let kept = limit.unwrap_or(cell.prompt).min(cell.prompt);
            let room = cell::room(&self.rule, &self.shape, cell.prompt, kept);
            cell.hold(lanes as u64 * cell::lane_bytes(&self.rule, &self.storage, &self.shape, room));
            let lane = || self.storage.lane(room, rows.spec.head_dim, self.shape.rollback);
            cell.lanes = (0..lanes).map(|_| Lane::new(lane(), cell::drops(&self.rule))).collect();
        }
        let trigger = self.rule.trigger();
        let rollback = if trigger == Trigger::Prompt { 0 } else { self.shape.rollback };
        for (head, lane) in cell.lanes.iter_mut().enumerate() {
            let head = head * rows.spec.kv_heads / lanes;
            for row in range.clone() {
                let full = trigger == Trigger::Before && limit == Some(lane.entries.len());
                let (k, v) = (rows.key(rows.k, row, head), rows.key(rows.v, row, head));
                lane.push(k, v, rows.positions[row], full.then(|| self.rule.oldest()), rollback);
            }
        }
        cell.seen += range.len();
    }

    /// Adds up what the newest token looked at, and drops what has to go. The first `prefix` columns are
    /// of entries that nobody drops.
    fn drop_after(
        &mut self,
        layer: usize,
        sequence: usize,
        heads: usize,
        prefix: usize,
        found: &[Found<f32>],
    ) {
        let cell: &mut Cell<S> = &mut self.cells[layer][sequence];
        let weights: Vec<Vec<f32>> = found
            .iter()
            .zip(&cell.lanes)
            .map(|(f, lane)| {
                let mut sum = vec![0.0f32; lane.entries.len()];
                for head in f.weights.chunks_exact(prefix + sum.len()) {
                    sum.iter_mut().zip(&head[prefix..]).for_each(|(s, x)| *s += x);
                }
                sum
            })
            .collect();
        if self.rule.accumulates() {
            for (lane, weights) in cell.lanes.iter_mut().zip(&weights) {
                lane.scores.resize(weights.len(), 0.0);
                lane.scores.iter_mut().zip(weights).for_each(|(s, w)| *s += w);
            }
        }
        let stored = cell.lanes.iter().map(|l| l.entries.len()).max().unwrap_or(0);
        if self.rule.limit(cell.prompt).is_none_or(|limit| stored <= limit) {
            return;
        }
        let scores: Vec<&[f32]> = cell.lanes.iter().map(|l| l.scores.as_slice()).collect();
        let look = Look { prompt: cell.prompt, heads, weights: &weights, scores: &scores };
        let victims = self.rule.victims(&look);
        for (lane, victim) in cell.lanes.iter_mut().zip(victims) {
            lane.drop_after(victim);
        }
    }
}
