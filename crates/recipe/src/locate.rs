//! Finds the entry that an error of serde's is about.
//!
//! serde's errors name no place, and settings are decoded behind function
//! pointers that see plain JSON. But decoding goes through a table in order
//! and stops at the first mistake, so the shortest beginning of the table
//! that fails with the same words ends at the culprit; inside it, again.

use std::cell::Cell;

use serde_json::{Map, Value as Json};

/// A key that no table has, put behind the others to ask whether decoding gets that far.
const STRANGER: &str = "\u{0}";

/// A value whose entries keep their names when others are removed.
#[derive(Clone, Debug)]
pub enum Tree {
    /// A value without entries.
    Leaf(Json),
    /// A table.
    Table(Vec<(String, Tree)>),
    /// A list; names are the indices as written.
    List(Vec<(String, Tree)>),
}

impl Tree {
    /// The whole value.
    pub fn of(value: &Json) -> Tree {
        match value {
            Json::Object(table) => Tree::Table(table.iter().map(|(k, v)| (k.clone(), Tree::of(v))).collect()),
            Json::Array(list) => {
                Tree::List(list.iter().enumerate().map(|(i, v)| (i.to_string(), Tree::of(v))).collect())
            }
            leaf => Tree::Leaf(leaf.clone()),
        }
    }

    fn entries(&self) -> &[(String, Tree)] {
        match self {
            Tree::Leaf(_) => &[],
            Tree::Table(entries) | Tree::List(entries) => entries,
        }
    }

    /// The tree at a path.
    pub fn get(&self, path: &[String]) -> Option<&Tree> {
        path.iter()
            .try_fold(self, |tree, step| tree.entries().iter().find(|(name, _)| name == step).map(|(_, t)| t))
    }

    /// Takes the entry at a path out; the others keep their names.
    pub fn remove(&mut self, path: &[String]) -> bool {
        let (Some((step, rest)), Tree::Table(entries) | Tree::List(entries)) = (path.split_first(), self)
        else {
            return false;
        };
        let Some(at) = entries.iter().position(|(name, _)| name == step) else {
            return false;
        };
        if rest.is_empty() {
            entries.remove(at);
            return true;
        }
        entries[at].1.remove(rest)
    }

    /// The value without what was removed.
    pub fn to_json(&self) -> Json {
        self.cut(&[], usize::MAX, false)
    }

    /// The value up to entry `keep` of the table at `path`, everything behind left out.
    fn cut(&self, path: &[String], keep: usize, stranger: bool) -> Json {
        let next = path.split_first();
        let keep_here = match next {
            Some((step, _)) => {
                self.entries().iter().position(|(name, _)| name == step).map_or(usize::MAX, |at| at + 1)
            }
            None => keep,
        };
        let kept = self.entries().iter().take(keep_here).map(|(name, tree)| match next {
            Some((step, rest)) if name == step => (name, tree.cut(rest, keep, stranger)),
            _ => (name, tree.to_json()),
        });
        match self {
            Tree::Leaf(value) => value.clone(),
            Tree::List(_) => kept.map(|(_, value)| value).collect(),
            Tree::Table(_) => {
                let mut map: Map<String, Json> = kept.map(|(name, value)| (name.clone(), value)).collect();
                if stranger && path.is_empty() {
                    map.insert(STRANGER.into(), Json::Bool(true));
                }
                Json::Object(map)
            }
        }
    }

    /// How many values there are, as a measure of what one attempt costs.
    pub fn size(&self) -> usize {
        1 + self.entries().iter().map(|(_, tree)| tree.size()).sum::<usize>()
    }
}

/// The path of the entry that makes `fails` give this message; `work` counts values looked at.
///
/// `missing`: the message is about a key that is not there, and the path is that of the table that lacks it.
pub fn locate(
    tree: &Tree,
    message: &str,
    missing: bool,
    work: &Cell<usize>,
    fails: &dyn Fn(Json) -> Option<String>,
) -> Vec<String> {
    let mut path: Vec<String> = Vec::new();
    let size = tree.size();
    while let Some(here) = tree.get(&path) {
        let entries = here.entries();
        let same = |keep: usize| {
            work.set(work.get() + size);
            fails(tree.cut(&path, keep, missing)).is_some_and(|m| m == message)
        };
        if entries.is_empty() || same(0) || !same(entries.len()) {
            break;
        }
        // Smallest beginning that fails alike: `low` entries do not, `high` do.
        let (mut low, mut high) = (0, entries.len());
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if same(middle) { high = middle } else { low = middle }
        }
        path.push(entries[high - 1].0.clone());
    }
    path
}
