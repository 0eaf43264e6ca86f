//! Checkpoint segments: run again in backward what was not kept in forward.

use std::rc::Rc;

use anyhow::Result;
use ramekin_core::Category;

use crate::sink::GradStore;
use crate::tape::{Saved, SavedKind, Tape, Value};

/// A piece of forward that can be run again: same inputs, same result.
pub type Segment = Rc<dyn Fn(&Tape, &[Value]) -> Result<Value>>;

impl Tape {
    /// Runs `segment`, keeping its inputs alone; backward runs it once more,
    /// records, and walks that recording. Randomness inside must be by
    /// address, so that the second run replays the first.
    pub fn checkpoint(&self, inputs: &[Value], segment: Segment) -> Result<Value> {
        if !self.is_recording() {
            return segment(self, inputs);
        }
        let watch = Tape::watching();
        let plain: Vec<Value> = inputs.iter().map(Value::detach).collect();
        let output = segment(&watch, &plain)?.into_array();
        drop(plain);
        let params = watch.used_params();
        let leaves = params.iter().map(|p| self.param(p)).collect::<Result<Vec<Value>>>()?;
        let parents: Vec<&Value> = inputs.iter().chain(&leaves).collect();
        // A fresh tape, not this one: a node that held its own tape would never be freed.
        let inner = self.sibling();
        self.record(&parents, output, || {
            let saved = inputs
                .iter()
                .map(|v| Ok((self.save(v.array(), SavedKind::Input)?, v.is_tracked())))
                .collect::<Result<Vec<(Saved, bool)>>>()?;
            Ok(Box::new(move |grad| {
                let inputs = saved
                    .into_iter()
                    .map(|(s, tracked)| {
                        let array = s.get()?;
                        Ok(if tracked { inner.input(array) } else { Value::constant(array) })
                    })
                    .collect::<Result<Vec<Value>>>()?;
                let output = segment(&inner, &inputs)?;
                let mut store = GradStore::new();
                let mut flows = inner.backward(&output, grad, &inputs, &mut store)?;
                let mut grads = store.take();
                for param in &params {
                    let found = grads.iter().position(|(p, _)| p.id() == param.id());
                    flows.push(found.map(|i| grads.swap_remove(i).1));
                }
                for flow in flows.iter().take(inputs.len()).flatten() {
                    flow.recategorise(Category::Workspace);
                }
                Ok(flows)
            }))
        })
    }
}
