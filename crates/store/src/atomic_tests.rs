//! Crashes and faults at every file operation.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::disk::Op;

/// A disk that is dead from its `n`-th operation on, as a killed process is.
fn dying(n: usize) -> (Disk, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    let disk = Disk::with_hook(move |_, _| {
        if seen.fetch_add(1, Ordering::SeqCst) >= n {
            return Err(io::Error::other("killed"));
        }
        Ok(())
    });
    (disk, count)
}

fn put(disk: Disk, target: &Path, text: &str) -> Result<PathBuf> {
    let mut dir = AtomicDir::begin_on(disk, target)?;
    dir.write("a.txt", text.as_bytes())?;
    dir.write("sub/b.txt", text.as_bytes())?;
    fs::write(dir.path().join("foreign.txt"), text)?;
    dir.commit()
}

fn read(target: &Path) -> String {
    let text = fs::read_to_string(target.join("a.txt")).unwrap();
    assert_eq!(text, fs::read_to_string(target.join("sub/b.txt")).unwrap());
    assert_eq!(text, fs::read_to_string(target.join("foreign.txt")).unwrap());
    text
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_crash_anywhere_leaves_the_old_or_the_new() {
    let (mut olds, mut news) = (0, 0);
    for n in 0.. {
        let tmp = tempfile::tempdir().unwrap();
        let target = tmp.path().join("adapter");
        put(Disk::default(), &target, "old").unwrap();
        let (disk, count) = dying(n);
        let done = put(disk, &target, "new").is_ok();
        recover(tmp.path()).unwrap();
        verify(&target).unwrap();
        match read(&target).as_str() {
            "old" => olds += 1,
            "new" => news += 1,
            other => panic!("{other}"),
        }
        assert_eq!(names(tmp.path()), ["adapter"], "leftovers after a crash at operation {n}");
        if done {
            assert_eq!(count.load(Ordering::SeqCst), n, "the last round ran to its end");
            assert_eq!(read(&target), "new");
            break;
        }
    }
    assert!(olds > 10 && news > 3, "both outcomes were seen: {olds} old, {news} new");
}

#[test]
fn a_crash_in_recover_is_recovered() {
    for n in 0..40 {
        let tmp = tempfile::tempdir().unwrap();
        let target = tmp.path().join("adapter");
        put(Disk::default(), &target, "old").unwrap();
        fs::rename(&target, tmp.path().join(".adapter.old")).unwrap();
        fs::create_dir(tmp.path().join(".adapter.writing")).unwrap();
        fs::write(tmp.path().join(".adapter.writing/a.txt"), "ne").unwrap();
        let _ = recover_on(&dying(n).0, tmp.path());
        recover(tmp.path()).unwrap();
        verify(&target).unwrap();
        assert_eq!(read(&target), "old");
    }
}

#[test]
fn a_single_fault_keeps_the_old_and_cleans_up() {
    for op in [Op::CreateDir, Op::CreateFile, Op::Write, Op::SyncFile, Op::SyncDir] {
        let tmp = tempfile::tempdir().unwrap();
        let target = tmp.path().join("adapter");
        put(Disk::default(), &target, "old").unwrap();
        let once = AtomicUsize::new(0);
        let disk = Disk::with_hook(move |o, _| {
            if o == op && once.fetch_add(1, Ordering::SeqCst) == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        });
        let error = put(disk, &target, "new").unwrap_err();
        assert!(crate::DiskError::found_full(&error), "{op:?}: {error:?}");
        assert_eq!(read(&target), "old");
        assert_eq!(names(tmp.path()), ["adapter"], "{op:?}");
    }
}

#[test]
fn single_files_are_old_or_new() {
    for n in 0..12 {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("summary.json");
        write_atomic(&path, b"old").unwrap();
        let done = write_atomic_on(&dying(n).0, &path, b"new and longer").is_ok();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text == "new and longer" || (text == "old" && !done), "{n}: {text}");
        recover(tmp.path()).unwrap();
        assert_eq!(names(tmp.path()), ["summary.json"]);
    }
}

#[test]
fn damage_is_named() {
    let tmp = tempfile::tempdir().unwrap();
    let target = tmp.path().join("x");
    put(Disk::default(), &target, "some text").unwrap();
    verify(&target).unwrap();
    let (file, path) = ("a.txt".to_owned(), target.join("a.txt"));

    fs::write(&path, "some").unwrap();
    let damage = verify(&target).unwrap_err();
    assert_eq!(damage, Damage::Size { file: file.clone(), expected: 9, found: 4 });
    assert_eq!(damage.to_string(), "`a.txt` is cut off: 4 of 9 bytes are there");

    fs::write(&path, "some tixt").unwrap();
    assert_eq!(verify(&target).unwrap_err(), Damage::Changed { file: file.clone() });
    fs::remove_file(&path).unwrap();
    assert_eq!(verify(&target).unwrap_err(), Damage::Missing { file });
    fs::write(target.join(CHECKSUMS), "{").unwrap();
    assert!(matches!(verify(&target), Err(Damage::NoChecksums(_))));
    fs::remove_file(target.join(CHECKSUMS)).unwrap();
    assert_eq!(verify(&target), Err(Damage::NoChecksums("is missing".into())));
}

#[test]
fn names_stay_inside() {
    let tmp = tempfile::tempdir().unwrap();
    let mut dir = AtomicDir::begin(tmp.path().join("x")).unwrap();
    for name in ["../evil", "/evil", "", "a/../../evil"] {
        assert!(dir.write(name, b"").is_err(), "{name}");
    }
    drop(dir);
    assert!(names(tmp.path()).is_empty(), "a dropped folder leaves nothing");
}

#[test]
fn a_mirror_is_whole_and_outlives_its_original() {
    let tmp = tempfile::tempdir().unwrap();
    let (from, to) = (tmp.path().join("stages/adapter"), tmp.path().join("adapter"));
    put(Disk::default(), &to, "older").unwrap();
    put(Disk::default(), &from, "new").unwrap();
    mirror(&from, &to).unwrap();
    fs::remove_dir_all(&from).unwrap();
    verify(&to).unwrap();
    assert_eq!(read(&to), "new");
    assert_eq!(names(tmp.path()), ["adapter", "stages"]);
    let error = mirror(&from, &to).unwrap_err();
    assert!(error.to_string().contains("checksums.json"), "{error:#}");
    assert_eq!(read(&to), "new", "what was there stays");
}
