//! What is left out, and what is not.

use std::path::Path;

use backup_testkit::MemorySink;

use crate::support::{back_up, engine, entries, files, reader, stored_below};

fn make(root: &Path, paths: &[&str]) {
    for path in paths {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
}

/// Makes `paths`, saves them with the settings, and returns what was stored of them.
async fn kept(paths: &[&str], settings: &str, prepare: impl Fn(&Path)) -> Vec<String> {
    let home = tempfile::tempdir().unwrap();
    make(home.path(), paths);
    prepare(home.path());
    let yaml =
        format!("paths: [{}]\n{}", home.path().display(), settings.replace("HOME", &home.path().display().to_string()));
    let sink = MemorySink::default();
    let manifest = back_up(&files(&yaml), &sink).await.unwrap();
    stored_below(&reader(&sink, &manifest).await, home.path()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn excluded_paths_are_left_out() {
    let paths = [
        "a.tmp",
        "b/c.tmp",
        "b/keep",
        "node_modules/x/y",
        "b/node_modules/z",
        "cache/x",
        "b/cache/y",
        "log",
        "b/log/1",
    ];
    let kept = kept(&paths, "exclude: ['*.tmp', node_modules, HOME/cache, 'log/', '!b/c.tmp']", |_| {}).await;
    assert_eq!(kept, ["b", "b/c.tmp", "b/cache", "b/cache/y", "b/keep", "log"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_included_files_are_kept() {
    let paths = ["a.conf", "a.txt", "b/c.conf", "b/c.txt", "docs/x/y.txt", "docs/secret.key"];
    let kept = kept(&paths, "include: ['*.conf', docs/]\nexclude: ['*.key']", |_| {}).await;
    assert_eq!(kept, ["a.conf", "b", "b/c.conf", "docs", "docs/x", "docs/x/y.txt"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ignore_files_rule_their_folder_and_nearer_ones_win() {
    let paths = [
        "a.log",
        "sub/a.log",
        "sub/deep/a.log",
        "sub/deep/b.log",
        "sub/only",
        "only",
        "build/x",
        "sub/build",
        "anchored/x",
        "sub/anchored/x",
    ];
    let kept = kept(&paths, "", |home| {
        std::fs::write(home.join(".stackignore"), "# a comment\n*.log\nbuild/\n/anchored\n").unwrap();
        std::fs::write(home.join("sub/.stackignore"), "!a.log\nonly\n").unwrap();
        std::fs::write(home.join("sub/deep/.stackignore"), "\\#x\n").unwrap();
    })
    .await;
    let expected = [
        ".stackignore",
        "only",
        "sub",
        "sub/.stackignore",
        "sub/a.log",
        "sub/anchored",
        "sub/anchored/x",
        "sub/build",
        "sub/deep",
        "sub/deep/.stackignore",
        "sub/deep/a.log",
    ];
    assert_eq!(kept, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_ignore_files_can_be_named() {
    let prepare = |home: &Path| std::fs::write(home.join(".gitignore"), "x\n").unwrap();
    assert_eq!(kept(&["x", "y"], "", prepare).await, [".gitignore", "x", "y"]);
    assert_eq!(kept(&["x", "y"], "ignore_files: [.gitignore]", prepare).await, [".gitignore", "y"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_content_of_cache_directories_is_left_out() {
    let paths = ["cache/x", "cache/sub/y", "fake/x", "z"];
    let prepare = |home: &Path| {
        std::fs::write(home.join("cache/CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55\n# by a test")
            .unwrap();
        std::fs::write(home.join("fake/CACHEDIR.TAG"), "Signature: something else").unwrap();
    };
    assert_eq!(
        kept(&paths, "", prepare).await,
        ["cache", "cache/CACHEDIR.TAG", "fake", "fake/CACHEDIR.TAG", "fake/x", "z"]
    );
    let all = kept(&paths, "exclude_caches: false", prepare).await;
    assert!(all.contains(&"cache/sub/y".to_owned()));
}

/// `/dev` is a file system with others mounted in it, on every Linux machine.
#[tokio::test(flavor = "multi_thread")]
async fn one_file_system_stops_at_mount_points() {
    let stored = async |yaml: &str| {
        let sink = MemorySink::default();
        let manifest = back_up(&files(yaml), &sink).await.unwrap();
        let from = reader(&sink, &manifest).await;
        entries(&from).await.into_iter().map(|entry| entry.path.to_string()).collect::<Vec<_>>()
    };
    let ptmx = "dev/pts/ptmx".to_owned();
    assert!(stored("paths: [/dev]\nexclude: [/dev/shm]").await.contains(&ptmx));
    let inside = stored("paths: [/dev]\none_file_system: true\nexclude: [/dev/shm]").await;
    assert!(
        inside.contains(&"dev/pts".to_owned()) && inside.contains(&"dev/null".to_owned()) && !inside.contains(&ptmx)
    );
    let named = stored("paths: [/dev, /dev/pts]\none_file_system: true\nexclude: [/dev/shm]").await;
    assert!(named.contains(&ptmx), "a path that is named is saved whatever file system it is on");
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_in_one_another_are_merged_and_survive_filters() {
    let home = tempfile::tempdir().unwrap();
    make(home.path(), &["a/x", "a/skip/y", "a/skip/sub/z", "a-b", "single"]);
    let at = |path: &str| home.path().join(path).display().to_string();
    let yaml =
        format!("paths: [{}, {}, {}, {}]\nexclude: [skip, single]", at("a/skip/sub"), at("a"), at("a/"), at("single"));
    let sink = MemorySink::default();
    let manifest = back_up(&files(&yaml), &sink).await.unwrap();
    let from = reader(&sink, &manifest).await;
    assert_eq!(stored_below(&from, home.path()).await, ["a", "a/skip", "a/skip/sub", "a/skip/sub/z", "a/x", "single"]);
    assert_eq!(manifest.sources[0].details["roots"], serde_json::json!([at("a"), at("single")]));
    assert_eq!(manifest.sources[0].warnings, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_path_is_an_error_and_a_link_is_told() {
    let home = tempfile::tempdir().unwrap();
    make(home.path(), &["real/x"]);
    let link = home.path().join("link");
    std::os::unix::fs::symlink("real", &link).unwrap();
    let sink = MemorySink::default();
    let manifest = back_up(&files(&format!("paths: [{}]", link.display())), &sink).await.unwrap();
    assert_eq!(stored_below(&reader(&sink, &manifest).await, home.path()).await, ["real", "real/x"]);
    assert!(manifest.sources[0].warnings[0].contains("symbolic link"), "{:?}", manifest.sources[0].warnings);
    let missing = format!("paths: [{}, {}/missing]", link.display(), home.path().display());
    let error = back_up(&files(&missing), &sink).await.unwrap_err();
    assert_eq!(error.kind(), backup_core::ErrorKind::NotFound);
    assert!(error.to_string().contains("missing") && error.remedy().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_counted_not_saved() {
    let home = tempfile::tempdir().unwrap();
    make(home.path(), &["x"]);
    let _listener = std::os::unix::net::UnixListener::bind(home.path().join("socket")).unwrap();
    let sink = MemorySink::default();
    let manifest = back_up(&files(&format!("paths: [{}]", home.path().display())), &sink).await.unwrap();
    assert_eq!(stored_below(&reader(&sink, &manifest).await, home.path()).await, ["x"]);
    assert_eq!(manifest.sources[0].details["left_out_sockets"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_effect_is_said() {
    let home = tempfile::tempdir().unwrap();
    make(home.path(), &["a.conf", "docs/b.txt", "logs/keep", "sub/cache/keep", "sub/cache/x"]);
    std::fs::write(home.path().join("sub/.stackignore"), "/cache/\n!/cache/keep\n").unwrap();
    let warnings = async |settings: &str| {
        let yaml = format!("paths: [{}]\n{settings}", home.path().display());
        back_up(&files(&yaml), &MemorySink::default()).await.unwrap().sources[0].warnings.clone()
    };
    let ignored = "`!/cache/keep` takes nothing back from `/";
    let cases = [
        ("include: ['*.conf', docs/, '*.txt', sub/]", vec![ignored]),
        ("include: ['*.conf', '*.cnof', '!*.x', sub/]", vec![ignored, "`include`: `*.cnof` brought nothing"]),
        ("include: ['*.conf', keep, sub/]\nexclude: [keep]", vec![ignored, "`include`: `keep` brought nothing"]),
        ("exclude: [logs/, '!logs/keep', sub]", vec!["`!logs/keep` takes nothing back from `/"]),
        ("exclude: ['logs/*', '!logs/keep', sub, '!keep']", vec![]),
        ("exclude: ['*']", vec!["nothing but folders was saved"]),
    ];
    for (settings, expected) in cases {
        let told = warnings(settings).await;
        assert_eq!(told.len(), expected.len(), "{settings}: {told:?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{settings}: {told}");
        }
    }
}

#[test]
fn a_wrong_configuration_is_an_error_of_the_plan() {
    let cases = [
        ("paths: []", "`paths` is empty"),
        ("path: [/srv]", "unknown field `path`"),
        ("paths: ['']", "a path is empty"),
        ("paths: [/srv]\nexclude: ['[z-a]']", "is not a pattern"),
        ("paths: [/srv]\nignore_files: [a/b]", "is not the name of a file"),
        ("paths: [/srv]\none_file_system: perhaps", "one_file_system"),
    ];
    for (yaml, expected) in cases {
        let error = engine(&engine_files::FILES, yaml).unwrap_err();
        assert_eq!(error.kind(), backup_core::ErrorKind::Plan, "{yaml}");
        assert!(error.chain().contains(expected), "{yaml}: {error:?}");
    }
}

#[test]
fn schemas_describe_every_setting() {
    let schema = serde_json::to_value((engine_files::FILES.schema)()).unwrap();
    for (name, property) in schema["properties"].as_object().unwrap() {
        assert!(property["description"].is_string(), "{name} is described");
    }
    let schema = serde_json::to_value((engine_files::SQLITE.schema)()).unwrap();
    assert!(schema["properties"]["busy_timeout"]["description"].is_string());
    assert_eq!(schema["additionalProperties"], false);
}

#[test]
fn discovered_fragments_are_plans_that_build() {
    for descriptor in [engine_files::FILES, engine_files::SQLITE] {
        for found in (descriptor.discover)() {
            let fragment = found.yaml.strip_prefix(&format!("{}:\n", descriptor.name)).unwrap();
            engine(&descriptor, fragment).unwrap();
            backup_core::SourceName::new(found.name).unwrap();
        }
    }
    assert!((engine_files::FILES.discover)().iter().any(|found| found.yaml.contains("/etc")));
}
