//! Rows with two answers, and rows with a label.

use anyhow::Result;
use ramekin_core::{UserError, suggest};
use serde_json::Value as Json;

use crate::formats::{Fields, Sample};
use crate::source::kind_of;

/// A better and a worse answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The prompt with the better answer: [`Sample::PromptCompletion`] or [`Sample::ChatCompletion`].
    pub chosen: Box<Sample>,
    /// The prompt with the worse answer.
    pub rejected: Box<Sample>,
    /// By how much it is better.
    pub margin: Option<f32>,
}

/// `chosen` and `rejected`, with `prompt` or with what both begin with.
pub(crate) fn preference(row: &Fields<'_>) -> Result<Sample> {
    let (chosen, rejected) = (row.need("chosen")?, row.need("rejected")?);
    let margin = row.find("margin")?.map(|m| number(row, "margin", &m)).transpose()?;
    let prompt = row.find("prompt")?;
    let (chosen, rejected) = match (&chosen, &rejected) {
        (Json::Array(c), Json::Array(r)) => {
            let chosen = row.check_messages("chosen", c.clone())?;
            let rejected = row.check_messages("rejected", r.clone())?;
            let tools = row.tools()?;
            let (prompt, chosen, rejected) = match prompt {
                Some(Json::Array(p)) => (row.check_messages("prompt", p)?, chosen, rejected),
                Some(other) => {
                    let what = kind_of(&other);
                    let text =
                        format!("`prompt` is {what} and `chosen` a list; give `prompt` as messages too");
                    return Err(row.error(text).into());
                }
                None => {
                    let same = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
                    let same = same.min(chosen.len() - 1).min(rejected.len() - 1);
                    if same == 0 {
                        return Err(no_prompt(row).into());
                    }
                    (chosen[..same].to_vec(), chosen[same..].to_vec(), rejected[same..].to_vec())
                }
            };
            let go_on = |completion| Sample::ChatCompletion {
                prompt: prompt.clone(),
                completion,
                tools: tools.clone(),
            };
            (go_on(chosen), go_on(rejected))
        }
        (Json::Array(_), other) | (other, Json::Array(_)) => {
            let what = kind_of(other);
            let text =
                format!("one of `chosen` and `rejected` is a list and the other {what}; both are alike");
            return Err(row.error(text).into());
        }
        _ => {
            let (c, r) = (row.as_text("chosen", &chosen)?, row.as_text("rejected", &rejected)?);
            let prompt = match prompt {
                Some(prompt) => Some(row.as_text("prompt", &prompt)?),
                None => None,
            };
            let border = if prompt.is_some() { 0 } else { common(&c, &r) };
            if prompt.is_none() && border == 0 {
                return Err(no_prompt(row).into());
            }
            let prompt = prompt.unwrap_or_else(|| c[..border].to_owned());
            for (name, answer) in [("chosen", &c[border..]), ("rejected", &r[border..])] {
                if answer.trim().is_empty() {
                    return Err(row
                        .error(format!("`{name}` has no answer: nothing follows the prompt"))
                        .into());
                }
            }
            let go_on = |completion: &str| Sample::PromptCompletion {
                prompt: prompt.clone(),
                completion: completion.to_owned(),
            };
            (go_on(&c[border..]), go_on(&r[border..]))
        }
    };
    Ok(Sample::Pair(Pair { chosen: Box::new(chosen), rejected: Box::new(rejected), margin }))
}

fn no_prompt(row: &Fields<'_>) -> UserError {
    row.error("`chosen` and `rejected` do not begin alike, so there is no prompt that they answer")
        .help("give the prompt in a column of its own: `columns = { prompt = \"…\" }`")
}

/// Bytes of the start that both share, less a space before they part, which belongs to the answers.
fn common(a: &str, b: &str) -> usize {
    let mut at = a
        .char_indices()
        .zip(b.chars())
        .find(|((_, x), y)| x != y)
        .map_or(a.len().min(b.len()), |((i, _), _)| i);
    if a[..at].ends_with(' ') {
        at -= 1;
    }
    at
}

/// `text` and `label`.
pub(crate) fn classification(row: &Fields<'_>, names: &[String]) -> Result<Sample> {
    let text = row.text("text")?;
    let label = match row.need("label")? {
        Json::Array(items) => items.iter().map(|x| value(row, x, names)).collect::<Result<Vec<f32>>>()?,
        one => vec![value(row, &one, names)?],
    };
    if text.is_empty() {
        return Err(row.error("`text` is empty").into());
    }
    Ok(Sample::Labelled { text, label })
}

fn value(row: &Fields<'_>, label: &Json, names: &[String]) -> Result<f32> {
    if names.is_empty() {
        return number(row, "label", label);
    }
    let text = row.as_text("label", label)?;
    match names.iter().position(|n| *n == text) {
        Some(at) => Ok(at as f32),
        None => {
            let error = row.error(format!("`label` is `{text}`, which `label_names` does not list"));
            Err(match suggest(&text, names.iter().map(String::as_str)) {
                Some(near) => error.help(format!("did you mean `{near}`?")),
                None => error.help(format!(
                    "it lists {}",
                    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
                )),
            }
            .into())
        }
    }
}

fn number(row: &Fields<'_>, key: &str, value: &Json) -> Result<f32> {
    let found = match value {
        Json::Bool(b) => Some(f64::from(u8::from(*b))),
        Json::Number(n) => n.as_f64(),
        Json::String(s) => s.trim().parse().ok(),
        _ => None,
    };
    match found.filter(|x: &f64| x.is_finite()) {
        Some(x) => Ok(x as f32),
        None => {
            let text = value.as_str().map_or_else(|| kind_of(value).to_owned(), |s| format!("`{s}`"));
            let error = row.error(format!("`{key}` is {text}, not a number"));
            Err(error.help("names of classes go into `label_names`").into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_starts_leave_the_space_to_the_answers() {
        assert_eq!(common("Q: 1+1? 2", "Q: 1+1? 3"), 7);
        assert_eq!(common("é is a", "é is b"), 5);
        assert_eq!(common("a", "b"), 0);
        assert_eq!(common("same", "same more"), 4);
    }
}
