//! What survives truncation, flipped bits, crashes and a full disk.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Device, Tensor};

use super::*;
use crate::disk::{DiskError, Op};
use crate::index::Index;

fn save(all: &Checkpoints, step: u64) -> Result<PathBuf> {
    let weights = Tensor::full(step as f32, (3, 5), &Device::Cpu)?;
    all.save(step, step as f64 / 10.0, &json!({"log_history": [], "seed": 7}), |w| {
        w.tensors("adapter.safetensors", &[("w".into(), Data::from(&weights))])?;
        w.file("cursor.bin", &step.to_le_bytes())
    })
}

fn steps(all: &Checkpoints) -> Vec<u64> {
    all.list().unwrap().into_iter().map(|(s, _)| s).collect()
}

/// The latest good checkpoint, with its contents checked against its step.
fn good(all: &Checkpoints) -> Option<u64> {
    let c = all.latest_good().unwrap().good?;
    let index = Index::open(c.path.join("adapter.safetensors")).unwrap();
    assert_eq!(index.read_f32("w").unwrap(), vec![c.step as f32; 15]);
    assert_eq!(fs::read(c.path.join("cursor.bin")).unwrap(), c.step.to_le_bytes());
    assert_eq!(c.state["epoch"], json!(c.step as f64 / 10.0));
    Some(c.step)
}

#[test]
fn keeps_the_newest() {
    let tmp = tempfile::tempdir().unwrap();
    let all = Checkpoints::open(tmp.path().join("checkpoints"), 2).unwrap();
    assert_eq!(good(&all), None);
    for step in [2, 4, 10, 100] {
        save(&all, step).unwrap();
        assert_eq!(good(&all), Some(step));
    }
    assert_eq!(steps(&all), [10, 100]);
    let unlimited = Checkpoints::open(tmp.path().join("other"), 0).unwrap();
    (1..5).for_each(|s| drop(save(&unlimited, s).unwrap()));
    assert_eq!(steps(&unlimited), [1, 2, 3, 4]);
}

#[test]
fn a_rewound_run_drops_the_later_ones_first() {
    let tmp = tempfile::tempdir().unwrap();
    let all = Checkpoints::open(tmp.path(), 2).unwrap();
    save(&all, 10).unwrap();
    save(&all, 20).unwrap();
    fs::write(tmp.path().join("checkpoint-20/cursor.bin"), "x").unwrap();
    save(&all, 15).unwrap();
    assert_eq!(steps(&all), [10, 15]);
}

#[test]
fn damaged_ones_are_passed_over_and_named() {
    let tmp = tempfile::tempdir().unwrap();
    let all = Checkpoints::open(tmp.path(), 9).unwrap();
    (1..=5).for_each(|s| drop(save(&all, s).unwrap()));
    let file = |step: u64, name: &str| tmp.path().join(format!("checkpoint-{step}")).join(name);

    let bytes = fs::read(file(5, "adapter.safetensors")).unwrap();
    fs::write(file(5, "adapter.safetensors"), &bytes[..bytes.len() - 7]).unwrap();
    let mut bytes = fs::read(file(4, "adapter.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 0x10;
    fs::write(file(4, "adapter.safetensors"), bytes).unwrap();
    fs::remove_file(file(3, "cursor.bin")).unwrap();

    assert_eq!(good(&all), Some(2));
    let damaged = all.latest_good().unwrap().damaged;
    let texts: Vec<_> = damaged.iter().map(|d| d.why.to_string()).collect();
    assert_eq!(damaged.iter().map(|d| d.step).collect::<Vec<_>>(), [5, 4, 3]);
    assert!(texts[0].starts_with("`adapter.safetensors` is cut off: "), "{texts:?}");
    assert!(texts[1].contains("its SHA-256 differs"), "{texts:?}");
    assert_eq!(texts[2], "`cursor.bin` is missing");
    assert!(damaged[0].to_string().contains("checkpoint-5` is damaged: "));
}

#[test]
fn any_flipped_bit_is_seen() {
    let tmp = tempfile::tempdir().unwrap();
    let all = Checkpoints::open(tmp.path(), 9).unwrap();
    save(&all, 1).unwrap();
    let path = save(&all, 2).unwrap();
    for name in ["adapter.safetensors", "cursor.bin", TRAINER_STATE, atomic::CHECKSUMS] {
        let whole = fs::read(path.join(name)).unwrap();
        for at in (0..whole.len()).step_by(if name == atomic::CHECKSUMS { 1 } else { 5 }) {
            let mut broken = whole.clone();
            broken[at] ^= 1;
            fs::write(path.join(name), &broken).unwrap();
            let step = all.latest_good().unwrap().good.map(|c| c.step);
            // White space between the entries of checksums.json carries nothing.
            let harmless = name == atomic::CHECKSUMS && whole[at].is_ascii_whitespace();
            assert!(step == Some(1) || harmless, "{name}, byte {at}");
        }
        fs::write(path.join(name), &whole).unwrap();
        assert_eq!(good(&all), Some(2));
    }
}

#[test]
fn a_crash_at_any_operation_leaves_a_good_one() {
    for n in 0.. {
        let tmp = tempfile::tempdir().unwrap();
        let all = Checkpoints::open(tmp.path(), 1).unwrap();
        save(&all, 1).unwrap();
        let count = AtomicUsize::new(0);
        let disk = Disk::with_hook(move |_, _| {
            if count.fetch_add(1, Ordering::SeqCst) >= n {
                return Err(io::Error::other("killed"));
            }
            Ok(())
        });
        let done = Checkpoints::open_on(disk, tmp.path(), 1).and_then(|c| save(&c, 2)).is_ok();
        let again = Checkpoints::open(tmp.path(), 1).unwrap();
        let latest = again.latest_good().unwrap();
        assert!(latest.damaged.is_empty(), "operation {n}: {:?}", latest.damaged);
        assert!(good(&again) == Some(2) || (!done && good(&again) == Some(1)), "operation {n}");
        if done {
            assert!(n > 20, "a save has at least so many operations");
            break;
        }
    }
}

#[test]
fn a_full_disk_keeps_the_last_good_one() {
    let tmp = tempfile::tempdir().unwrap();
    save(&Checkpoints::open(tmp.path(), 1).unwrap(), 1).unwrap();
    let disk = Disk::with_hook(|op, path| match op {
        Op::Write if path.ends_with("adapter.safetensors") => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    });
    let all = Checkpoints::open_on(disk, tmp.path(), 1).unwrap();
    let error = save(&all, 2).unwrap_err();
    let text = format!("{error:#}");
    assert!(DiskError::found_full(&error));
    assert!(text.starts_with("cannot save `") && text.contains("checkpoint-2`: no room"), "{text}");
    assert!(text.contains("adapter.safetensors`, which needed "), "{text}");
    assert_eq!(good(&all), Some(1));
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1, "nothing half-written stays");
}

#[test]
fn the_state_cannot_shadow_the_step() {
    let tmp = tempfile::tempdir().unwrap();
    let all = Checkpoints::open(tmp.path(), 1).unwrap();
    assert!(all.save(1, 0.0, &json!({"global_step": 9}), |_| Ok(())).is_err());
    assert!(all.save(1, 0.0, &json!([1]), |_| Ok(())).is_err());
    assert_eq!(good_step(&all), None);
}

fn good_step(all: &Checkpoints) -> Option<u64> {
    all.latest_good().unwrap().good.map(|c| c.step)
}
