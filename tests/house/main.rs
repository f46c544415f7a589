//! The house rules as tests: they read the source tree, and fail where it breaks a rule.
//!
//! Owns walking the tree and reporting; leaves each rule to `rules`, `imports` and `documents`.
//! Invariant: every rule has a test of its own with a bad snippet, which shows that the rule can fail.

mod documents;
mod imports;
mod rules;
mod source;

use source::Source;
use std::path::{Path, PathBuf};

/// What holds no work of ours; in a second work tree .git is a file.
const SKIPPED: [&str; 2] = ["target", ".git"];
/// Marks a directory that can be made again (https://bford.info/cachedir/); cargo writes it.
const CACHE_TAG: &str = "CACHEDIR.TAG";
/// Larger files are data, not text that somebody wrote.
const TEXT_CAP_BYTES: u64 = 1 << 20;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All text files under a directory, as (path relative to the root, text), sorted. Links are not followed.
fn texts(under: &str) -> Vec<(String, String)> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if SKIPPED.iter().any(|name| entry.file_name() == *name) || entry.path().join(CACHE_TAG).exists() {
                continue;
            }
            if kind.is_dir() {
                walk(&entry.path(), found);
            } else if kind.is_file() && entry.metadata().unwrap().len() <= TEXT_CAP_BYTES {
                found.push(entry.path());
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(under), &mut found);
    found.sort();
    let relative = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_string();
    found.iter().filter_map(|path| Some((relative(path), std::fs::read_to_string(path).ok()?))).collect()
}

/// The Rust files under src/.
fn sources() -> Vec<Source> {
    let found: Vec<Source> = texts("src")
        .into_iter()
        .filter(|(path, _)| path.ends_with(".rs"))
        .map(|(path, text)| Source::new(&path, &text))
        .collect();
    assert!(found.len() > 20, "the source tree was not found");
    source::mark_test_files(found)
}

/// Fails with every violation on a line of its own.
fn none(rule: &str, violations: Vec<String>) {
    assert!(violations.is_empty(), "{rule}: {} times\n  {}", violations.len(), violations.join("\n  "));
}

fn each_source(rule: &str, check: impl Fn(&Source) -> Vec<String>) {
    none(rule, sources().iter().flat_map(check).collect());
}

#[test]
fn modules_import_only_what_the_matrix_allows() {
    let sources = sources();
    let macros = imports::macro_owners(&sources);
    none("import matrix", sources.iter().flat_map(|source| imports::check(source, &macros)).collect());
}

#[test]
fn matrix_names_every_module() {
    let lib = Source::new("src/lib.rs", &std::fs::read_to_string(root().join("src/lib.rs")).unwrap());
    none("modules without a row in the matrix", imports::modules_without_row(&lib));
}

#[test]
fn files_are_short() {
    let sources = sources();
    for source in sources.iter().filter(|source| source.lines() > rules::SOFT_LINES) {
        println!("{}: {} lines (soft limit {})", source.path, source.lines(), rules::SOFT_LINES);
    }
    none("file length", sources.iter().flat_map(rules::length).collect());
}

#[test]
fn files_begin_with_what_they_own_and_keep() {
    each_source("head of file", rules::header);
}

#[test]
fn nothing_unwraps_or_is_silently_dropped() {
    each_source("unwrap and silence", rules::unwraps);
}

#[test]
fn nothing_is_left_unfinished() {
    each_source("unfinished work", rules::unfinished);
}

#[test]
fn unsafe_stays_in_its_places_and_says_why() {
    each_source("unsafe", rules::unsafe_code);
}

#[test]
fn only_the_printers_print() {
    each_source("printing", rules::printing);
}

#[test]
fn only_main_exits() {
    each_source("exit", rules::exits);
}

#[test]
fn pure_modules_touch_nothing() {
    each_source("purity", rules::purity);
}

#[test]
fn functions_take_few_parameters() {
    each_source("parameters", rules::parameters);
}

#[test]
fn dependencies_are_the_listed_ones() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    none("dependencies", rules::dependencies(&manifest));
}

#[test]
fn no_file_names_a_machine_of_ours() {
    // The rule's own file has the words that it looks for.
    let files = texts("").into_iter().filter(|(path, _)| path != "tests/house/documents.rs");
    none("machine", files.flat_map(|(path, text)| documents::machine_paths(&path, &text)).collect());
}

#[test]
fn documents_show_command_lines_that_parse() {
    let mut documents = ["README.md", "DESIGN.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(String::from).to_vec();
    let docs = std::fs::read_dir(root().join("docs")).expect("read docs/");
    documents.extend(docs.map(|entry| format!("docs/{}", entry.unwrap().file_name().to_string_lossy())));
    for document in documents.iter().filter(|name| name.ends_with(".md")) {
        let text = std::fs::read_to_string(root().join(document)).unwrap_or_else(|error| panic!("{document}: {error}"));
        none("command lines", documents::command_lines(document, &text));
    }
}

#[test]
fn readme_names_every_exit_code_and_the_test_command() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    for (code, _) in ktstr::cli::topics::EXIT_CODES {
        assert!(readme.contains(&format!("| {code} |")), "README.md does not explain exit code {code}");
    }
    assert!(readme.contains("make test"));
}

#[test]
fn fault_matrix_in_the_documents_is_the_one_that_is_played() {
    let path = root().join("docs/faults.md");
    let text = ktstr::run::faults::markdown();
    if std::env::var_os("KTSTR_WRITE_DOCS").is_some() {
        std::fs::create_dir_all(root().join("docs")).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == text,
        "docs/faults.md is out of date: KTSTR_WRITE_DOCS=1 cargo test --test house fault_matrix writes it"
    );
}

#[test]
fn catalogue_in_the_documents_has_the_faults_that_are_played() {
    let path = root().join("docs/scenarios.md");
    let tables = ktstr::run::faults::catalog::markdown();
    if std::env::var_os("KTSTR_WRITE_DOCS").is_some() {
        let text = std::fs::read_to_string(&path).unwrap();
        let own = text.split("| fault | what is wrong |").next().unwrap();
        std::fs::write(&path, format!("{own}{tables}")).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there.ends_with(&tables),
        "docs/scenarios.md is out of date: KTSTR_WRITE_DOCS=1 cargo test --test house catalogue_in writes it"
    );
}
