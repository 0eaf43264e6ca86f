//! From the text of a recipe's `source` to a folder.

use std::path::{Path, PathBuf};

use ramekin_core::suggest;

use crate::cache;
use crate::env::Env;
use crate::error::{HubError, Kind};
use crate::remote::{HuggingFace, Remote, RemoteError};

/// Where a model was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Located {
    /// A folder in Hugging Face layout.
    Folder {
        /// Its path.
        folder: PathBuf,
        /// What to call it in reports and in `base_model_name_or_path`: the
        /// source without its `hf:`, a folder as the user wrote it.
        label: String,
    },
    /// A model that the program carries.
    Builtin(
        /// Its name.
        String,
    ),
}

/// Locates a model by this process' environment, downloading with a progress
/// bar if standard error is a terminal. See [`Resolver::resolve`].
///
/// # Errors
/// [`HubError`].
pub fn resolve(source: &str, revision: Option<&str>, base_dir: &Path) -> Result<Located, HubError> {
    let env = Env::from_process();
    let progress = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let remote = HuggingFace::new(&env, progress);
    Resolver { env: &env, remote: &remote }.resolve(source, revision, base_dir)
}

/// Locates models by a given environment and hub.
pub struct Resolver<'a> {
    /// Cache, token, offline or not.
    pub env: &'a Env,
    /// Where files that the cache lacks come from.
    pub remote: &'a dyn Remote,
}

/// The files of a model that are of use, beside its weights.
const SMALL: &[&str] = &[
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
];

impl Resolver<'_> {
    /// Locates `source` (see the crate's table). A revision is a branch, tag or
    /// commit, given apart or behind `@`; by default `main`. A model that lies
    /// whole in the cache is taken from there without asking the hub.
    ///
    /// # Errors
    /// [`HubError`] of each [`Kind`].
    pub fn resolve(
        &self,
        source: &str,
        revision: Option<&str>,
        base_dir: &Path,
    ) -> Result<Located, HubError> {
        if let Some(name) = source.strip_prefix("builtin:") {
            return Ok(Located::Builtin(name.to_owned()));
        }
        let Some(id) = source.strip_prefix("hf:") else {
            return folder(source, base_dir);
        };
        let bad = |what: String| {
            let help = "a model of the hub is written `hf:ORG/NAME` or `hf:ORG/NAME@REVISION`";
            HubError::new(Kind::BadSource, source, what, Some(help.into()))
        };
        let (repo, at) = match id.split_once('@') {
            Some((repo, at)) => (repo, Some(at)),
            None => (id, None),
        };
        if let (Some(at), Some(given)) = (at, revision)
            && at != given
        {
            return Err(bad(format!("it names revision `{at}` and the setting names `{given}`")));
        }
        let revision = at.or(revision).unwrap_or("main");
        if !is_repo(repo) {
            return Err(bad(format!("`{repo}` is no name of a model")));
        }
        if !is_revision(revision) {
            return Err(bad(format!("`{revision}` is no name of a revision")));
        }
        let label = if revision == "main" { repo.into() } else { format!("{repo}@{revision}") };
        let cached = cache::snapshot(&self.env.cache, repo, revision);
        let lacking = cached.as_deref().map(cache::lacking);
        if let (Some(folder), Some([])) = (&cached, lacking.as_deref()) {
            return Ok(Located::Folder { folder: folder.clone(), label });
        }
        if self.env.offline {
            return Err(self.offline(source, repo, revision, lacking));
        }
        let folder = self.fetch(source, repo, revision)?;
        Ok(Located::Folder { folder, label })
    }

    fn fetch(&self, source: &str, repo: &str, revision: &str) -> Result<PathBuf, HubError> {
        let failed = |e: RemoteError| self.remote_error(source, repo, revision, &e);
        let listing = self.remote.list(repo, revision).map_err(failed)?;
        let wanted = choose(&listing.files);
        if !wanted.iter().any(|f| f.ends_with(".safetensors")) {
            let what = "it has no `.safetensors` weights".to_owned();
            let help = "choose a model or revision that has them, or convert it".to_owned();
            return Err(HubError::new(Kind::NotFound, source, what, Some(help)));
        }
        let have = |f: &str| {
            cache::snapshot(&self.env.cache, repo, &listing.commit).is_some_and(|s| s.join(f).is_file())
        };
        for file in wanted {
            if !have(file) {
                self.remote.fetch(repo, revision, file).map_err(failed)?;
            }
        }
        // By name first: a branch that moved meanwhile left its files under the new commit.
        let folder = cache::snapshot(&self.env.cache, repo, revision)
            .or_else(|| cache::snapshot(&self.env.cache, repo, &listing.commit));
        let lacking = folder.as_deref().map_or(vec!["everything".into()], cache::lacking);
        match folder {
            Some(folder) if lacking.is_empty() => Ok(folder),
            _ => {
                let what = format!("after the download its snapshot lacks {}", quote(&lacking));
                let help = Some("run it again: the model may have changed meanwhile".to_owned());
                Err(HubError::new(Kind::Network, source, what, help))
            }
        }
    }

    fn offline(&self, source: &str, repo: &str, revision: &str, lacking: Option<Vec<String>>) -> HubError {
        let cache_dir = self.env.cache.display();
        let what = match lacking {
            Some(files) => {
                format!("`HF_HUB_OFFLINE` is set and its snapshot in `{cache_dir}` lacks {}", quote(&files))
            }
            None => {
                format!("`HF_HUB_OFFLINE` is set and `{cache_dir}` has no `{repo}` at revision `{revision}`")
            }
        };
        let models = cache::models(&self.env.cache);
        let help = if models.is_empty() {
            "nothing is cached there: unset `HF_HUB_OFFLINE`, or set `HF_HOME`".to_owned()
        } else {
            let shown: Vec<String> = models.iter().take(12).cloned().collect();
            let more = models.len() - shown.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let near = suggest(repo, models.iter().map(String::as_str))
                .filter(|n| *n != repo)
                .map(|n| format!("did you mean `hf:{n}`? "))
                .unwrap_or_default();
            format!("{near}cached are {}{more}; or unset `HF_HUB_OFFLINE`", quote(&shown))
        };
        HubError::new(Kind::Offline, source, what, Some(help))
    }

    fn remote_error(&self, source: &str, repo: &str, rev: &str, error: &RemoteError) -> HubError {
        let endpoint = &self.env.endpoint;
        let page = format!("{endpoint}/{repo}");
        let (kind, what, help) = match error {
            RemoteError::NotFound => (
                Kind::NotFound,
                format!("the hub has no `{repo}` at revision `{rev}`"),
                format!("look it up at {page}"),
            ),
            RemoteError::Unauthorized if self.env.token.is_none() => (
                Kind::Gated,
                format!("the hub has no public `{repo}`: the name is wrong, or it wants a token"),
                format!("check {page}; for a private or gated model set `HF_TOKEN`"),
            ),
            RemoteError::Unauthorized => (
                Kind::Gated,
                format!("the hub does not show `{repo}` to the owner of the token in use"),
                format!("check the name at {page}, and `HF_TOKEN`"),
            ),
            RemoteError::Forbidden => (
                Kind::Gated,
                "its licence has to be accepted first".to_owned(),
                format!("accept it at {page}, and set `HF_TOKEN` to a token of that account"),
            ),
            RemoteError::Network(why) => (
                Kind::Network,
                format!("{endpoint} cannot be reached: {why}"),
                "give a folder as the source, or set `HF_ENDPOINT` to a mirror".to_owned(),
            ),
        };
        HubError::new(kind, source, what, Some(help))
    }
}

/// Of a model's files those to fetch: settings, tokenizer, template, and its
/// safetensors at the top (`model*` where there are such, else all).
fn choose(files: &[String]) -> Vec<&str> {
    let weights = |f: &str| f.ends_with(".safetensors") || f.ends_with(".safetensors.index.json");
    let top: Vec<&str> = files
        .iter()
        .map(String::as_str)
        .filter(|f| !f.contains(['/', '\\']) && !f.starts_with('.'))
        .collect();
    let standard = top.iter().any(|f| weights(f) && f.starts_with("model"));
    let whole = top.contains(&"model.safetensors");
    let mut wanted: Vec<&str> = top
        .into_iter()
        .filter(|f| match (weights(f), whole) {
            (false, _) => SMALL.contains(f),
            (true, true) => *f == "model.safetensors",
            (true, false) => !standard || f.starts_with("model"),
        })
        .collect();
    // Small ones first, so that a wrong architecture is seen before gigabytes arrive.
    wanted.sort_by_key(|f| f.ends_with(".safetensors"));
    wanted
}

fn is_repo(repo: &str) -> bool {
    let part = |p: &str| {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        !p.is_empty() && !p.starts_with('.') && p.len() <= 96 && p.bytes().all(good)
    };
    let parts: Vec<&str> = repo.split('/').collect();
    parts.len() <= 2 && parts.iter().all(|p| part(p))
}

fn is_revision(revision: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
    let steps = revision.split('/').all(|p| !p.is_empty() && p != "." && p != "..");
    steps && revision.bytes().all(good)
}

fn quote(names: &[String]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

fn folder(source: &str, base_dir: &Path) -> Result<Located, HubError> {
    let folder = base_dir.join(source);
    if folder.is_dir() {
        return Ok(Located::Folder { folder, label: source.to_owned() });
    }
    let shown = folder.display();
    if folder.exists() {
        let what = format!("`{shown}` is a file");
        let help = "name the folder with `config.json` and the weights".to_owned();
        return Err(HubError::new(Kind::BadSource, source, what, Some(help)));
    }
    let entries = folder.parent().and_then(|p| p.read_dir().ok()).into_iter().flatten().flatten();
    let names: Vec<String> =
        entries.filter(|e| e.path().is_dir()).filter_map(|e| e.file_name().into_string().ok()).collect();
    let name = folder.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let near = suggest(name, names.iter().map(String::as_str));
    let help = match near {
        Some(near) => format!("did you mean `{}`?", Path::new(source).with_file_name(near).display()),
        None if is_repo(source) && source.contains('/') => {
            format!("a model of the hub is written `hf:{source}`")
        }
        None => "paths are relative to the recipe".to_owned(),
    };
    Err(HubError::new(Kind::NotFound, source, format!("there is no folder `{shown}`"), Some(help)))
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
