//! Where parts stand in a stage: the one list of its slots, which reading, completing and placing share.

use crate::part::{Adapter, Part};
use crate::stage::Stage;

/// A part of a stage with its slot and its place.
pub struct Placed<'a> {
    /// The slot.
    pub slot: &'static str,
    /// Its key below the stage, `gradient.0`.
    pub key: String,
    /// The part.
    pub part: &'a mut Part,
}

/// Collects parts in the order of the reference.
struct Places<'a>(Vec<Placed<'a>>);

impl<'a> Places<'a> {
    fn one(&mut self, slot: &'static str, part: &'a mut Part) {
        self.0.push(Placed { slot, key: slot.to_owned(), part });
    }

    fn perhaps(&mut self, slot: &'static str, part: &'a mut Option<Part>) {
        self.0.extend(part.as_mut().map(|part| Placed { slot, key: slot.to_owned(), part }));
    }

    fn list(&mut self, slot: &'static str, parts: &'a mut [Part]) {
        let placed = parts.iter_mut().enumerate();
        self.0.extend(placed.map(|(i, part)| Placed { slot, key: format!("{slot}.{i}"), part }));
    }

    fn at(&mut self, key: String, slot: &'static str, part: &'a mut Part) {
        self.0.push(Placed { slot, key, part });
    }

    fn inside(&mut self, table: &str, slot: &'static str, part: &'a mut Part) {
        self.0.push(Placed { slot, key: format!("{table}.{slot}"), part });
    }

    fn adapters(&mut self, adapters: &'a mut [Adapter]) {
        for (i, adapter) in adapters.iter_mut().enumerate() {
            if let Adapter::New(part) = adapter {
                self.0.push(Placed { slot: "adapter", key: format!("adapter.{i}"), part });
            }
        }
    }
}

impl Stage {
    /// Every part of the stage with its slot and its place.
    ///
    /// The data of an evaluation inside a train stage counts as a part of slot `data`.
    pub fn parts_mut(&mut self) -> Vec<Placed<'_>> {
        let mut all = Places(Vec::new());
        match self {
            Stage::Train(s) => {
                all.perhaps("quantizer", &mut s.quantizer);
                all.one("placement", &mut s.placement);
                all.perhaps("attention", &mut s.attention);
                all.adapters(&mut s.adapter);
                all.list("reducer", &mut s.reducer);
                all.perhaps("selection", &mut s.selection);
                all.perhaps("method", &mut s.method);
                all.one("estimator", &mut s.estimator);
                all.list("gradient", &mut s.gradient);
                all.one("optimizer", &mut s.optimizer);
                all.one("schedule", &mut s.schedule);
                all.one("objective", &mut s.objective);
                all.one("activation", &mut s.activation);
                all.perhaps("comm", &mut s.comm);
                all.one("data", &mut s.data);
                if let Some(data) = s.eval.as_mut().and_then(|e| e.data.as_mut()) {
                    all.inside("eval", "data", data);
                }
                if let Some(samples) = &mut s.samples {
                    all.inside("samples", "decode", &mut samples.decode);
                }
                all.list("hook", &mut s.hook);
                all.list("track", &mut s.track);
            }
            Stage::Generate(s) => {
                all.perhaps("quantizer", &mut s.quantizer);
                all.one("placement", &mut s.placement);
                all.perhaps("attention", &mut s.attention);
                all.adapters(&mut s.adapter);
                all.one("decode", &mut s.decode);
                all.one("kv", &mut s.kv);
            }
            Stage::Merge(s) => {
                all.adapters(&mut s.adapter);
                all.at("method".to_owned(), "merge", &mut s.method);
                for (i, input) in s.models.iter_mut().enumerate() {
                    if let Some(data) = &mut input.data {
                        all.at(format!("models.{i}.data"), "data", data);
                    }
                }
                for (i, data) in s.control.iter_mut().enumerate() {
                    all.at(format!("control.{i}"), "data", data);
                }
            }
            Stage::Compress(s) => {
                all.perhaps("prune", &mut s.prune);
                all.perhaps("quantizer", &mut s.quantizer);
                all.one("data", &mut s.data);
            }
            Stage::Eval(s) => {
                all.perhaps("quantizer", &mut s.quantizer);
                all.one("placement", &mut s.placement);
                all.perhaps("attention", &mut s.attention);
                all.adapters(&mut s.adapter);
                all.list("reducer", &mut s.reducer);
                all.one("objective", &mut s.objective);
                all.one("data", &mut s.data);
                all.one("decode", &mut s.decode);
                all.one("kv", &mut s.kv);
            }
            Stage::Logits(s) => {
                all.perhaps("quantizer", &mut s.quantizer);
                all.one("placement", &mut s.placement);
                all.perhaps("attention", &mut s.attention);
                all.adapters(&mut s.adapter);
                all.list("reducer", &mut s.reducer);
            }
            Stage::Search(s) => all.one("search", &mut s.search),
            Stage::Bench(_) => {}
        }
        all.0
    }
}
