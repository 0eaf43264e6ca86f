//! Why a model could not be located.

use std::fmt;

use ramekin_core::{Unfit, UserError};

/// What kept a model from being located.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The source is not written as sources are.
    BadSource,
    /// There is no such folder, model or revision, or it has no weights that can be read.
    NotFound,
    /// The model wants a token, or its licence accepted.
    Gated,
    /// The network may not be touched and the cache does not have it.
    Offline,
    /// The hub could not be reached, or broke off.
    Network,
}

/// A model that could not be located. Its [`std::error::Error::source`] tells
/// why and one way out, and decides the exit code: 3 where the machine lacks
/// the network or the cached files, else 2.
#[derive(Debug)]
pub struct HubError {
    /// What kind of failure it is.
    pub kind: Kind,
    /// The source as the user wrote it.
    pub model: String,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    User(Box<UserError>),
    Machine(Unfit),
}

impl HubError {
    pub(crate) fn new(kind: Kind, model: &str, message: String, help: Option<String>) -> Self {
        let cause = if matches!(kind, Kind::Network | Kind::Offline) {
            let help = help.map(|h| format!("\n  help: {h}")).unwrap_or_default();
            Cause::Machine(Unfit(format!("{message}{help}")))
        } else {
            Cause::User(Box::new(UserError { message, at: None, help }))
        };
        HubError { kind, model: model.to_owned(), cause }
    }
}

impl fmt::Display for HubError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot get the model `{}`", self.model)
    }
}

impl std::error::Error for HubError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(match &self.cause {
            Cause::User(e) => &**e,
            Cause::Machine(e) => e,
        })
    }
}
