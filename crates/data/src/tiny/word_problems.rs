//! Word problems with small numbers and answers in sentences.

use ramekin_core::Draws;

use super::scene::{number, pick, two_people};
use super::words::{COLOURS, NUMBERS, PLACES, THINGS};

/// Someone gives some of what they have to someone else.
pub(super) struct Gift {
    pub giver: &'static str,
    pub taker: &'static str,
    pub colour: &'static str,
    pub thing: (&'static str, &'static str),
    pub had: usize,
    pub gave: usize,
}

impl Gift {
    pub(super) fn new(draws: &mut Draws) -> Self {
        let ((giver, _), (taker, _)) = two_people(draws);
        let had = number(draws, 2, 12);
        let gave = number(draws, 1, had - 1);
        Gift { giver, taker, colour: pick(draws, &COLOURS), thing: pick(draws, &THINGS), had, gave }
    }

    pub(super) fn left(&self) -> usize {
        self.had - self.gave
    }

    /// What happened, in one of several ways.
    pub(super) fn sentence(&self, way: usize) -> String {
        let Gift { giver, taker, colour, had, gave, .. } = self;
        let things = self.thing.1;
        match way % 4 {
            0 => format!("{giver} has {had} {colour} {things} and gives {gave} to {taker}."),
            1 => format!("{giver} had {had} {colour} {things}. Then {taker} got {gave} of them."),
            2 => format!("{giver} gives {taker} {gave} of {had} {colour} {things}."),
            _ => format!("Of {had} {colour} {things}, {giver} gives {gave} to {taker}."),
        }
    }

    /// `n` of the things, in the right number.
    fn count(&self, n: usize) -> String {
        format!("{n} {} {}", self.colour, if n == 1 { self.thing.0 } else { self.thing.1 })
    }
}

fn count(n: usize, thing: (&str, &str)) -> String {
    format!("{n} {}", if n == 1 { thing.0 } else { thing.1 })
}

/// One problem with its answer.
pub(super) fn problem(draws: &mut Draws) -> String {
    // Mostly gifts: what is told must be told again rightly, which is what a model learns last.
    match draws.below(16) {
        0..=7 => giving(draws),
        8 => adding(draws),
        9 => comparing(draws),
        10 => sharing(draws),
        11 => groups(draws),
        12 => counting(draws),
        13 => sums(draws),
        14 => finding(draws),
        _ => buying(draws),
    }
}

fn giving(draws: &mut Draws) -> String {
    let gift = Gift::new(draws);
    let told = gift.sentence(draws.below(4));
    let (had, gave, left) = (gift.had, gift.gave, gift.left());
    let (giver, taker, things) = (gift.giver, gift.taker, gift.thing.1);
    match draws.below(6) {
        0 => format!(
            "{told} How many {things} are left? {had} - {gave} = {left}, so {giver} has {} left.",
            gift.count(left)
        ),
        1 => format!("{told} Now {giver} has {} and {taker} has {gave}.", gift.count(left)),
        2 => format!(
            "{told} The giver is {giver}. The taker is {taker}. The things are {} {things}. There are {left} left.",
            gift.colour
        ),
        3 => format!("{told} Who has the {}? {taker} has {gave} and {giver} has {left}.", gift.colour),
        4 => format!(
            "{told} What does {giver} give? {giver} gives {}. What is left? {left} of {had}.",
            gift.count(gave)
        ),
        _ => format!(
            "{told} What colour are the {things}? The {things} are {}. {giver} keeps {left}.",
            gift.colour
        ),
    }
}

fn adding(draws: &mut Draws) -> String {
    let ((a, girl), (b, _)) = two_people(draws);
    let thing = pick(draws, &THINGS);
    let (n, m) = (number(draws, 1, 9), number(draws, 1, 9));
    let he = if girl { "she" } else { "he" };
    match draws.below(3) {
        0 => format!(
            "{a} has {} and {b} has {m}. How many {} do they have together? {n} + {m} = {}. Together they have {}.",
            count(n, thing),
            thing.1,
            n + m,
            count(n + m, thing)
        ),
        1 => format!(
            "{a} had {}. Then {he} found {m} more. Now {he} has {n} + {m} = {}.",
            count(n, thing),
            count(n + m, thing)
        ),
        _ => format!(
            "{b} puts {} and {m} more into a box. The box holds {}.",
            count(n, thing),
            count(n + m, thing)
        ),
    }
}

fn comparing(draws: &mut Draws) -> String {
    let ((a, _), (b, _)) = two_people(draws);
    let thing = pick(draws, &THINGS);
    let (n, m) = (number(draws, 1, 12), number(draws, 1, 12));
    let told = format!("{a} has {} and {b} has {m}.", count(n, thing));
    if n == m {
        return format!("{told} Who has more? Neither. Both have {}.", count(n, thing));
    }
    let (more, less, d) = if n > m { (a, b, n - m) } else { (b, a, m - n) };
    match draws.below(2) {
        0 => format!("{told} Who has more {}? {more} has {d} more than {less}.", thing.1),
        _ => format!("{told} {more} has more, and {less} has {d} fewer."),
    }
}

fn sharing(draws: &mut Draws) -> String {
    let ((a, _), (b, _)) = two_people(draws);
    let thing = pick(draws, &THINGS);
    let each = number(draws, 1, 6);
    match draws.below(2) {
        0 => format!(
            "{a} and {b} share {} equally. How many does each get? {} / 2 = {each}. Each gets {}.",
            count(2 * each, thing),
            2 * each,
            count(each, thing)
        ),
        _ => format!(
            "There are {} for 3 children. Each child gets {}.",
            count(3 * each, thing),
            count(each, thing)
        ),
    }
}

fn groups(draws: &mut Draws) -> String {
    let thing = pick(draws, &THINGS);
    let (boxes, each) = (number(draws, 2, 5), number(draws, 2, 5));
    format!(
        "There are {boxes} bags with {} in each. How many {} are there? {boxes} x {each} = {}.",
        count(each, thing),
        thing.1,
        boxes * each
    )
}

fn counting(draws: &mut Draws) -> String {
    let (first, length) = (number(draws, 1, 12), number(draws, 4, 8));
    match draws.below(4) {
        0 => {
            let all: Vec<String> = (first..first + length).map(|n| n.to_string()).collect();
            format!("Count from {first}: {}.", all.join(", "))
        }
        1 => {
            let all: Vec<&str> = (first..first + length).map(|n| NUMBERS[n.min(20)]).collect();
            format!("{} come one after the other.", all.join(", "))
        }
        2 => format!(
            "After {} comes {}. {} is the number {first}.",
            NUMBERS[first],
            NUMBERS[first + 1],
            NUMBERS[first]
        ),
        _ => {
            let all: Vec<String> = (1..=length).map(|n| (2 * n).to_string()).collect();
            format!("Count by twos: {}.", all.join(", "))
        }
    }
}

fn sums(draws: &mut Draws) -> String {
    let some: Vec<String> = (0..number(draws, 2, 5))
        .map(|_| {
            let (a, b) = (number(draws, 1, 10), number(draws, 1, 10));
            match draws.below(2) {
                0 => format!("{a} + {b} = {}", a + b),
                _ => format!("{} - {b} = {a}", a + b),
            }
        })
        .collect();
    some.join("; ")
}

fn finding(draws: &mut Draws) -> String {
    let ((a, girl), _) = two_people(draws);
    let thing = pick(draws, &THINGS);
    let place = pick(draws, &PLACES);
    let (n, lost) = (number(draws, 3, 12), number(draws, 1, 2));
    let he = if girl { "She" } else { "He" };
    format!(
        "{a} found {} {} the {}. {he} lost {lost} of them on the way home. How many are left? {n} - {lost} = {}.",
        count(n, thing),
        place.0,
        place.1,
        n - lost
    )
}

fn buying(draws: &mut Draws) -> String {
    let ((a, girl), _) = two_people(draws);
    let thing = pick(draws, &THINGS);
    let (price, more) = (number(draws, 1, 8), number(draws, 1, 6));
    let he = if girl { "she" } else { "he" };
    format!(
        "A {} costs {}. {a} has {}. How many coins does {he} have after buying it? {} - {price} = {more}.",
        thing.0,
        count(price, ("coin", "coins")),
        count(price + more, ("coin", "coins")),
        price + more
    )
}
