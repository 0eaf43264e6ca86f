//! The quickstart's task: from a sentence about a gift to a record of it.
//!
//! The sentences are of the kind that [`super::text`] holds, the records are
//! of a form that it never holds, so a model trained on the text alone gets
//! none right, and one that has learned to copy needs little to learn it.

use ramekin_core::{Draws, Rng};

use super::word_problems::Gift;

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

/// Rows of the task, each a pure function of (seed, number); held-out rows
/// are about gifts that no training row of any seed is about.
pub fn records(seed: u64, rows: usize, held_out: bool) -> impl Iterator<Item = Task> {
    let rng = Rng::new(seed);
    (0..rows as u64).map(move |row| {
        let mut draws =
            Draws::new(rng.stream(if held_out { "tiny.records.dev" } else { "tiny.records" }, row));
        // One draw in five is held out, so this ends soon.
        let gift = std::iter::repeat_with(|| Gift::new(&mut draws)).find(|g| is_held_out(g) == held_out);
        let gift = gift.unwrap_or_else(|| Gift::new(&mut draws));
        task(&gift, draws.below(4))
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
