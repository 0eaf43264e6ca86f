//! The words that the small texts are made of.

/// Names with whether they are a girl's.
pub(super) const NAMES: [(&str, bool); 40] = [
    ("Anna", true),
    ("Ben", false),
    ("Clara", true),
    ("David", false),
    ("Emma", true),
    ("Felix", false),
    ("Grace", true),
    ("Henry", false),
    ("Iris", true),
    ("Jack", false),
    ("Kate", true),
    ("Leo", false),
    ("Lucy", true),
    ("Max", false),
    ("Mia", true),
    ("Noah", false),
    ("Olga", true),
    ("Paul", false),
    ("Rosa", true),
    ("Sam", false),
    ("Tina", true),
    ("Tom", false),
    ("Vera", true),
    ("Will", false),
    ("Zoe", true),
    ("Adam", false),
    ("Bella", true),
    ("Carl", false),
    ("Dora", true),
    ("Erik", false),
    ("Fay", true),
    ("Gus", false),
    ("Hanna", true),
    ("Ivan", false),
    ("June", true),
    ("Karl", false),
    ("Lily", true),
    ("Mark", false),
    ("Nina", true),
    ("Oscar", false),
];

/// Things that are counted: one, several.
pub(super) const THINGS: [(&str, &str); 36] = [
    ("apple", "apples"),
    ("ball", "balls"),
    ("balloon", "balloons"),
    ("basket", "baskets"),
    ("bead", "beads"),
    ("block", "blocks"),
    ("book", "books"),
    ("bottle", "bottles"),
    ("bowl", "bowls"),
    ("box", "boxes"),
    ("brush", "brushes"),
    ("button", "buttons"),
    ("candle", "candles"),
    ("card", "cards"),
    ("coin", "coins"),
    ("cup", "cups"),
    ("flag", "flags"),
    ("flower", "flowers"),
    ("hat", "hats"),
    ("kite", "kites"),
    ("lamp", "lamps"),
    ("marble", "marbles"),
    ("pebble", "pebbles"),
    ("pen", "pens"),
    ("pencil", "pencils"),
    ("ribbon", "ribbons"),
    ("ring", "rings"),
    ("scarf", "scarves"),
    ("shell", "shells"),
    ("shirt", "shirts"),
    ("sock", "socks"),
    ("spoon", "spoons"),
    ("stamp", "stamps"),
    ("sticker", "stickers"),
    ("stone", "stones"),
    ("toy", "toys"),
];

pub(super) const COLOURS: [&str; 10] =
    ["red", "blue", "green", "yellow", "white", "black", "brown", "pink", "orange", "purple"];

/// Animals with their sound and where they live.
pub(super) const ANIMALS: [(&str, &str, &str); 16] = [
    ("dog", "barks", "house"),
    ("cat", "purrs", "house"),
    ("cow", "moos", "farm"),
    ("horse", "neighs", "farm"),
    ("duck", "quacks", "pond"),
    ("frog", "croaks", "pond"),
    ("owl", "hoots", "forest"),
    ("fox", "yelps", "forest"),
    ("bear", "growls", "forest"),
    ("mouse", "squeaks", "barn"),
    ("hen", "clucks", "farm"),
    ("goat", "bleats", "hill"),
    ("bee", "buzzes", "garden"),
    ("bird", "sings", "tree"),
    ("lion", "roars", "plain"),
    ("snake", "hisses", "desert"),
];

/// Places with the word that goes before.
pub(super) const PLACES: [(&str, &str); 18] = [
    ("in", "garden"),
    ("in", "park"),
    ("in", "forest"),
    ("in", "kitchen"),
    ("in", "village"),
    ("in", "barn"),
    ("in", "yard"),
    ("in", "library"),
    ("at", "beach"),
    ("at", "market"),
    ("at", "school"),
    ("at", "farm"),
    ("at", "lake"),
    ("by", "river"),
    ("by", "pond"),
    ("on", "hill"),
    ("on", "bridge"),
    ("on", "playground"),
];

pub(super) const FOODS: [&str; 14] = [
    "bread", "soup", "cake", "cheese", "honey", "jam", "milk", "pie", "rice", "salad", "tea", "butter",
    "porridge", "corn",
];

/// Adjectives of things.
pub(super) const LOOKS: [&str; 16] = [
    "small", "big", "old", "new", "shiny", "round", "soft", "heavy", "pretty", "broken", "clean", "warm",
    "tiny", "long", "wooden", "strange",
];

/// Adjectives of people and animals.
pub(super) const MANNERS: [&str; 14] = [
    "kind", "brave", "shy", "quiet", "clever", "funny", "gentle", "curious", "careful", "patient",
    "friendly", "busy", "lazy", "proud",
];

pub(super) const GLAD: [&str; 7] = ["happy", "glad", "proud", "cheerful", "pleased", "excited", "thankful"];
pub(super) const SAD: [&str; 7] = ["sad", "worried", "afraid", "lonely", "tired", "upset", "angry"];

pub(super) const WEATHER: [&str; 9] =
    ["sunny", "rainy", "windy", "cloudy", "snowy", "warm", "cold", "foggy", "hot"];

pub(super) const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

pub(super) const FAMILY: [&str; 8] =
    ["mother", "father", "sister", "brother", "grandmother", "grandfather", "aunt", "uncle"];

pub(super) const JOBS: [(&str, &str); 10] = [
    ("baker", "bakes bread"),
    ("farmer", "grows corn"),
    ("teacher", "teaches children"),
    ("doctor", "helps the sick"),
    ("painter", "paints walls"),
    ("singer", "sings songs"),
    ("builder", "builds houses"),
    ("driver", "drives a bus"),
    ("cook", "makes soup"),
    ("tailor", "sews shirts"),
];

pub(super) const ROOMS: [(&str, [&str; 5]); 6] = [
    ("kitchen", ["pot", "pan", "spoon", "cup", "plate"]),
    ("bedroom", ["bed", "pillow", "blanket", "lamp", "clock"]),
    ("garden", ["tree", "flower", "bench", "gate", "path"]),
    ("school", ["desk", "book", "pencil", "board", "map"]),
    ("bag", ["key", "coin", "comb", "ticket", "letter"]),
    ("shed", ["hammer", "saw", "rope", "ladder", "bucket"]),
];

/// Numbers from zero in words.
pub(super) const NUMBERS: [&str; 21] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];

/// Words and what they are the opposite of.
pub(super) const OPPOSITES: [(&str, &str); 14] = [
    ("big", "small"),
    ("hot", "cold"),
    ("old", "new"),
    ("long", "short"),
    ("full", "empty"),
    ("fast", "slow"),
    ("high", "low"),
    ("light", "dark"),
    ("wet", "dry"),
    ("open", "closed"),
    ("early", "late"),
    ("happy", "sad"),
    ("strong", "weak"),
    ("near", "far"),
];

/// Things that everyone knows the colour of.
pub(super) const COLOUR_OF: [(&str, &str); 12] = [
    ("the sky", "blue"),
    ("grass", "green"),
    ("snow", "white"),
    ("the sun", "yellow"),
    ("coal", "black"),
    ("a tomato", "red"),
    ("a lemon", "yellow"),
    ("milk", "white"),
    ("a carrot", "orange"),
    ("a leaf", "green"),
    ("chocolate", "brown"),
    ("the night", "black"),
];
