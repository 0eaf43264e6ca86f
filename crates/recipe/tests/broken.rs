//! What each broken recipe is told. A case is a file in `broken/`; a first line `# --set …` gives overrides.

mod support;

use std::path::Path;

#[test]
fn every_broken_recipe_says_why() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    names.sort();
    assert!(names.len() >= 40, "only {} cases", names.len());
    for name in names {
        let text = std::fs::read_to_string(folder.join(&name)).unwrap();
        let first = text.lines().next().unwrap_or_default();
        let overrides: Vec<&str> =
            first.strip_prefix("# --set ").map(|rest| rest.split(" --set ").collect()).unwrap_or_default();
        match support::read(&name, &text, &overrides) {
            Ok((_, recipe)) => panic!("{name} was read: {recipe:?}"),
            Err(errors) => {
                insta::assert_snapshot!(name.trim_end_matches(".toml"), errors.to_string())
            }
        }
    }
}

#[test]
fn as_json_and_in_colours() {
    let text = "name = \"a\"\nsed = 1\nmodel = { source = \"builtin:tiny\" }\n[[stage]]\nkind = \"merge\"\n";
    let errors = support::read("r.toml", text, &[]).unwrap_err();
    insta::assert_snapshot!("json", serde_json::to_string_pretty(&errors.to_json()).unwrap());
    assert!(errors.render(true).contains("\u{1b}["));
    assert!(!errors.render(false).contains('\u{1b}'));
}

#[test]
fn a_file_that_is_not_there_or_no_text() {
    let open = |path: &Path| ramekin_recipe::Doc::open(path, &[]).unwrap_err().to_string();
    assert_eq!(
        open(Path::new("no/such.toml")),
        "error: cannot read the recipe `no/such.toml`: there is no such file"
    );
    let folder = env!("CARGO_MANIFEST_DIR");
    assert!(open(Path::new(folder)).ends_with("it is a folder"));
    let file = std::env::temp_dir().join(format!("ramekin-recipe-{}.toml", std::process::id()));
    std::fs::write(&file, b"name = \"a\"\nseed = \xff\n").unwrap();
    assert!(open(&file).ends_with("is no recipe: line 2 is not UTF-8 text"));
    std::fs::remove_file(&file).unwrap();
}
