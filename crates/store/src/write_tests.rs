//! What is written is what the public library reads, and back.

use super::*;
use crate::index::Index;

fn sample() -> Vec<(String, Data)> {
    let cpu = &Device::Cpu;
    let f = Tensor::arange(0f32, 6., cpu).unwrap().reshape((2, 3)).unwrap();
    vec![
        ("z.weight".into(), Data::from(&f)),
        ("a.weight".into(), Data::from(f.t().unwrap())),
        ("half".into(), Data::from(f.to_dtype(DType::BF16).unwrap())),
        ("tail".into(), Data::from(f.narrow(0, 1, 1).unwrap())),
        ("ids".into(), Data::from(Tensor::new(&[-1i64, 7], cpu).unwrap())),
        ("small".into(), Data::from(f.to_dtype(DType::F8E4M3).unwrap())),
        ("empty".into(), Data::from(Tensor::zeros((0, 4), DType::F32, cpu).unwrap())),
        ("codes".into(), Data::Raw { dtype: Dtype::I8, shape: vec![3], bytes: vec![1, 255, 2] }),
    ]
}

#[test]
fn the_public_library_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    write_safetensors(&path, &sample(), PT).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), 8);
    let a = theirs.tensor("a.weight").unwrap();
    assert_eq!(a.shape(), [3, 2]);
    let numbers: Vec<f32> = a.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(numbers, [0., 3., 1., 4., 2., 5.]);
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn the_bytes_are_the_public_librarys() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    write_safetensors(&path, &sample(), PT).unwrap();
    let ours = std::fs::read(&path).unwrap();
    let views = safetensors::SafeTensors::deserialize(&ours).unwrap();
    let metadata = PT.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let theirs = safetensors::serialize(views.tensors(), Some(metadata)).unwrap();
    assert!(ours == theirs, "order, header and padding are those of safetensors");
}

#[test]
fn and_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    write_safetensors(&path, &sample(), &[]).unwrap();
    let index = Index::open(&path).unwrap();
    for (name, data) in sample() {
        match data {
            Data::Tensor(t) => {
                let back = index.read(&name).unwrap();
                assert_eq!(back.dims(), t.dims(), "{name}");
                assert_eq!(back.dtype(), t.dtype(), "{name}");
                // As bytes, so that no conversion stands between.
                let again = dir.path().join("again.safetensors");
                let bytes = |t: Tensor| {
                    write_safetensors(&again, &[(name.clone(), t.into())], &[]).unwrap();
                    std::fs::read(&again).unwrap()
                };
                assert_eq!(bytes(back), bytes(t), "{name}");
            }
            Data::Raw { bytes, .. } => assert_eq!(index.read_bytes(&name).unwrap(), bytes),
        }
    }
    assert_eq!(index.read_f32("half").unwrap(), [0., 1., 2., 3., 4., 5.]);
}

#[test]
fn shards_hold_what_the_index_says() {
    let dir = tempfile::tempdir().unwrap();
    let all = sample();
    let specs: Vec<Spec> = all.iter().map(|(n, d)| Spec::of(n, d).unwrap()).collect();
    let produce = |name: &str| Ok(all.iter().find(|(n, _)| n == name).unwrap().1.clone());
    let files = write_sharded(dir.path(), &specs, 40, PT, produce).unwrap();
    assert_eq!(files.len(), 3 + 1, "24 | 24+12 | 12+16+6+0+3: {files:?}");
    assert_eq!(files[0], "model-00001-of-00003.safetensors");
    let index = Index::open(dir.path()).unwrap();
    assert_eq!(index.len(), 8);
    assert_eq!(index.read_f32("a.weight").unwrap(), [0., 3., 1., 4., 2., 5.]);
    let text = std::fs::read_to_string(dir.path().join("model.safetensors.index.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["metadata"]["total_size"], json!(index.total_bytes()));

    let one = tempfile::tempdir().unwrap();
    assert_eq!(write_sharded(one.path(), &specs, 1 << 30, PT, produce).unwrap(), ["model.safetensors"]);
    assert_eq!(Index::open(one.path()).unwrap().len(), 8);
}

#[test]
fn wrong_tensors_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let raw = |n: usize| Data::Raw { dtype: Dtype::U8, shape: vec![3], bytes: vec![0; n] };
    let write = |t: &[(String, Data)]| write_safetensors(&path, t, &[]).unwrap_err().to_string();
    assert!(write(&[("a".into(), raw(2))]).contains("U8 [3], needs 3 bytes, not 2"));
    let twice = write(&[("a".into(), raw(3)), ("a".into(), raw(3))]);
    assert!(twice.contains("two tensors `a`"));
    assert!(write(&[("__metadata__".into(), raw(3))]).contains("may be called"));
    assert!(!path.exists(), "nothing half-written is left");

    let spec = Spec { name: "a".into(), dtype: Dtype::U8, shape: vec![4] };
    let error = write_sharded(dir.path(), &[spec], 100, PT, |_| Ok(raw(3))).unwrap_err();
    assert!(error.to_string().contains("announced as U8 [4] and came as U8 [3]"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
