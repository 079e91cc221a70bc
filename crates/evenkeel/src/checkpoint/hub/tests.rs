//! Names, look-ups in a made-up cache, and what is refused.

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba98";

fn name(text: &str) -> HubName {
    parse(text).unwrap()
}

/// A cache that holds `owner/tiny` at `main`, with its files as links into `blobs` as on Linux and macOS.
fn cache() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("models--owner--tiny");
    write(&model.join("refs/main"), COMMIT);
    for (file, content) in [("config.json", "{}"), ("model.safetensors", "w")] {
        let blob = model.join("blobs").join(format!("blob-of-{file}"));
        write(&blob, content);
        let link = model.join("snapshots").join(COMMIT).join(file);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(Path::new("../../blobs").join(blob.file_name().unwrap()), link).unwrap();
        #[cfg(not(unix))]
        fs::copy(blob, link).unwrap();
    }
    dir
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

#[test]
fn names_are_owner_and_name() {
    for text in
        ["owner/name", "facebook/opt-125m", "a/b", "EleutherAI/pythia-70m-deduped", "x_/_y", "n0/v1.5"]
    {
        let parsed = name(text);
        assert_eq!((parsed.repository(), parsed.revision()), (text, "main"));
        assert_eq!(parsed.to_string(), text);
    }
    for revision in ["main", "v1.0", "refs/pr/1", "step-1000", COMMIT] {
        let parsed = name(&format!("owner/name@{revision}"));
        assert_eq!(parsed.revision(), revision);
        assert_eq!(parsed.to_string(), format!("owner/name@{revision}"));
    }
}

#[test]
fn other_texts_are_none() {
    let long = format!("owner/{}", "n".repeat(100));
    let texts = [
        "",
        "gpt2",
        "/",
        "a/",
        "/b",
        "a/b/c",
        "./a",
        "../b",
        "a/..",
        "~/models",
        "a/.b",
        "a/b.",
        "-a/b",
        "a-/b",
        "a/b--c",
        "a/b..c",
        "a b/c",
        "a/b c",
        "ä/b",
        "a\\b/c",
        "C:/models",
        "a/b.git",
        "a/b@",
        "a/b@..",
        "a/b@../x",
        "a/b@x/../y",
        "a/b@/x",
        "a/b@x//y",
        "a/b@x@y",
        "a/b@.hidden",
        "a/b@-x",
        "a@b/c",
        "https://huggingface.co/a/b",
        &long,
    ];
    for text in texts {
        assert_eq!(parse(text), None, "{text:?}");
    }
    // A path that exists is a path: tests run in the folder of the crate.
    assert_eq!(parse("src/checkpoint"), None);
    assert!(parse("src/checkpoint-of-nobody").is_some());
}

#[test]
fn a_revision_leads_to_its_snapshot() {
    let dir = cache();
    let model = dir.path().join("models--owner--tiny");
    let snapshot = model.join("snapshots").join(COMMIT);
    write(&model.join("refs/v1"), &format!("{COMMIT}\n"));
    write(&model.join("refs/refs/pr/1"), COMMIT);
    for revision in ["", "@main", "@v1", "@refs/pr/1", &format!("@{COMMIT}")] {
        let found = cached(&name(&format!("owner/tiny{revision}")), dir.path()).unwrap();
        assert_eq!(found, snapshot, "{revision}");
        assert_eq!(fs::read_to_string(found.join("model.safetensors")).unwrap(), "w");
    }
    let mut files = Vec::new();
    assert_eq!(
        locate(&name("owner/tiny"), dir.path(), &mut |f| files.push(f.to_string())).unwrap(),
        snapshot
    );
    assert!(files.is_empty());
}

#[test]
fn what_is_not_there_is_refused_with_what_is() {
    let dir = cache();
    let model = dir.path().join("models--owner--tiny");
    write(&model.join("refs/refs/pr/1"), COMMIT);
    write(&model.join("refs/gone"), "00000000000000000000000000000000deadbeef");
    fs::create_dir(model.join("snapshots").join(OTHER)).unwrap();
    let error = cached(&name("owner/tiny@v2"), dir.path()).unwrap_err();
    let at = dir.path().display();
    assert_eq!(
        error.to_string(),
        format!(
            "owner/tiny@v2 is not in the Hugging Face cache at {at}, which holds it at main, refs/pr/1, {OTHER}"
        )
    );
    assert!(error.hint().contains("owner/tiny@main"), "{}", error.hint());
    assert!(error.hint().contains("huggingface-cli download owner/tiny --revision v2"), "{}", error.hint());
    assert!(matches!(cached(&name("owner/tiny@gone"), dir.path()), Err(HubError::NotCached { .. })));
    let error = cached(&name("owner/none"), dir.path()).unwrap_err();
    assert_eq!(error.to_string(), format!("owner/none is not in the Hugging Face cache at {at}"));
    assert!(cached(&name("owner/none"), Path::new("/nowhere/at/all")).is_err());
}

#[cfg(not(feature = "hub"))]
#[test]
fn without_the_feature_nothing_is_loaded_and_the_hint_says_how() {
    let dir = cache();
    let error =
        locate(&name("owner/none"), dir.path(), &mut |_| panic!("nothing can be loaded")).unwrap_err();
    assert_eq!(
        error.hint(),
        "download it with `huggingface-cli download owner/none`, or build with the cargo feature `hub`, which does so itself"
    );
}

#[test]
fn a_model_in_part_is_incomplete() {
    let dir = cache();
    let model = dir.path().join("models--owner--tiny");
    let snapshot = model.join("snapshots").join(COMMIT);
    let lacks = |file: &str| match cached(&name("owner/tiny"), dir.path()) {
        Err(HubError::Incomplete { missing, .. }) => assert_eq!(missing, file),
        other => panic!("{other:?}"),
    };
    // A link whose blob is gone.
    fs::remove_file(model.join("blobs/blob-of-model.safetensors")).unwrap();
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    lacks("model.safetensors");
    let index = snapshot.join("model.safetensors.index.json");
    write(&index, r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#);
    write(&snapshot.join("model-1.safetensors"), "w");
    lacks("model-2.safetensors");
    write(&snapshot.join("model-2.safetensors"), "w");
    assert_eq!(cached(&name("owner/tiny"), dir.path()).unwrap(), snapshot);
    for wrong in
        ["{", "{}", r#"{"weight_map": {"a": "../../../secret"}}"#, r#"{"weight_map": {"a": "/etc/passwd"}}"#]
    {
        write(&index, wrong);
        let error = cached(&name("owner/tiny"), dir.path()).unwrap_err();
        assert!(matches!(error, HubError::Damaged { .. }), "{error}");
    }
    fs::remove_file(snapshot.join("config.json")).unwrap();
    lacks("config.json");
}

#[test]
fn a_ref_does_not_lead_out_of_the_cache() {
    let dir = cache();
    let model = dir.path().join("models--owner--tiny");
    write(&dir.path().join("outside/config.json"), "{}");
    write(&dir.path().join("outside/model.safetensors"), "w");
    let outside = dir.path().join("outside").display().to_string();
    for wrong in ["../../outside", &outside, "..", "", "main", &COMMIT[1..], &format!("{COMMIT}/.."), "C:\\x"]
    {
        write(&model.join("refs/main"), wrong);
        let error = cached(&name("owner/tiny"), dir.path()).unwrap_err();
        assert!(matches!(error, HubError::Damaged { .. }), "{wrong:?}: {error}");
        assert!(error.to_string().contains("refs/main"));
        assert!(cached(&name("owner/tiny@other"), dir.path()).is_err());
    }
}

#[test]
fn the_cache_is_where_the_variables_say() {
    let at = |set: &[(&str, &str)]| {
        let variable = |key: &str| set.iter().find(|(k, _)| *k == key).map(|(_, v)| v.to_string());
        cache_dir_in(&variable, "/home/me".into()).display().to_string().replace('\\', "/")
    };
    assert_eq!(at(&[]), "/home/me/.cache/huggingface/hub");
    assert_eq!(at(&[("XDG_CACHE_HOME", "/c")]), "/c/huggingface/hub");
    assert_eq!(at(&[("HF_HOME", "/hf"), ("XDG_CACHE_HOME", "/c")]), "/hf/hub");
    assert_eq!(at(&[("HF_HOME", "~/hf")]), "/home/me/hf/hub");
    assert_eq!(at(&[("HF_HUB_CACHE", "/cache"), ("HF_HOME", "/hf")]), "/cache");
    assert_eq!(at(&[("HF_HUB_CACHE", ""), ("HF_HOME", "")]), "/home/me/.cache/huggingface/hub");
}
