//! From errors to words on standard error and an exit code.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use ramekin_recipe::Diagnostics;
use serde_json::json;

/// Why a command ended early.
pub enum Failure {
    /// Mistakes in the recipe.
    Recipe(Diagnostics),
    /// Everything else.
    Other(anyhow::Error),
}

impl From<Diagnostics> for Failure {
    fn from(d: Diagnostics) -> Self {
        Failure::Recipe(d)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(e: anyhow::Error) -> Self {
        Failure::Other(e)
    }
}

impl Failure {
    /// Says what happened and returns the code.
    pub fn report(self, json: bool) -> ExitCode {
        match self {
            Failure::Recipe(diagnostics) => {
                let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
                ramekin_core::say!("{}", diagnostics.render(colours).trim_end());
                if json {
                    print(&json!({ "errors": diagnostics.to_json() }));
                }
                ExitCode::from(2)
            }
            Failure::Other(error) => {
                let code = ramekin_core::exit_code(&error) as u8;
                let word = if code == 130 { "stopped" } else { "error" };
                let mut text = String::new();
                for (i, cause) in error.chain().enumerate() {
                    text.push_str(if i == 0 { "" } else { ": " });
                    text.push_str(&cause.to_string());
                }
                ramekin_core::say!("{word}: {text}");
                if json {
                    print(&json!({ "errors": [{ "message": text }] }));
                }
                ExitCode::from(code)
            }
        }
    }
}

/// Where standard output takes nothing, the exit code still tells.
fn print(json: &serde_json::Value) {
    let _ = writeln!(std::io::stdout(), "{json}");
}
