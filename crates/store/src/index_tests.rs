//! Good models, and folders that lie.

use super::*;
use crate::write::{Data, PT, write_safetensors};

fn write(path: &Path, names: &[&str]) {
    let t = Tensor::arange(0f32, 4., &Device::Cpu).unwrap();
    let all: Vec<_> = names.iter().map(|n| (n.to_string(), Data::from(&t))).collect();
    write_safetensors(path, &all, PT).unwrap();
}

fn error(path: &Path) -> String {
    let error = Index::open(path).map(|_| ()).unwrap_err();
    assert_eq!(ramekin_core::exit_code(&error), 2, "{error:?}");
    error.to_string()
}

#[test]
fn lying_indexes_are_named() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    write(&dir.join("one.safetensors"), &["a", "extra"]);
    write(&dir.join("two.safetensors"), &["b"]);
    let index = dir.join(SHARDED);
    let map = |text: &str| fs::write(&index, format!(r#"{{"weight_map":{text}}}"#)).unwrap();

    map(r#"{"a":"one.safetensors","b":"two.safetensors"}"#);
    let good = Index::open(dir).unwrap();
    assert_eq!(good.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(good.unlisted(), ["extra"]);
    assert_eq!(good.tensor_info("b").unwrap().file, dir.join("two.safetensors"));

    map(r#"{"a":"one.safetensors","b":"one.safetensors"}"#);
    let text = error(dir);
    assert!(text.contains("the index lies: `one.safetensors` does not hold tensor `b`"), "{text}");
    assert!(text.contains(SHARDED), "{text}");
    map(r#"{"a":"three.safetensors"}"#);
    assert!(error(dir).contains("`three.safetensors`, which should hold `a`, is not there"));
    map(r#"{"a":"../one.safetensors"}"#);
    assert!(error(dir).contains("`../one.safetensors` is no name of a file beside it"));
    map(r#"{"a":"one.safetensors","a":"two.safetensors"}"#);
    assert!(error(dir).contains("`a` is there twice"));
    fs::write(&index, "{}").unwrap();
    assert!(error(dir).contains("missing field `weight_map`"));
}

#[test]
fn folders_are_searched_as_transformers_does() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    assert!(error(dir).contains("but nothing"));
    fs::write(dir.join("pytorch_model.bin"), "x").unwrap();
    assert!(error(dir).contains("but `pytorch_model.bin`"));
    write(&dir.join("adapter_model.safetensors"), &["a"]);
    assert!(Index::open(dir).unwrap().contains("a"));
    write(&dir.join("other.safetensors"), &["b"]);
    assert!(error(dir).contains("neither `model.safetensors` nor"));
    write(&dir.join(SINGLE), &["c"]);
    assert_eq!(Index::open(dir).unwrap().names().collect::<Vec<_>>(), ["c"]);
    assert!(error(&dir.join("absent.safetensors")).contains("cannot be opened"));
}

#[test]
fn missing_tensors_offer_the_nearest() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("x.safetensors");
    write(&path, &["model.layers.0.q_proj.weight"]);
    let index = Index::open(&path).unwrap();
    let text = index.read("model.layers.0.q_porj.weight").unwrap_err().to_string();
    assert!(text.contains("nearest name is `model.layers.0.q_proj.weight`"), "{text}");
    let mut two = [0; 8];
    index.read_into("model.layers.0.q_proj.weight", 4, &mut two).unwrap();
    assert_eq!(two, bytemuck::cast::<[f32; 2], [u8; 8]>([1., 2.]));
    assert!(index.read_into("model.layers.0.q_proj.weight", 12, &mut two).is_err());
    assert!(index.read_into("model.layers.0.q_proj.weight", u64::MAX, &mut two).is_err());
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("x.safetensors");
    write(&path, &["a"]);
    let index = Index::open(&path).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    File::options().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
    let text = index.read("a").unwrap_err().to_string();
    assert!(text.contains("cannot read tensor `a` of `") && text.contains("x.safetensors"), "{text}");
    assert!(error(&path).contains("its data ends at byte 16; the file holds 15 bytes of data"));
}

#[test]
fn dtypes_convert() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("x.safetensors");
    let many = Tensor::arange(0f32, 100_000., &Device::Cpu).unwrap();
    let data = |d: DType| Data::from(many.to_dtype(d).unwrap());
    let all = [("h", DType::F16), ("b", DType::BF16), ("f", DType::F32), ("d", DType::F64)]
        .map(|(n, d)| (n.to_owned(), data(d)));
    write_safetensors(&path, &all, PT).unwrap();
    let raw = Data::Raw { dtype: Dtype::I8, shape: vec![1], bytes: vec![1] };
    let odd = tmp.path().join("odd.safetensors");
    write_safetensors(&odd, &[("i".into(), raw)], PT).unwrap();

    let index = Index::open(&path).unwrap();
    for (name, d) in &all {
        let Data::Tensor(t) = d else { unreachable!() };
        let want = t.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(index.read_f32(name).unwrap(), want, "{name}");
    }
    let odd = Index::open(&odd).unwrap();
    let text = odd.read_f32("i").unwrap_err().to_string();
    assert!(text.contains("dtype I8, which cannot be read as floats"), "{text}");
    assert!(odd.read("i").is_err());
}

#[test]
fn goldens_open() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/goldens/llama/model");
    if !shared.is_dir() {
        println!("skipped goldens_open: ../shared is not here");
        return;
    }
    let index = Index::open(&shared).unwrap();
    assert!(index.contains("model.embed_tokens.weight"));
    let info = index.tensor_info("model.embed_tokens.weight").unwrap();
    assert_eq!(index.read_f32("model.embed_tokens.weight").unwrap().len(), info.len());
}
