//! A Python package index: finds a file's address and fetches it.
//!
//! As pip does, the index is `PIP_INDEX_URL` where that is set, and a certificate bundle may be named by `PIP_CERT` or
//! `SSL_CERT_FILE`. A file that is not the pinned one is refused whatever the index says of it.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use thiserror::Error;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::wheels::Wheel;

/// Where packages come from if nothing else is said.
const PYPI: &str = "https://pypi.org/simple";

/// How often a broken transfer is begun again.
const TRIES: usize = 3;

/// Why a wheel could not be had.
#[derive(Debug, Error)]
pub enum IndexError {
    /// No answer: no network, no such host, a broken or slow connection.
    #[error("the package index {url} cannot be reached: {why}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What the connection said.
        why: String,
    },
    /// The index answers, but has no such file.
    #[error("the package index {url} does not have `{file}`; `PIP_INDEX_URL` names another index")]
    Missing {
        /// The package's page.
        url: String,
        /// The file looked for.
        file: String,
    },
    /// The index answers that it will not.
    #[error("the package index answers {url} with HTTP status {status}; `PIP_INDEX_URL` names another index")]
    Refused {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
    },
    /// The file is another one.
    #[error("`{file}` from {url} has the SHA-256 {got}, and {want} is the pinned one; it was not used")]
    Digest {
        /// The file looked for.
        file: String,
        /// Where it came from.
        url: String,
        /// Its digest.
        got: String,
        /// The pinned digest.
        want: String,
    },
    /// The disk, or a certificate bundle that cannot be read.
    #[error("{0}")]
    Local(String),
}

/// An index.
pub struct Index {
    agent: ureq::Agent,
    url: String,
}

impl Index {
    /// The index that the environment names.
    ///
    /// # Errors
    /// [`IndexError::Local`] for a certificate bundle that cannot be read.
    pub fn from_env() -> Result<Self, IndexError> {
        let set = |key: &str| env::var(key).ok().filter(|v| !v.is_empty());
        let url = set("PIP_INDEX_URL").unwrap_or_else(|| PYPI.to_owned());
        let bundle = ["PIP_CERT", "SSL_CERT_FILE"].into_iter().find_map(|key| set(key).map(|v| (key, v)));
        let mut config = ureq::Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_recv_body(Some(Duration::from_secs(900)));
        if let Some((key, path)) = bundle {
            let bad = |why: String| IndexError::Local(format!("`{key}` names `{path}`, which {why}"));
            let pem = fs::read(&path).map_err(|e| bad(format!("cannot be read: {e}")))?;
            let roots: Vec<_> = parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(c)) => Some(c),
                    _ => None,
                })
                .collect();
            if roots.is_empty() {
                return Err(bad("holds no certificate".to_owned()));
            }
            let tls = TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(roots))).build();
            config = config.tls_config(tls);
        }
        Ok(Index { agent: config.build().new_agent(), url: url.trim_end_matches('/').to_owned() })
    }

    /// Fetches a wheel into a folder; one that is there already and is the pinned one stays.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn fetch(&self, wheel: &Wheel, folder: &Path) -> Result<PathBuf, IndexError> {
        let path = folder.join(wheel.file);
        if digest_of(&path).is_some_and(|d| d == wheel.sha256) {
            return Ok(path);
        }
        eprintln!("fetching {} {} ({:.1} MiB)", wheel.package, wheel.version, wheel.bytes as f64 / 1048576.0);
        let mut outcome = self.fetch_once(wheel, &path);
        for _ in 1..TRIES {
            if !matches!(outcome, Err(IndexError::Unreachable { .. })) {
                break;
            }
            outcome = self.fetch_once(wheel, &path);
        }
        outcome.map(|()| path)
    }

    fn fetch_once(&self, wheel: &Wheel, path: &Path) -> Result<(), IndexError> {
        let page_url = format!("{}/{}/", self.url, wheel.package);
        let missing = || IndexError::Missing { url: shown(&page_url), file: wheel.file.to_owned() };
        let asked = self
            .agent
            .get(&page_url)
            .header("Accept", "application/vnd.pypi.simple.v1+json, text/html;q=0.5")
            .call();
        let page = match asked {
            Err(ureq::Error::StatusCode(404)) => return Err(missing()),
            other => other.and_then(|mut r| r.body_mut().read_to_string()),
        };
        let page = page.map_err(|e| failed(&page_url, e))?;
        let link = link_to(&page, wheel.file).ok_or_else(missing)?;
        let url = resolve(&page_url, &link);

        let local = |e: std::io::Error| IndexError::Local(format!("cannot write `{}`: {e}", path.display()));
        let part = path.with_extension(format!("part-{}", std::process::id()));
        let mut out = File::create(&part).map_err(local)?;
        let mut response = self.agent.get(&url).call().map_err(|e| failed(&url, e))?;
        let mut body = response.body_mut().as_reader();
        let (mut hash, mut piece) = (Sha256::new(), vec![0u8; 1 << 16]);
        loop {
            let n = body.read(&mut piece).map_err(|e| failed(&url, e.into()))?;
            if n == 0 {
                break;
            }
            hash.update(&piece[..n]);
            out.write_all(&piece[..n]).map_err(local)?;
        }
        let got = hex(&hash.finalize());
        if got != wheel.sha256 {
            let (file, want) = (wheel.file.to_owned(), wheel.sha256.to_owned());
            return Err(IndexError::Digest { file, url: shown(&url), got, want });
        }
        fs::rename(&part, path).map_err(local)
    }
}

fn failed(url: &str, why: ureq::Error) -> IndexError {
    match why {
        // A server in trouble is as good as none.
        ureq::Error::StatusCode(status) if status < 500 => IndexError::Refused { url: shown(url), status },
        other => IndexError::Unreachable { url: shown(url), why: other.to_string() },
    }
}

/// An address without the name and password that it may hold.
fn shown(url: &str) -> String {
    let begin = url.find("://").map_or(0, |i| i + 3);
    let host_end = url[begin..].find('/').map_or(url.len(), |i| begin + i);
    let host = url[begin..host_end].rfind('@').map_or(begin, |i| begin + i + 1);
    format!("{}{}", &url[..begin], &url[host..])
}

/// The address of a file on a package's page, in JSON (PEP 691) or HTML (PEP 503), without its fragment.
fn link_to(page: &str, file: &str) -> Option<String> {
    if let Ok(json) = serde_json::from_str::<Json>(page) {
        let files = json["files"].as_array()?;
        return files.iter().find(|f| f["filename"] == file)?["url"].as_str().map(str::to_owned);
    }
    page.split("href=\"").skip(1).find_map(|rest| {
        let link = rest.split(['"', '#']).next()?.replace("&amp;", "&");
        link.ends_with(&format!("/{file}")).then_some(link)
    })
}

/// A link as it stands on a page: absolute, from the host's root, or relative to the page.
fn resolve(page: &str, link: &str) -> String {
    if link.contains("://") {
        return link.to_owned();
    }
    let after_scheme = page.find("://").map_or(0, |i| i + 3);
    let host_end = page[after_scheme..].find('/').map_or(page.len(), |i| after_scheme + i);
    let (host, path) = page.split_at(host_end);
    let mut parts: Vec<&str> = Vec::new();
    if !link.starts_with('/') {
        parts.extend(path.split('/').filter(|p| !p.is_empty()));
        if !path.ends_with('/') {
            parts.pop();
        }
    }
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    format!("{host}/{}", parts.join("/"))
}

fn digest_of(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    Some(hex(&Sha256::digest(&bytes)))
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_page_are_read() {
        let json = r#"{"files": [{"filename": "a-1.whl", "url": "../../f/a-1.whl"}, {"filename": "b.whl", "url": "x"}]}"#;
        assert_eq!(link_to(json, "a-1.whl").as_deref(), Some("../../f/a-1.whl"));
        assert_eq!(link_to(json, "c.whl"), None);
        let html = "<a href=\"/f/xa-1.whl#sha256=1\">xa-1.whl</a><a href=\"/f/a-1.whl#sha256=2\" data-x=\"\">a-1.whl</a>";
        assert_eq!(link_to(html, "a-1.whl").as_deref(), Some("/f/a-1.whl"));
        assert_eq!(link_to(html, "-1.whl"), None);
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(shown("https://me:secret@h.example/simple/"), "https://h.example/simple/");
        assert_eq!(shown("https://h.example/a@b"), "https://h.example/a@b");
    }

    #[test]
    fn links_resolve_against_their_page() {
        let page = "https://h.example/root/simple/pkg/";
        assert_eq!(resolve(page, "https://o.example/f.whl"), "https://o.example/f.whl");
        assert_eq!(resolve(page, "/f/f.whl"), "https://h.example/f/f.whl");
        assert_eq!(resolve(page, "../../packages/f.whl"), "https://h.example/root/packages/f.whl");
        assert_eq!(resolve("https://h.example/simple/pkg", "f.whl"), "https://h.example/simple/f.whl");
    }
}
