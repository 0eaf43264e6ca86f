use proptest::prelude::*;
use serde_json::json;

use super::*;

fn base() -> Base {
    Base { label: "b".into(), sha256: "0123".into() }
}

fn round_trip(codec: Codec, scale: Option<f32>, tensors: &[Vec<f64>], piece: usize) -> Vec<Vec<f64>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.safetensors");
    let mut writer = DeltaWriter::new(codec, 0.3, base(), json!({ "a": 1 }));
    for (t, numbers) in tensors.iter().enumerate() {
        writer.begin(&format!("t{t}"), &[numbers.len()], scale).unwrap();
        numbers.chunks(piece).for_each(|n| writer.push(n).unwrap());
    }
    writer.finish(&path).unwrap();
    let delta = Delta::open(&path).unwrap();
    assert_eq!((&delta.base, &delta.extra), (&base(), &json!({ "a": 1 })));
    assert!(delta.entries("other").unwrap().is_none());
    let read = |(name, dims): &(String, Vec<usize>)| {
        let mut out = vec![f64::NAN; dims.iter().product()];
        let mut entries = delta.entries(name).unwrap().unwrap();
        let mut start = 0;
        for piece in out.chunks_mut(piece + 2) {
            entries.fill(start, piece).unwrap_or_else(|e| panic!("{e:#}"));
            start += piece.len();
        }
        out
    };
    delta.tensors().iter().map(read).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn whatever_goes_in_comes_out(
        signs in prop::collection::vec(prop::collection::vec(-1i8..=1, 0..90), 0..4), piece in 1usize..20,
    ) {
        for codec in [Codec::Golomb, Codec::Bitmask, Codec::Raw] {
            let ternary: Vec<Vec<f64>> =
                signs.iter().map(|s| s.iter().map(|x| f64::from(*x) * f64::from(0.3f32)).collect()).collect();
            prop_assert_eq!(&round_trip(codec, Some(0.3), &ternary, piece), &ternary);
            let valued: Vec<Vec<f64>> =
                signs.iter().map(|s| s.iter().enumerate().map(|(i, x)| f64::from(*x) * i as f64).collect()).collect();
            prop_assert_eq!(&round_trip(codec, None, &valued, piece), &valued);
        }
    }

    #[test]
    fn damaged_codes_are_refused_or_read(flip in 0usize..400, with in 1u8..=255) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.safetensors");
        for codec in [Codec::Golomb, Codec::Bitmask, Codec::Raw] {
            let mut writer = DeltaWriter::new(codec, 0.3, base(), Json::Null);
            writer.begin("t", &[50], Some(1.0)).unwrap();
            writer.push(&(0..50).map(|i| f64::from(i % 3 - 1)).collect::<Vec<_>>()).unwrap();
            writer.finish(&path).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            let at = bytes.len() - 1 - flip % bytes.len();
            bytes[at] ^= with;
            std::fs::write(&path, bytes).unwrap();
            if let Ok(delta) = Delta::open(&path)
                && let Ok(Some(mut entries)) = delta.entries("t")
            {
                while let Ok(Some((position, _))) = entries.advance() {
                    prop_assert!(position < delta.tensors()[0].1.iter().product());
                }
            }
        }
    }
}

#[test]
fn masks_add_and_compare() {
    let a = Ternary::new([1.0, -1.0, 0.0, 1.0], 0.5);
    let b = Ternary::new([1.0, 1.0, -1.0, 0.0], 2.0);
    assert_eq!((a.count(), a.dot(&b)), (3, 0.0));
    assert_eq!(a.l1_distance(&b), 1.5 + 2.5 + 2.0 + 0.5);
    let mut sum = vec![1.0; 4];
    a.add_to(&mut sum);
    assert_eq!(sum, [1.5, 0.5, 1.0, 1.5]);
    assert_eq!((0..4).map(|i| b.at(i)).collect::<Vec<_>>(), [2.0, 2.0, -2.0, 0.0]);
}
