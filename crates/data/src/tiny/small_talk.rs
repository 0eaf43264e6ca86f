//! Lists, questions with answers, and plain facts.

use ramekin_core::Draws;

use super::scene::{article, number, pick, two_people};
use super::words::{
    ANIMALS, COLOUR_OF, COLOURS, DAYS, FOODS, JOBS, LOOKS, OPPOSITES, PLACES, ROOMS, THINGS, WEATHER,
};

/// A list in one of several forms.
pub(super) fn list(draws: &mut Draws) -> String {
    match draws.below(5) {
        0 => {
            let (room, mut things) = pick(draws, &ROOMS);
            draws.shuffle(&mut things);
            format!(
                "Things in the {room}: a {}, a {}, a {} and a {}.",
                things[0], things[1], things[2], things[3]
            )
        }
        1 => {
            let mut foods = FOODS;
            draws.shuffle(&mut foods);
            let items: Vec<String> = foods[..number(draws, 3, 5)]
                .iter()
                .enumerate()
                .map(|(i, f)| format!("{}. {f}", i + 1))
                .collect();
            format!("Shopping list:\n{}", items.join("\n"))
        }
        2 => {
            let mut colours = COLOURS;
            draws.shuffle(&mut colours);
            let n = number(draws, 3, 6);
            format!(
                "Colours: {}. The first item is {} and the last is {}.",
                colours[..n].join("; "),
                colours[0],
                colours[n - 1]
            )
        }
        3 => {
            let (thing, colour) = (pick(draws, &THINGS), pick(draws, &COLOURS));
            let (look, place) = (pick(draws, &LOOKS), pick(draws, &PLACES));
            let ((owner, _), _) = two_people(draws);
            format!("Name: {owner}; thing: {}; look: {look}; paint: {colour}; place: {}.", thing.0, place.1)
        }
        _ => {
            let today = draws.below(7);
            format!(
                "Today is {}. Yesterday was {}, and tomorrow is {}.",
                DAYS[today],
                DAYS[(today + 6) % 7],
                DAYS[(today + 1) % 7]
            )
        }
    }
}

/// One to three questions, each with its answer.
pub(super) fn questions(draws: &mut Draws) -> String {
    let all: Vec<String> = (0..number(draws, 1, 3)).map(|_| question(draws)).collect();
    all.join("\n")
}

fn question(draws: &mut Draws) -> String {
    match draws.below(7) {
        0 => {
            let (what, colour) = pick(draws, &COLOUR_OF);
            format!("Question: What colour is {what}? Answer: {} is {colour}.", upper(what))
        }
        1 => {
            let (animal, sound, _) = pick(draws, &ANIMALS);
            format!("Question: Which animal {sound}? Answer: The {animal} {sound}.")
        }
        2 => {
            let (animal, _, home) = pick(draws, &ANIMALS);
            format!("Question: Where does the {animal} live? Answer: The {animal} lives near the {home}.")
        }
        3 => {
            let (a, b) = pick(draws, &OPPOSITES);
            let (a, b) = if draws.below(2) == 0 { (a, b) } else { (b, a) };
            format!("Question: What is the opposite of {a}? Answer: The opposite of {a} is {b}.")
        }
        4 => {
            let (job, does) = pick(draws, &JOBS);
            format!("Question: What does a {job} do? Answer: A {job} {does}.")
        }
        5 => {
            let ((a, _), (b, _)) = two_people(draws);
            let ((thing, _), colour) = (pick(draws, &THINGS), pick(draws, &COLOURS));
            let asks_b = draws.below(2) == 0;
            let other = pick(draws, &COLOURS);
            let (who, answer) = if asks_b { (b, other) } else { (a, colour) };
            format!(
                "{a} has {} {colour} {thing} and {b} has {} {other} {thing}. What colour is the {thing} of {who}? It is {answer}.",
                article(colour),
                article(other)
            )
        }
        _ => {
            let ((a, _), (b, _)) = two_people(draws);
            let (here, there) = (pick(draws, &PLACES), pick(draws, &PLACES));
            let (weather, food) = (pick(draws, &WEATHER), pick(draws, &FOODS));
            format!(
                "It is {weather}. {a} is {} the {} and {b} is {} the {}, where {b} eats some {food}. \
                 Who eats? {b}. Where is {a}? {a} is {} the {}.",
                here.0, here.1, there.0, there.1, here.0, here.1
            )
        }
    }
}

fn upper(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}
