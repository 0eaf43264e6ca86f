//! The environment variables of the hub, read once.

use std::path::{Path, PathBuf};

/// What the environment says about the hub. By the rules of `huggingface_hub`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Env {
    /// The folder with `models--ORG--NAME`: `HF_HUB_CACHE`, else `HF_HOME/hub`.
    pub cache: PathBuf,
    /// `HF_TOKEN`, else the contents of `HF_TOKEN_PATH` or `HF_HOME/token`.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`): the network is not touched.
    pub offline: bool,
    /// `HF_ENDPOINT`, by default `https://huggingface.co`.
    pub endpoint: String,
}

impl Env {
    /// What this process' environment says.
    pub fn from_process() -> Env {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// What these variables say; an empty one counts as unset.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Env {
        let var = |name: &str| var(name).filter(|v| !v.trim().is_empty());
        let user = var("HOME").or_else(|| var("USERPROFILE")).map(PathBuf::from);
        let path = |text: String| match (text.strip_prefix("~/"), &user) {
            (Some(rest), Some(user)) => user.join(rest),
            _ => PathBuf::from(text),
        };
        let home = var("HF_HOME").map(path).unwrap_or_else(|| {
            let cache = var("XDG_CACHE_HOME").map(path);
            let cache = cache.unwrap_or_else(|| user.clone().unwrap_or_default().join(".cache"));
            cache.join("huggingface")
        });
        let cache = var("HF_HUB_CACHE")
            .or_else(|| var("HUGGINGFACE_HUB_CACHE"))
            .map_or_else(|| home.join("hub"), path);
        let token_file = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), path);
        let token = var("HF_TOKEN").or_else(|| read_token(&token_file));
        let truthy = |name| {
            var(name).is_some_and(|v| matches!(v.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Env {
            // The hub's library needs absolute paths for its links.
            cache: std::path::absolute(&cache).unwrap_or(cache),
            token: token.map(|t| t.trim().to_owned()),
            offline: truthy("HF_HUB_OFFLINE") || truthy("TRANSFORMERS_OFFLINE"),
            endpoint: endpoint.trim_end_matches('/').to_owned(),
        }
    }
}

fn read_token(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().filter(|t| !t.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)]) -> Env {
        Env::from_vars(|n| vars.iter().find(|(k, _)| *k == n).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn defaults_and_overrides() {
        let plain = env(&[("HOME", "/u")]);
        assert_eq!(plain.cache, Path::new("/u/.cache/huggingface/hub"));
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert!(!plain.offline && plain.token.is_none());

        let home = env(&[("HOME", "/u"), ("HF_HOME", "~/hf"), ("HF_HUB_OFFLINE", "true")]);
        assert_eq!(home.cache, Path::new("/u/hf/hub"));
        assert!(home.offline);
        let both = env(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c"), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(both.cache, Path::new("/c"));
        assert!(!both.offline);
        let mirror = env(&[("HF_ENDPOINT", "https://mirror.example/"), ("HF_TOKEN", " t \n")]);
        assert_eq!(mirror.endpoint, "https://mirror.example");
        assert_eq!(mirror.token.as_deref(), Some("t"));
        assert_eq!(env(&[("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
    }

    #[test]
    fn the_token_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "from-file\n").unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(env(&[("HF_HOME", home)]).token.as_deref(), Some("from-file"));
        let both = env(&[("HF_HOME", home), ("HF_TOKEN", "from-env")]);
        assert_eq!(both.token.as_deref(), Some("from-env"));
    }
}
