//! The hub itself, behind a trait so that tests need no network.

use std::fmt;

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use crate::env::Env;

/// What a hub answers about a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The commit that the revision stands for.
    pub commit: String,
    /// Its files, as paths with `/`.
    pub files: Vec<String>,
}

/// Why a hub did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteError {
    /// 404: no such model, revision or file.
    NotFound,
    /// 401: no token, a wrong one, or (the hub says the same) no such model.
    Unauthorized,
    /// 403: the token's owner has not been let in.
    Forbidden,
    /// No connection, or one that broke; any other status.
    Network(String),
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemoteError::NotFound => f.write_str("not found (404)"),
            RemoteError::Unauthorized => f.write_str("not authorised (401)"),
            RemoteError::Forbidden => f.write_str("not allowed (403)"),
            RemoteError::Network(why) => f.write_str(why),
        }
    }
}

/// A hub of models.
pub trait Remote {
    /// The files of a model at a branch, tag or commit.
    ///
    /// # Errors
    /// [`RemoteError`].
    fn list(&self, repo: &str, revision: &str) -> Result<Listing, RemoteError>;

    /// Brings one file into the standard cache.
    ///
    /// # Errors
    /// [`RemoteError`].
    fn fetch(&self, repo: &str, revision: &str, file: &str) -> Result<(), RemoteError>;
}

/// The Hugging Face hub, or a mirror of it.
pub struct HuggingFace {
    env: Env,
    progress: bool,
}

impl HuggingFace {
    /// The hub that this environment names; `progress` draws a bar on stderr for each file.
    pub fn new(env: &Env, progress: bool) -> Self {
        HuggingFace { env: env.clone(), progress }
    }

    fn repo(&self, repo: &str, revision: &str) -> Result<ApiRepo, RemoteError> {
        let api = ApiBuilder::from_cache(Cache::new(self.env.cache.clone()))
            .with_endpoint(self.env.endpoint.clone())
            .with_token(self.env.token.clone())
            .with_progress(self.progress)
            .with_retries(3)
            .build()
            .map_err(kind)?;
        let name = repo.to_owned();
        Ok(api.repo(Repo::with_revision(name, RepoType::Model, revision.to_owned())))
    }
}

impl Remote for HuggingFace {
    fn list(&self, repo: &str, revision: &str) -> Result<Listing, RemoteError> {
        let info = self.repo(repo, revision)?.info().map_err(kind)?;
        let files = info.siblings.into_iter().map(|s| s.rfilename).collect();
        Ok(Listing { commit: info.sha, files })
    }

    fn fetch(&self, repo: &str, revision: &str, file: &str) -> Result<(), RemoteError> {
        self.repo(repo, revision)?.download(file).map(|_| ()).map_err(kind)
    }
}

fn kind(error: ApiError) -> RemoteError {
    match &error {
        ApiError::TooManyRetries(last) => RemoteError::Network(last.to_string()),
        ApiError::RequestError(e) => match **e {
            ureq::Error::StatusCode(404) => RemoteError::NotFound,
            ureq::Error::StatusCode(401) => RemoteError::Unauthorized,
            ureq::Error::StatusCode(403) => RemoteError::Forbidden,
            ureq::Error::StatusCode(code) => RemoteError::Network(format!("HTTP status {code}")),
            _ => RemoteError::Network(e.to_string()),
        },
        _ => RemoteError::Network(error.to_string()),
    }
}
