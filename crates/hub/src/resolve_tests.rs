//! A cache in a temporary folder and a hub that writes into it.

use std::cell::RefCell;
use std::fs;

use ramekin_core::exit_code;

use super::*;
use crate::remote::Listing;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub with one model, which notes what it was asked for.
struct Fake {
    cache: PathBuf,
    files: Vec<&'static str>,
    fails: Option<RemoteError>,
    asked: RefCell<Vec<String>>,
}

impl Remote for Fake {
    fn list(&self, repo: &str, revision: &str) -> Result<Listing, RemoteError> {
        self.asked.borrow_mut().push(format!("list {repo}@{revision}"));
        match &self.fails {
            Some(e) => Err(e.clone()),
            None => Ok(Listing {
                commit: COMMIT.into(),
                files: self.files.iter().map(|f| f.to_string()).collect(),
            }),
        }
    }

    fn fetch(&self, repo: &str, revision: &str, file: &str) -> Result<(), RemoteError> {
        self.asked.borrow_mut().push(format!("fetch {file}"));
        put(&self.cache, repo, revision, file, "{}");
        Ok(())
    }
}

fn put(cache: &Path, repo: &str, revision: &str, file: &str, text: &str) {
    let dir = cache::model_dir(cache, repo);
    let snapshot = dir.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(dir.join("refs")).unwrap();
    fs::write(dir.join("refs").join(revision), COMMIT).unwrap();
    fs::write(snapshot.join(file), text).unwrap();
}

struct Place {
    _tmp: tempfile::TempDir,
    env: Env,
    remote: Fake,
}

fn place(offline: bool, files: &[&'static str]) -> Place {
    let tmp = tempfile::tempdir().unwrap();
    let cache = tmp.path().join("hub");
    let env = Env { cache: cache.clone(), token: None, offline, endpoint: "https://hub.example".into() };
    let (files, asked) = (files.to_vec(), RefCell::default());
    Place { _tmp: tmp, env, remote: Fake { cache, files, fails: None, asked } }
}

impl Place {
    fn resolve(&self, source: &str, revision: Option<&str>) -> Result<Located, HubError> {
        Resolver { env: &self.env, remote: &self.remote }.resolve(source, revision, Path::new("/"))
    }

    fn error(&self, source: &str) -> (Kind, i32, String) {
        let error = self.resolve(source, None).unwrap_err();
        let kind = error.kind;
        let error = anyhow::Error::from(error);
        (kind, exit_code(&error), format!("{error:#}"))
    }
}

#[test]
fn builtin_models_pass_through() {
    let place = place(true, &[]);
    assert_eq!(place.resolve("builtin:tiny", None).unwrap(), Located::Builtin("tiny".into()));
}

#[test]
fn what_is_cached_needs_no_hub() {
    let place = place(false, &[]);
    put(&place.env.cache, "org/name", "main", "config.json", "{}");
    put(&place.env.cache, "org/name", "main", "model.safetensors", "x");
    let folder = cache::model_dir(&place.env.cache, "org/name").join("snapshots").join(COMMIT);
    for (source, label) in [
        ("hf:org/name".to_owned(), "org/name".to_owned()),
        (format!("hf:org/name@{COMMIT}"), format!("org/name@{COMMIT}")),
    ] {
        let found = place.resolve(&source, None).unwrap();
        assert_eq!(found, Located::Folder { folder: folder.clone(), label });
    }
    assert!(place.remote.asked.borrow().is_empty());
}

#[test]
fn only_useful_files_are_fetched() {
    let files = [
        "README.md",
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "pytorch_model.bin",
        "onnx/model.safetensors",
        "../evil.safetensors",
        ".gitattributes",
        "chat_template.jinja",
        "consolidated.safetensors",
    ];
    let place = place(false, &files);
    put(&place.env.cache, "org/name", "v2", "config.json", "{}");
    place.resolve("hf:org/name", Some("v2")).unwrap();
    assert_eq!(
        *place.remote.asked.borrow(),
        ["list org/name@v2", "fetch tokenizer.json", "fetch chat_template.jinja", "fetch model.safetensors"]
    );
    place.resolve("hf:org/name@v2", None).unwrap();
    assert_eq!(place.remote.asked.borrow().len(), 4, "the second time it is in the cache");
}

#[test]
fn a_cut_off_download_is_seen() {
    let place = place(true, &[]);
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    put(&place.env.cache, "org/name", "main", "config.json", "{}");
    put(&place.env.cache, "org/name", "main", "model.safetensors.index.json", index);
    put(&place.env.cache, "org/name", "main", "model-1.safetensors", "x");
    let (kind, code, text) = place.error("hf:org/name");
    assert_eq!((kind, code), (Kind::Offline, 3));
    assert!(text.contains("lacks `model-2.safetensors`"), "{text}");
}

#[test]
fn offline_shows_what_is_cached() {
    let place = place(true, &[]);
    let (kind, code, text) = place.error("hf:org/name");
    assert_eq!((kind, code), (Kind::Offline, 3));
    assert!(text.contains("nothing is cached there"), "{text}");
    put(&place.env.cache, "org/nome", "main", "config.json", "{}");
    let (_, _, text) = place.error("hf:org/name");
    assert!(text.starts_with("cannot get the model `hf:org/name`: `HF_HUB_OFFLINE` is set"), "{text}");
    assert!(text.contains("did you mean `hf:org/nome`? cached are `org/nome`;"), "{text}");
    assert!(place.remote.asked.borrow().is_empty());
}

#[test]
fn the_hubs_refusals() {
    let cases = [
        (RemoteError::NotFound, Kind::NotFound, 2, "no `org/name` at revision `main`"),
        (RemoteError::Unauthorized, Kind::Gated, 2, "set `HF_TOKEN`"),
        (RemoteError::Forbidden, Kind::Gated, 2, "accept it at https://hub.example/org/name"),
        (RemoteError::Network("no route".into()), Kind::Network, 3, "cannot be reached: no route"),
    ];
    for (fails, kind, code, part) in cases {
        let mut place = place(false, &[]);
        place.remote.fails = Some(fails);
        let (k, c, text) = place.error("hf:org/name");
        assert_eq!((k, c), (kind, code), "{text}");
        assert!(text.contains(part), "{text}");
    }
    let place = place(false, &["config.json", "pytorch_model.bin"]);
    assert!(place.error("hf:org/name").2.contains("no `.safetensors` weights"));
}

#[test]
fn bad_sources() {
    let place = place(false, &[]);
    for source in ["hf:", "hf:a/b/c", "hf:../x", "hf:a/..", "hf:a b", "hf:a/b@", "hf:a/b@../x"] {
        let (kind, code, text) = place.error(source);
        assert_eq!((kind, code), (Kind::BadSource, 2), "{source}: {text}");
    }
    let both = place.resolve("hf:a/b@x", Some("y")).unwrap_err();
    assert!(format!("{:#}", anyhow::Error::from(both)).contains("`x` and the setting names `y`"));
    assert!(place.remote.asked.borrow().is_empty());
}

#[test]
fn folders_are_relative_to_the_recipe() {
    let place = place(false, &[]);
    let tmp = tempfile::tempdir().unwrap();
    fs::create_dir_all(tmp.path().join("models/llama")).unwrap();
    fs::write(tmp.path().join("file.gguf"), "").unwrap();
    let resolver = Resolver { env: &place.env, remote: &place.remote };
    let resolve = |s: &str| resolver.resolve(s, None, tmp.path());
    let text = |s: &str| format!("{:#}", anyhow::Error::from(resolve(s).unwrap_err()));
    let found = resolve("models/llama").unwrap();
    let folder = tmp.path().join("models/llama");
    assert_eq!(found, Located::Folder { folder, label: "models/llama".into() });
    assert!(text("models/lama").contains("did you mean `models/llama`?"), "{}", text("models/lama"));
    assert!(text("org/other").contains("written `hf:org/other`"), "{}", text("org/other"));
    assert!(text("file.gguf").contains("is a file"), "{}", text("file.gguf"));
}
