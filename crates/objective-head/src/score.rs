//! The head `score`: `[K, d]`, without bias, on the last token of each sequence.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::{Array, BadSetting, Category, DType, Param};
use ramekin_slots::{LinearBase, ObjectiveAttach, ObjectiveContext, ObjectiveFile};
use ramekin_tape::{Value, ops};
use serde_json::{Map, json};

const NAME: &str = "score.weight";

/// Standard deviation of a new head, the `initializer_range` of most models.
const STD: f64 = 0.02;

/// The head; empty until attached.
#[derive(Default)]
pub(crate) struct Score(Option<Arc<Param>>);

impl Score {
    /// A saved head, or a new one of K outputs; the model's own head stops training.
    pub fn attach(&mut self, cx: &mut ObjectiveAttach<'_>, setting: &str, outputs: usize) -> Result<()> {
        let dims = [outputs, cx.facts.hidden_size];
        let value = match (cx.saved)(NAME)? {
            Some(saved) if saved.dims() != dims => {
                let found = saved.dims();
                let why = format!("makes a head of {dims:?}; the saved `{NAME}` is {found:?}");
                return Err(BadSetting::new(setting, why).into());
            }
            Some(saved) if !cx.shape_only => saved.to_dtype(DType::F32, Category::Workspace)?,
            _ => {
                let stream = cx.rng.named("objective/init", NAME);
                Array::build::<f32>(&dims, cx.shape_only, Category::Workspace, |out| {
                    stream.fill_normal(0, STD, out);
                    Ok(())
                })?
            }
        };
        let param = Param::new(NAME, value);
        param.set_trainable(cx.training);
        cx.ledger.add(&param, "objective")?;
        self.0 = Some(param);
        for site in cx.sites.linears().iter().filter(|s| s.is_head) {
            if let LinearBase::Dense(name) = site.base()
                && name == format!("{}.weight", site.path)
            {
                cx.sites.param(&name)?.base().set_trainable(false);
            }
        }
        Ok(())
    }

    /// `[S, K]` for the S sequences of the batch.
    pub fn outputs(&self, cx: &ObjectiveContext<'_>) -> Result<Value> {
        let param = self.0.as_ref().context("the head is not in place")?;
        let pass = cx.forward()?;
        let last = cx.flat.segments.iter().map(|s| s.end.saturating_sub(1) as u32).collect();
        let pooled = ops::select_rows(cx.tape, &pass.hidden, &Rc::new(last))?;
        ops::linear(cx.tape, &pooled, &cx.tape.param(param)?, None)
    }

    /// As transformers' `…ForSequenceClassification` and PEFT's `SEQ_CLS` keep it.
    pub fn file(&self, outputs: usize, problem_type: Option<&str>) -> ObjectiveFile {
        let mut adapter_config = Map::new();
        adapter_config.insert("task_type".to_owned(), json!("SEQ_CLS"));
        adapter_config.insert("modules_to_save".to_owned(), json!(["classifier", "score"]));
        let names: Vec<String> = (0..outputs).map(|i| format!("LABEL_{i}")).collect();
        let ids: Map<_, _> = names.iter().enumerate().map(|(i, n)| (i.to_string(), json!(n))).collect();
        let labels: Map<_, _> = names.iter().enumerate().map(|(i, n)| (n.clone(), json!(i))).collect();
        let mut model_config = Map::new();
        model_config.insert("id2label".to_owned(), ids.into());
        model_config.insert("label2id".to_owned(), labels.into());
        model_config.insert("problem_type".to_owned(), json!(problem_type));
        ObjectiveFile {
            params: self.0.iter().map(|p| (NAME.to_owned(), p.clone())).collect(),
            adapter_config,
            model_config,
            class: Some("ForSequenceClassification"),
        }
    }
}

/// The numbers of an output as f64; none where there are only shapes.
pub(crate) fn numbers(outputs: &Value) -> Result<Vec<f64>> {
    if outputs.array().is_shape_only() {
        return Ok(Vec::new());
    }
    outputs.array().to_f64()
}
