//! `label-words`: a class is a word that the model is to say at the end of a prompt.
//!
//! L = scale · Σ over labelled tokens of −log softmax(z_t restricted to the label words) at y_t
//!
//! With few examples this learns where the whole vocabulary does not, and it gives an accuracy, which
//! forward-only estimators may take for their objective.
//!
//! Source: Gao et al. 2021, arXiv:2012.15723; sheet `mezo`, "Task form".

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::{
    Figure, Labelled, Loss, ModelFacts, Objective, ObjectiveAttach, ObjectiveContext, Words,
};
use ramekin_tape::ops;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { objective / "label-words" => LabelWords, "cross-entropy on labelled tokens, among the words that name the classes",
source = "arXiv:2012.15723; sheet mezo", traits = [] }

/// A word of one token.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum LabelWord {
    /// By its id.
    Id(u32),
    /// By its text, with the space that comes before it in the prompt.
    Text(String),
}

/// Settings of `objective = { kind = "label-words", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LabelWordsSettings {
    /// The words that name the classes, each one token: texts (`" great"`) or ids. At least 2.
    pub label_words: Vec<LabelWord>,
    /// Labelled rows whose logits exist at once.
    pub chunk_tokens: usize,
}

impl Default for LabelWordsSettings {
    fn default() -> Self {
        LabelWordsSettings { label_words: Vec::new(), chunk_tokens: 256 }
    }
}

/// The objective with the ids of its words.
pub struct LabelWords {
    settings: LabelWordsSettings,
    ids: Rc<Vec<u32>>,
}

impl Part for LabelWords {
    type Settings = LabelWordsSettings;

    fn new(settings: LabelWordsSettings) -> Result<Self> {
        if settings.chunk_tokens == 0 {
            return Err(BadSetting::new("chunk_tokens", "is 0; it must be at least 1").into());
        }
        Ok(LabelWords { settings, ids: Rc::default() })
    }
}

/// The one token that a word is.
fn token(word: &LabelWord, words: Option<&dyn Words>, facts: &ModelFacts) -> Result<u32> {
    let vocabulary = facts.vocab_size;
    let wrong = |why: String| Err(BadSetting::new("label_words", why).into());
    let text = match word {
        LabelWord::Id(id) if (*id as usize) < vocabulary => return Ok(*id),
        LabelWord::Id(id) => {
            let kind = &facts.model_type;
            return wrong(format!("holds {id}; the vocabulary of this `{kind}` has {vocabulary} tokens"));
        }
        LabelWord::Text(text) => text,
    };
    let Some(words) = words else {
        return wrong(format!("holds `{text}`, and the model has no tokenizer; give ids"));
    };
    // A text may begin with tokens of its own, such as BOS.
    let (start, all) = (words.encode("")?.len(), words.encode(text)?);
    match all.get(start..) {
        Some([id]) => Ok(*id),
        ids => wrong(format!(
            "holds `{text}`, which is {} tokens; each must be one (a space before it counts)",
            ids.map_or(0, <[u32]>::len)
        )),
    }
}

impl LabelWords {
    fn class(&self, label: i64) -> Result<i64> {
        match self.ids.iter().position(|id| i64::from(*id) == label) {
            Some(class) => Ok(class as i64),
            None => {
                let why = format!("does not name token {label}, which a row is to predict");
                Err(BadSetting::new("label_words", why).against("data").into())
            }
        }
    }
}

impl Objective for LabelWords {
    fn is_cross_entropy(&self) -> bool {
        true
    }

    fn accuracy(&self) -> Option<&'static str> {
        Some("accuracy")
    }

    fn predicts(&self) -> bool {
        true
    }

    fn attach(&mut self, cx: &mut ObjectiveAttach<'_>) -> Result<()> {
        let words = &self.settings.label_words;
        if words.len() < 2 {
            let why = format!(
                "has {} entries; it names at least 2 words, such as [\" no\", \" yes\"]",
                words.len()
            );
            return Err(BadSetting::new("label_words", why).into());
        }
        let mut ids = Vec::new();
        for word in words {
            let id = token(word, cx.words, cx.facts)?;
            if ids.contains(&id) {
                return Err(BadSetting::new("label_words", format!("names token {id} twice")).into());
            }
            ids.push(id);
        }
        self.ids = Rc::new(ids);
        Ok(())
    }

    fn loss(&self, cx: &ObjectiveContext<'_>) -> Result<Loss> {
        let pass = cx.forward()?;
        let Labelled { hidden, targets, .. } = pass.labelled(cx.labels)?;
        let classes = if hidden.array().is_shape_only() {
            vec![0; targets.len()]
        } else {
            targets.iter().map(|t| self.class(*t)).collect::<Result<Vec<i64>>>()?
        };
        let head = pass.head();
        drop(pass);
        let predictions = RefCell::new(Vec::with_capacity(classes.len()));
        let scale = cx.scale(0);
        let value = cx.tape.chunked(&hidden, self.settings.chunk_tokens, &|tape, part, range| {
            let logits = ops::swap_last(tape, &head.logits(tape, part)?)?;
            let words = ops::swap_last(tape, &ops::select_rows(tape, &logits, &self.ids)?)?;
            let wanted = &classes[range];
            if !words.array().is_shape_only() {
                let (z, k) = (words.array().to_f32()?, self.ids.len());
                let best = |row: &[f32]| (0..k).fold(0, |b, i| if row[i] > row[b] { i } else { b }) as i64;
                predictions.borrow_mut().extend(z.chunks(k).map(best).zip(wanted.iter().copied()));
            }
            ops::cross_entropy(tape, words, wanted, scale, ops::CrossEntropy::default())
        })?;
        let predictions = predictions.into_inner();
        let right = predictions.iter().filter(|(found, wanted)| found == wanted).count();
        let accuracy = Figure { name: "accuracy", sum: right as f64, count: predictions.len() as f64 };
        Ok(Loss { value, figures: vec![accuracy], predictions })
    }
}
