//! Small stories: a plot is a list of steps, a step a choice of sentences.

use ramekin_core::Draws;

use super::scene::{Scene, pick};

type Step = &'static [&'static str];

const OPENINGS: Step = &[
    "Once upon a time, there was {a manner} {child} called {A}.",
    "{A} was {a manner} {child} who lived near the {place}.",
    "There was once a {child} named {A}. {He} was very {manner}.",
    "One day, {A} went to the {place}.",
    "It was a {weather} day, and {A} was {at place}.",
    "One {weather} morning, {A} got up early and walked to the {place}.",
    "{A} and {B} were good friends. They often met {at place}.",
    "Long ago, a {child} called {A} lived with {his} {family}.",
];

const ENDINGS: Step = &[
    "From that day on, {A} and {B} were the best of friends.",
    "{A} was {glad} and went home with a smile.",
    "That night, {A} slept very well.",
    "{A} told {his} {family} all about it.",
    "It had been a good day.",
    "{B} laughed, and {A} laughed too.",
    "And {A} never forgot that day.",
    "\"Thank you,\" said {A}. \"You are a good friend.\"",
    "A good giver is a happy giver, {his} {family} always said.",
    "They all lived happily for a long time.",
    "The next day, {he} came back to the {place} and did it again.",
];

const LOST: &[Step] = &[
    &[
        "{A} had {a colour} {thing} that {he} loved.",
        "{A} had {a look} {thing}. It was {colour}.",
        "{His} {family} had given {him} {a colour} {thing}.",
    ],
    &[
        "But one day, the {thing} was gone.",
        "Then {he} could not find the {thing}.",
        "On the way home, {he} lost the {thing}.",
    ],
    &["{A} felt {sad}.", "{He} was so {sad} that {he} began to cry.", "\"Where is my {thing}?\" asked {A}."],
    &[
        "{He} looked {at place}, but it was not there.",
        "{He} looked under the bed and behind the door.",
        "{B} came and asked, \"What is wrong?\"",
        "{B} helped {him} to look for it.",
    ],
    &[
        "At last, {B} found the {thing} {at other}.",
        "Then {an animal} came with the {colour} {thing}.",
        "It was {at other}, under {a look} stone.",
        "\"Here it is!\" said {B}. \"It was {at other}.\"",
    ],
];

const SHARE: &[Step] = &[
    &[
        "{A} had {n} {colour} {things} in a box.",
        "{A} found {n} {things} {at place}.",
        "{His} {family} gave {A} some {food}.",
    ],
    &["{B} had none and looked {sad}.", "{B} sat alone and was {sad}.", "\"May I have one?\" asked {B}."],
    &[
        "At first, {A} did not want to share.",
        "{A} thought about it for a while.",
        "\"They are all mine,\" said {A}.",
    ],
    &[
        "Then {he} saw that {B} was {sad}.",
        "But then {he} remembered what {his} {family} had said.",
        "But being alone was no fun.",
    ],
    &[
        "So {A} gave some to {B}.",
        "\"Take half of it,\" said {A}.",
        "\"Let us share,\" said {A}. {B} was {glad}.",
    ],
    &[
        "Now both of them were {glad}.",
        "They played until the evening.",
        "The giver was as {glad} as the taker.",
    ],
];

const STORM: &[Step] = &[
    &[
        "The sky was dark, and the wind was strong.",
        "Suddenly it began to rain.",
        "A big storm came over the {place}.",
    ],
    &["{A} was {sad} and ran home.", "{A} and {B} hid under {a look} tree.", "{A} did not know where to go."],
    &[
        "There {he} heard {an animal}.",
        "{an animal} was there too, cold and wet.",
        "Then {he} saw a light {at other}.",
    ],
    &["\"Do not be afraid,\" said {A}.", "\"Come with me,\" said {B}.", "{A} held {his} {thing} and waited."],
    &["After a while, the rain stopped.", "Soon the storm was over.", "Then the sun came out again."],
    &[
        "They saw a rainbow over the {other}.",
        "Everything was wet and clean.",
        "The {animal} ran back to the {other}.",
    ],
];

const PET: &[Step] = &[
    &[
        "{He} saw {a look} {animal} {at place}.",
        "There was {an animal} {at place}.",
        "{A} heard a sound. It was {an animal}.",
    ],
    &[
        "The {animal} was hungry and {sad}.",
        "The {animal} had lost its way.",
        "The {animal} could not walk well.",
    ],
    &[
        "{A} gave it some {food}.",
        "\"Are you hungry?\" asked {A}. {He} had some {food}.",
        "{A} ran home and brought some {food} and water.",
    ],
    &[
        "The {animal} ate it all.",
        "The {animal} came closer and closer.",
        "Slowly, the {animal} began to trust {him}.",
    ],
    &[
        "{A} called it {B}.",
        "\"You can stay with me,\" said {A}.",
        "{His} {family} said, \"It can sleep in the barn.\"",
    ],
    &[
        "Every day, {A} and the {animal} played {at other}.",
        "The {animal} followed {him} to the {other}.",
        "Now the {animal} was not {sad} any more.",
    ],
];

const BAKE: &[Step] = &[
    &[
        "{A} wanted to make {food} for {his} {family}.",
        "It was the birthday of {B}, and {A} wanted to bake a cake.",
        "{A} and {B} were in the kitchen.",
    ],
    &[
        "{He} took a bowl, a spoon and {n} eggs.",
        "First {he} washed {his} hands.",
        "They needed milk, butter and {n} cups of flour.",
    ],
    &[
        "But there was no milk in the house.",
        "Then the bowl fell on the floor.",
        "The oven was hot, so {he} was careful.",
    ],
    &[
        "{B} went to the market to buy some.",
        "\"I can help you,\" said {B}.",
        "\"It does not matter,\" said {his} {family}. \"Try again.\"",
    ],
    &[
        "After an hour, it was ready.",
        "Soon the whole house smelled good.",
        "They waited and waited, and then it was done.",
    ],
    &[
        "Everyone had a piece and was {glad}.",
        "It was the best {food} of the year.",
        "{A} gave the first piece to {B}.",
    ],
];

const GARDEN: &[Step] = &[
    &[
        "{A} had a little garden.",
        "In spring, {A} put {n} seeds in the ground.",
        "{His} {family} gave {A} some seeds.",
    ],
    &[
        "Every day, {he} gave them water.",
        "{He} waited for many days.",
        "\"When will they grow?\" asked {A}.",
    ],
    &[
        "But nothing happened.",
        "\"You must be patient,\" said {B}.",
        "One night, {an animal} came into the garden.",
    ],
    &[
        "Then, one {weather} morning, there was a green leaf.",
        "Then it rained, and the seeds began to grow.",
        "At last, {he} saw {a colour} flower.",
    ],
    &[
        "Soon there were {n} {colour} flowers.",
        "The flowers were {colour} and smelled sweet.",
        "It grew and grew until it was as tall as {A}.",
    ],
    &["{A} gave the first flower to {B}.", "{B} had never seen such a garden.", "\"How pretty!\" said {B}."],
];

const RACE: &[Step] = &[
    &[
        "{A} and {B} wanted to know who was faster.",
        "On Sunday, there was a race {at place}.",
        "\"Let us run to the {other},\" said {B}.",
    ],
    &[
        "{B} was strong, but {A} was fast.",
        "\"I will win,\" said {B}.",
        "{A} was small, and {he} was afraid to lose.",
    ],
    &[
        "\"One, two, three, go!\" they shouted.",
        "They began to run as fast as they could.",
        "{B} ran in front, and {A} was behind.",
    ],
    &[
        "Then {B} fell and hurt {bhis} knee.",
        "Near the {other}, {B} had to stop.",
        "In the middle of the way, there was {an animal}.",
    ],
    &[
        "{A} stopped and helped {bhim} up.",
        "{A} could have won, but {he} went back.",
        "\"Are you all right?\" asked {A}.",
    ],
    &[
        "They came to the {other} together.",
        "So nobody won, and nobody lost.",
        "\"You are the real winner,\" said {B}.",
    ],
];

const BUILD: &[Step] = &[
    &[
        "{A} wanted to build a house for {an animal}.",
        "{A} and {B} made a boat from wood.",
        "They built a tower with {n} {colour} blocks.",
    ],
    &["{He} took wood, a hammer and a rope.", "First they made a plan on paper.", "It was hard work."],
    &[
        "The first one was too small.",
        "Then the wind blew it down.",
        "But {B} did not hold it well, and it broke.",
    ],
    &[
        "\"We must try again,\" said {A}.",
        "{A} was {sad}, but {he} did not stop.",
        "\"Let me help,\" said {his} {family}.",
    ],
    &["In the evening, it was done.", "The second one was better.", "At last, it was strong and {look}."],
    &["They painted it {colour}.", "Everyone {at place} came to see it.", "The {animal} liked it at once."],
];

const MARKET: &[Step] = &[
    &[
        "{A} went to the market with {n} coins.",
        "{His} {family} sent {A} to the market.",
        "On Saturday, {A} and {B} went to the market.",
    ],
    &[
        "{He} wanted to buy {a colour} {thing}.",
        "There were {things}, bread and honey.",
        "A farmer sold {food} and {things}.",
    ],
    &[
        "But the {thing} cost {n} coins.",
        "\"How much is it?\" asked {A}.",
        "{A} counted {his} coins again and again.",
    ],
    &[
        "{He} did not have enough.",
        "Then {he} saw that {B} was hungry.",
        "{B} had one more coin and gave it to {A}.",
    ],
    &[
        "So {he} bought some {food} instead.",
        "In the end, {he} bought the {thing}.",
        "The farmer smiled and gave {him} the {thing}.",
    ],
    &[
        "They ate the {food} on the way home.",
        "{A} carried it home in a basket.",
        "\"You chose well,\" said {his} {family}.",
    ],
];

const SICK: &[Step] = &[
    &[
        "{B} was ill and had to stay in bed.",
        "One day, {B} did not come to school.",
        "{A} heard that {B} was ill.",
    ],
    &[
        "{A} was {sad} and wanted to help.",
        "\"What can I do?\" thought {A}.",
        "{A} asked {his} {family} what to do.",
    ],
    &[
        "{He} made some {food} and put it in a basket.",
        "{He} took {his} {colour} {thing} and a book.",
        "{He} picked {n} flowers {at place}.",
    ],
    &[
        "Then {he} went to the house of {B}.",
        "The way was long, but {A} did not stop.",
        "{He} opened the door and went in quietly.",
    ],
    &["{B} was {glad} to see {him}.", "\"You came!\" said {B}.", "{A} read a story about {a look} {animal}."],
    &[
        "A week later, {B} was well again.",
        "Soon {B} felt much better.",
        "After that, {bhe} could eat and laugh again.",
    ],
];

const NIGHT: &[Step] = &[
    &[
        "It was late, and {A} could not sleep.",
        "The moon was bright over the {place}.",
        "At night, {A} heard a strange sound.",
    ],
    &[
        "{He} thought there was {a look} monster in the room.",
        "{He} sat up in {his} bed and listened.",
        "Something moved near the window.",
    ],
    &[
        "\"Who is there?\" asked {A}.",
        "{A} was afraid, but also {manner}.",
        "{He} took a lamp and went to look.",
    ],
    &["It was only {an animal}.", "It was only the wind.", "But it was {B}, who could not sleep either."],
    &[
        "They sat by the window and counted the stars.",
        "{His} {family} gave {him} a cup of warm milk.",
        "{A} laughed and went back to bed.",
    ],
];

const PLOTS: [&[Step]; 11] = [LOST, SHARE, STORM, PET, BAKE, GARDEN, RACE, BUILD, MARKET, SICK, NIGHT];

/// One story of five to eight sentences.
pub(super) fn story(draws: &mut Draws) -> String {
    let scene = Scene::new(draws);
    let plot = pick(draws, &PLOTS);
    let mut sentences = vec![pick(draws, OPENINGS)];
    // Now and then a step is left out, so that the order is not fixed.
    for step in plot {
        if draws.below(7) > 0 {
            sentences.push(pick(draws, step));
        }
    }
    sentences.push(pick(draws, ENDINGS));
    let filled: Vec<String> = sentences.iter().map(|s| capitalised(scene.fill(s, draws))).collect();
    filled.join(" ")
}

/// The sentence with a capital first letter, which a filled slot may lack.
fn capitalised(sentence: String) -> String {
    let mut chars = sentence.chars();
    match chars.next() {
        Some(first) if first.is_lowercase() => first.to_uppercase().chain(chars).collect(),
        _ => sentence,
    }
}
