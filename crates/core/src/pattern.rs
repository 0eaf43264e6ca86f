//! Which modules a part acts on, by PEFT's rules.
//!
//! A list entry matches a module path that equals it or ends in `.entry`; a
//! string is a regular expression for the whole path; `all-linear` is every
//! linear but the output head. `layers_to_transform` keeps some layers of a
//! list, `exclude_modules` takes modules out again.

use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{BadSetting, suggest};

/// The value of `target_modules` or `exclude_modules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Modules {
    /// Names or path endings.
    List(Vec<String>),
    /// `all-linear`, or a regular expression for whole paths.
    Pattern(String),
}

impl Modules {
    /// The value that stands for every linear but the head.
    pub const ALL_LINEAR: &'static str = "all-linear";
}

/// A module that could be a target.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Module path as in Hugging Face: `model.layers.0.self_attn.q_proj`.
    pub path: &'a str,
    /// Whether this is the output head, which `all-linear` leaves out.
    pub is_head: bool,
}

/// A selection of modules, ready to be asked.
#[derive(Debug)]
pub struct Selector {
    setting: &'static str,
    include: Matcher,
    exclude: Option<Matcher>,
    layers: Option<Vec<usize>>,
    layers_pattern: Vec<Regex>,
}

#[derive(Debug)]
enum Matcher {
    AllLinear,
    List(Vec<String>),
    Whole(Regex),
}

impl Matcher {
    fn new(setting: &str, modules: &Modules) -> Result<Self, BadSetting> {
        match modules {
            Modules::Pattern(p) if p.eq_ignore_ascii_case(Modules::ALL_LINEAR) => Ok(Self::AllLinear),
            Modules::Pattern(p) => Regex::new(&format!("^(?:{p})$")).map(Self::Whole).map_err(|e| {
                BadSetting::new(setting, format!("is no regular expression: {}", last_line(&e)))
            }),
            Modules::List(list) if list.is_empty() => Err(BadSetting::new(
                setting,
                "is an empty list; name at least one module or use \"all-linear\"",
            )),
            Modules::List(list) => Ok(Self::List(list.clone())),
        }
    }

    fn matches(&self, c: &Candidate<'_>) -> bool {
        match self {
            Self::AllLinear => !c.is_head,
            Self::List(list) => list.iter().any(|entry| ends_in(c.path, entry)),
            Self::Whole(regex) => regex.is_match(c.path),
        }
    }
}

fn last_line(e: &regex::Error) -> String {
    e.to_string().lines().last().unwrap_or_default().trim().to_owned()
}

/// Whether a module path is `name` or ends in `.name`.
pub fn ends_in(path: &str, name: &str) -> bool {
    path == name || path.strip_suffix(name).is_some_and(|head| head.ends_with('.'))
}

/// The number of the layer that a module path belongs to: the last all-digit
/// component that another component precedes and follows.
pub fn layer_of(path: &str) -> Option<usize> {
    let parts: Vec<&str> = path.split('.').collect();
    (1..parts.len().saturating_sub(1)).rev().find_map(|i| parts[i].parse().ok())
}

impl Selector {
    /// Builds a selection; `setting` is how errors call the list of targets.
    pub fn new(
        setting: &'static str,
        include: &Modules,
        exclude: Option<&Modules>,
        layers: Option<&[usize]>,
        layers_pattern: &[String],
    ) -> Result<Self, BadSetting> {
        let include = Matcher::new(setting, include)?;
        if layers.is_some() && !matches!(include, Matcher::List(_)) {
            return Err(BadSetting::new(
                "layers_to_transform",
                format!("needs `{setting}` to be a list of names, not a pattern"),
            ));
        }
        let layers_pattern = layers_pattern
            .iter()
            .map(|p| {
                Regex::new(&format!(r".*\.{p}\.(\d+)\.")).map_err(|e| {
                    BadSetting::new("layers_pattern", format!("is no regular expression: {}", last_line(&e)))
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Selector {
            setting,
            include,
            exclude: exclude.map(|m| Matcher::new("exclude_modules", m)).transpose()?,
            layers: layers.map(<[usize]>::to_vec),
            layers_pattern,
        })
    }

    /// Whether the module is selected.
    pub fn matches(&self, c: &Candidate<'_>) -> bool {
        if self.exclude.as_ref().is_some_and(|e| e.matches(c)) || !self.include.matches(c) {
            return false;
        }
        let Some(layers) = &self.layers else { return true };
        let layer = if self.layers_pattern.is_empty() {
            layer_of(c.path)
        } else {
            self.layers_pattern.iter().find_map(|p| p.captures(c.path).and_then(|m| m[1].parse().ok()))
        };
        layer.is_some_and(|l| layers.contains(&l))
    }

    /// The selected modules in order; every list entry must select something.
    ///
    /// # Errors
    /// If nothing matches, or one list entry matches no module at all, with
    /// the nearest name that exists.
    pub fn select<'a>(&self, candidates: &[Candidate<'a>]) -> Result<Vec<&'a str>, BadSetting> {
        if let Matcher::List(list) = &self.include {
            for entry in list {
                if !candidates.iter().any(|c| ends_in(c.path, entry)) {
                    return Err(self.no_match(entry, candidates));
                }
            }
        }
        let found: Vec<&str> = candidates.iter().filter(|c| self.matches(c)).map(|c| c.path).collect();
        if found.is_empty() {
            let why = match (&self.include, &self.layers) {
                (_, Some(layers)) => format!("matches no module within layers {layers:?}"),
                (Matcher::Whole(r), None) => {
                    let pattern = r.as_str();
                    return Err(self.no_match(&pattern[4..pattern.len() - 2], candidates));
                }
                _ => "matches no module that `exclude_modules` leaves".to_owned(),
            };
            return Err(BadSetting::new(self.setting, why));
        }
        Ok(found)
    }

    fn no_match(&self, entry: &str, candidates: &[Candidate<'_>]) -> BadSetting {
        let mut names: Vec<&str> =
            candidates.iter().map(|c| c.path.rsplit('.').next().unwrap_or(c.path)).collect();
        names.sort_unstable();
        names.dedup();
        let hint = match suggest(entry, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("this model has {}", names.join(", ")),
        };
        BadSetting::new(self.setting, format!("names `{entry}`, which matches no module; {hint}"))
    }
}

/// The value that `rank_pattern` or `alpha_pattern` gives a module: the first
/// key that matches the whole path or its ending after a dot.
pub fn pattern_value<'a, V>(
    pattern: impl IntoIterator<Item = (&'a String, &'a V)>,
    path: &str,
) -> Option<&'a V>
where
    V: 'a,
{
    pattern.into_iter().find_map(|(key, value)| {
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{key})$")).ok()?;
        regex.is_match(path).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [&str; 5] = [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.12.self_attn.q_proj",
        "model.layers.12.mlp.down_proj",
        "lm_head",
    ];

    fn candidates() -> Vec<Candidate<'static>> {
        PATHS.iter().map(|p| Candidate { path: p, is_head: *p == "lm_head" }).collect()
    }

    fn list(names: &[&str]) -> Modules {
        Modules::List(names.iter().map(|s| (*s).to_owned()).collect())
    }

    #[test]
    fn suffix_regex_and_all_linear() {
        let pick =
            |m: &Modules| Selector::new("target_modules", m, None, None, &[]).unwrap().select(&candidates());
        assert_eq!(pick(&list(&["q_proj"])).unwrap(), [PATHS[0], PATHS[2]]);
        assert_eq!(pick(&list(&["lm_head"])).unwrap(), ["lm_head"]);
        assert_eq!(pick(&Modules::Pattern("all-linear".into())).unwrap(), PATHS[..4]);
        assert_eq!(pick(&Modules::Pattern(r".*\.0\..*".into())).unwrap(), PATHS[..2]);
        assert!(pick(&Modules::Pattern("q_proj".into())).is_err(), "a string matches whole paths");
        let e = pick(&list(&["q_proj", "q_porj"])).unwrap_err();
        assert_eq!(e.message, "names `q_porj`, which matches no module; did you mean `q_proj`?");
    }

    #[test]
    fn layers_and_exclusion() {
        let s = Selector::new(
            "target_modules",
            &list(&["q_proj", "down_proj"]),
            Some(&list(&["down_proj"])),
            Some(&[12]),
            &[],
        );
        assert_eq!(s.unwrap().select(&candidates()).unwrap(), [PATHS[2]]);
        assert!(
            Selector::new("target_modules", &Modules::Pattern("all-linear".into()), None, Some(&[0]), &[])
                .is_err()
        );
        assert_eq!(layer_of(PATHS[3]), Some(12));
        assert_eq!(layer_of("lm_head"), None);
    }

    #[test]
    fn patterns_give_values() {
        let map = std::collections::BTreeMap::from([
            ("down_proj".to_owned(), 5),
            (r"layers\.12\..*".to_owned(), 7),
        ]);
        assert_eq!(pattern_value(&map, PATHS[1]), Some(&5));
        assert_eq!(pattern_value(&map, PATHS[2]), Some(&7));
        assert_eq!(pattern_value(&map, PATHS[0]), None);
    }
}
