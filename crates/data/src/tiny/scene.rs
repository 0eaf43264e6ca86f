//! Who, what and where of one small text, and filling it into sentences.

use ramekin_core::Draws;

use super::words::{
    ANIMALS, COLOURS, FAMILY, FOODS, GLAD, LOOKS, MANNERS, NAMES, PLACES, SAD, THINGS, WEATHER,
};

/// One of a list.
pub(super) fn pick<T: Copy>(draws: &mut Draws, from: &[T]) -> T {
    from[draws.below(from.len())]
}

/// A number from `low` to `high`, both possible.
pub(super) fn number(draws: &mut Draws, low: usize, high: usize) -> usize {
    low + draws.below(high - low + 1)
}

/// Two different people.
pub(super) fn two_people(draws: &mut Draws) -> ((&'static str, bool), (&'static str, bool)) {
    let first = draws.below(NAMES.len());
    let second = (first + 1 + draws.below(NAMES.len() - 1)) % NAMES.len();
    (NAMES[first], NAMES[second])
}

/// "a" or "an" before a word.
pub(super) fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// What a story keeps the same from its first sentence to its last.
pub(super) struct Scene {
    hero: (&'static str, bool),
    friend: (&'static str, bool),
    thing: (&'static str, &'static str),
    colour: &'static str,
    look: &'static str,
    animal: (&'static str, &'static str, &'static str),
    place: (&'static str, &'static str),
    other_place: (&'static str, &'static str),
    food: &'static str,
    family: &'static str,
    manner: &'static str,
}

impl Scene {
    pub(super) fn new(draws: &mut Draws) -> Self {
        let (hero, friend) = two_people(draws);
        let place = draws.below(PLACES.len());
        let other = (place + 1 + draws.below(PLACES.len() - 1)) % PLACES.len();
        Scene {
            hero,
            friend,
            thing: pick(draws, &THINGS),
            colour: pick(draws, &COLOURS),
            look: pick(draws, &LOOKS),
            animal: pick(draws, &ANIMALS),
            place: PLACES[place],
            other_place: PLACES[other],
            food: pick(draws, &FOODS),
            family: pick(draws, &FAMILY),
            manner: pick(draws, &MANNERS),
        }
    }

    /// A sentence with its `{slots}` filled: the scene's own, or a fresh draw for `{glad}`, `{sad}`, `{weather}`, `{n}`.
    pub(super) fn fill(&self, template: &str, draws: &mut Draws) -> String {
        let mut out = String::with_capacity(template.len() + 16);
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            out.push_str(before);
            let Some((slot, after)) = after.split_once('}') else {
                break;
            };
            self.slot(slot, draws, &mut out);
            rest = after;
        }
        out.push_str(rest);
        out
    }

    fn slot(&self, slot: &str, draws: &mut Draws, out: &mut String) {
        let by = |girl: bool, hers: &'static str, his: &'static str| if girl { hers } else { his };
        let (girl, friend_girl) = (self.hero.1, self.friend.1);
        let word = match slot {
            "A" => self.hero.0,
            "B" => self.friend.0,
            "he" => by(girl, "she", "he"),
            "He" => by(girl, "She", "He"),
            "his" => by(girl, "her", "his"),
            "His" => by(girl, "Her", "His"),
            "him" => by(girl, "her", "him"),
            "bhe" => by(friend_girl, "she", "he"),
            "Bhe" => by(friend_girl, "She", "He"),
            "bhis" => by(friend_girl, "her", "his"),
            "bhim" => by(friend_girl, "her", "him"),
            "child" => by(girl, "girl", "boy"),
            "thing" => self.thing.0,
            "things" => self.thing.1,
            "a thing" => {
                return out.push_str(&format!("{} {}", article(self.thing.0), self.thing.0));
            }
            "colour" => self.colour,
            "a colour" => {
                return out.push_str(&format!("{} {}", article(self.colour), self.colour));
            }
            "look" => self.look,
            "a look" => return out.push_str(&format!("{} {}", article(self.look), self.look)),
            "animal" => self.animal.0,
            "an animal" => {
                return out.push_str(&format!("{} {}", article(self.animal.0), self.animal.0));
            }
            "place" => self.place.1,
            "at place" => return out.push_str(&format!("{} the {}", self.place.0, self.place.1)),
            "other" => self.other_place.1,
            "at other" => {
                return out.push_str(&format!("{} the {}", self.other_place.0, self.other_place.1));
            }
            "food" => self.food,
            "family" => self.family,
            "manner" => self.manner,
            "a manner" => {
                return out.push_str(&format!("{} {}", article(self.manner), self.manner));
            }
            "glad" => pick(draws, &GLAD),
            "sad" => pick(draws, &SAD),
            "weather" => pick(draws, &WEATHER),
            "n" => return out.push_str(&number(draws, 2, 9).to_string()),
            other => other,
        };
        out.push_str(word);
    }
}
