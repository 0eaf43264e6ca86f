//! The quickstart's task: from a sentence about a gift to a record of it.
//!
//! The sentences are of the kind that [`super::text`] holds, the records are
//! of a form that it never holds, so a model trained on the text alone gets
//! none right, and one that has learned to copy needs little to learn it.
//!
//! `counts` is a second task about the same gifts: how many of what are left.

use ramekin_core::{Draws, Rng};

use super::word_problems::Gift;
use super::words::COLOURS;

/// A prompt and the completion it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// A sentence and the word that asks for the record.
    pub prompt: String,
    /// The record.
    pub completion: String,
}

/// One gift in this many is held out.
const HELD_OUT: u64 = 5;

/// A sentence with a record that is right and one that is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preference {
    /// A sentence and the word that asks for the record.
    pub prompt: String,
    /// The record.
    pub chosen: String,
    /// A record in which giver and taker have changed places.
    pub rejected: String,
}

/// A sentence with what may be asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Colour {
    /// The sentence.
    pub text: String,
    /// Number of the things' colour, below 10.
    pub colour: usize,
    /// How many the giver has left.
    pub left: usize,
}

/// Rows of the task, each a pure function of (seed, number); held-out rows
/// are about gifts that no training row of any seed is about.
pub fn records(seed: u64, rows: usize, held_out: bool) -> impl Iterator<Item = Task> {
    gifts("tiny.records", seed, rows, held_out).map(|(gift, way)| task(&gift, way))
}

/// Rows of a second task about gifts, held out in the same way: from the sentence to what is left.
pub fn counts(seed: u64, rows: usize, held_out: bool) -> impl Iterator<Item = Task> {
    gifts("tiny.counts", seed, rows, held_out).map(|(gift, way)| Task {
        prompt: format!("{}\nLeft:", gift.sentence(way)),
        completion: format!(" {} {} {}", gift.left(), gift.colour, gift.thing.1),
    })
}

/// Pairs of answers to the same prompts, held out in the same way.
pub fn preferences(seed: u64, rows: usize, held_out: bool) -> impl Iterator<Item = Preference> {
    gifts("tiny.preferences", seed, rows, held_out).map(|(gift, way)| {
        let Task { prompt, completion: chosen } = task(&gift, way);
        let other = Gift { giver: gift.taker, taker: gift.giver, ..gift };
        Preference { prompt, chosen, rejected: task(&other, way).completion }
    })
}

/// Sentences with their things' colour and number, held out in the same way.
pub fn colours(seed: u64, rows: usize, held_out: bool) -> impl Iterator<Item = Colour> {
    gifts("tiny.colours", seed, rows, held_out).map(|(gift, way)| Colour {
        text: gift.sentence(way),
        colour: COLOURS.iter().position(|c| *c == gift.colour).unwrap_or(0),
        left: gift.left(),
    })
}

/// Gifts and ways to tell of them.
fn gifts(name: &str, seed: u64, rows: usize, held_out: bool) -> impl Iterator<Item = (Gift, usize)> {
    let rng = Rng::new(seed);
    let name = if held_out { format!("{name}.dev") } else { name.to_owned() };
    (0..rows as u64).map(move |row| {
        let mut draws = Draws::new(rng.stream(&name, row));
        // One draw in five is held out, so this ends soon.
        let gift = std::iter::repeat_with(|| Gift::new(&mut draws)).find(|g| is_held_out(g) == held_out);
        let gift = gift.unwrap_or_else(|| Gift::new(&mut draws));
        (gift, draws.below(4))
    })
}

fn task(gift: &Gift, way: usize) -> Task {
    Task {
        prompt: format!("{}\nRecord:", gift.sentence(way)),
        completion: format!(
            " giver: {}; taker: {}; item: {}; colour: {}; left: {}",
            gift.giver,
            gift.taker,
            gift.thing.1,
            gift.colour,
            gift.left()
        ),
    }
}

/// Which side of the split a gift is on, whatever the seed and the wording.
fn is_held_out(gift: &Gift) -> bool {
    let what =
        format!("{}/{}/{}/{}/{}/{}", gift.giver, gift.taker, gift.colour, gift.thing.0, gift.had, gift.gave);
    Rng::new(0).named("tiny.records.split", &what).u64_at(0).is_multiple_of(HELD_OUT)
}
