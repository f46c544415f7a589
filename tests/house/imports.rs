//! The import matrix: which module of the crate may name which.
//!
//! Owns the matrix and the reading of paths; leaves code under `#[cfg(test)]` free.
//! Invariant: a module without a row may import nothing, and a new module without a row fails.

use super::source::{Source, is_word};

/// Everything may use these.
const BASE: &[&str] = &["error", "units", "log"];

/// (module, what it may import besides itself and BASE). `proto::x` means that part of proto only.
const MATRIX: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("units", &[]),
    ("log", &[]),
    ("proto", &[]),
    ("sys", &["proto"]),
    ("channel", &["proto", "sys"]),
    ("cgroup", &["proto", "sys"]),
    ("workload", &["proto", "sys"]),
    ("image", &["proto", "sys"]),
    // A VM is a shape, bytes, and an end; plans and scenarios are not its business.
    (
        "vmm",
        &[
            "proto::codec",
            "proto::cpuset",
            "proto::frame",
            "proto::message",
            "proto::numa",
            "proto::perf",
            "proto::registers",
            "proto::topology",
            "sys",
        ],
    ),
    ("klog", &["proto"]),
    ("scx", &["proto", "sys", "klog"]),
    ("verdict", &["proto", "klog"]),
    ("scenario", &["proto", "sys", "cgroup", "workload", "verdict"]),
    ("guest", &["proto", "sys", "channel", "cgroup", "workload", "klog", "scx", "verdict", "scenario"]),
    ("run", &["proto", "sys", "channel", "cgroup", "workload", "image", "vmm", "klog", "scx", "verdict", "scenario"]),
    ("report", &["proto", "sys", "klog", "scx", "verdict", "run"]),
    (
        "cli",
        &[
            "proto", "sys", "channel", "cgroup", "workload", "image", "vmm", "klog", "scx", "verdict", "scenario",
            "run", "report",
        ],
    ),
    // The programs of others: the roles of main.rs, the words of Rust's own test harness, a run as a value.
    ("harness", &["proto", "sys", "verdict", "scenario", "guest", "run", "cli"]),
];

/// Names that lib.rs lifts to the crate's root, and whose they are.
const LIFTED: &[(&str, &str)] = &[("Error", "error"), ("Result", "error")];
/// The crate's roots see everything.
const ROOTS: &[&str] = &["src/main.rs", "src/lib.rs"];

/// Exported macros live at the crate's root: (name, module that defines it).
pub fn macro_owners(sources: &[Source]) -> Vec<(String, String)> {
    let mut owners = Vec::new();
    for source in sources {
        for (at, _) in source.code.match_indices("macro_rules!") {
            let name: String = source.code[at + 12..].trim_start().chars().take_while(|c| is_word(*c)).collect();
            owners.push((name, source.module().to_string()));
        }
    }
    owners
}

/// Modules that lib.rs declares and the matrix forgets.
pub fn modules_without_row(lib: &Source) -> Vec<String> {
    let declared = lib.live.lines().filter_map(|line| line.trim().strip_suffix(';')?.split("mod ").nth(1));
    declared.filter(|name| !MATRIX.iter().any(|(module, _)| module == name)).map(str::to_string).collect()
}

/// The imports of one file that the matrix does not allow.
pub fn check(source: &Source, macros: &[(String, String)]) -> Vec<String> {
    if ROOTS.contains(&source.path.as_str()) {
        return Vec::new();
    }
    let module = source.module();
    let allowed = MATRIX.iter().find(|(name, _)| *name == module).map(|(_, allowed)| *allowed).unwrap_or(&[]);
    let mut violations = Vec::new();
    for (line, path) in crate_paths(source) {
        let Some(first) = path.first() else { continue };
        let lifted = LIFTED.iter().find(|(name, _)| name == first).map(|(_, owner)| *owner);
        let exported = macros.iter().find(|(name, _)| name == first).map(|(_, owner)| owner.as_str());
        let target = lifted.or(exported).unwrap_or(first);
        let part = path.get(1).map(|second| format!("{target}::{second}")).unwrap_or_default();
        let fits = |name: &&str| *name == target || *name == part || (exported.is_some() && name.starts_with(target));
        if target != module && !BASE.contains(&target) && !allowed.iter().any(fits) {
            violations.push(source.at(line, &format!("{module} may not import {}", path.join("::"))));
        }
    }
    violations
}

/// All paths that begin at the crate's root, however they are written, with their line index.
fn crate_paths(source: &Source) -> Vec<(usize, Vec<String>)> {
    let tokens = tokens(&source.live);
    let own = own_path(&source.path);
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (line, token) = &tokens[at];
        match token.as_str() {
            "crate" | "super" if tokens.get(at + 1).is_some_and(|(_, next)| next == "::") => {
                let mut found = Vec::new();
                at = tree(&tokens, at, &[], &mut found);
                paths.extend(found.into_iter().filter_map(|path| Some((*line, absolute(&path, &own)?))));
            }
            _ => at += 1,
        }
    }
    paths
}

/// The module path of a file: `src/run/probe.rs` is run, probe.
fn own_path(path: &str) -> Vec<String> {
    let stem = path.trim_start_matches("src/").trim_end_matches(".rs");
    stem.split('/').filter(|part| *part != "mod").map(str::to_string).collect()
}

/// From the crate's root; none where the path leaves it.
fn absolute(path: &[String], own: &[String]) -> Option<Vec<String>> {
    if path[0] == "crate" {
        return Some(path[1..].to_vec());
    }
    let ups = path.iter().take_while(|part| *part == "super").count();
    let base = own.get(..own.len().checked_sub(ups)?)?;
    Some(base.iter().chain(&path[ups..]).cloned().collect())
}

/// Reads a path or a use tree from `at`, adds each full path to `found`, and returns where it ends.
fn tree(tokens: &[(usize, String)], mut at: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    let is = |at: usize, wanted: &str| tokens.get(at).is_some_and(|(_, token)| token == wanted);
    loop {
        if is(at, "{") {
            at += 1;
            while at < tokens.len() && !is(at, "}") {
                at = if is(at, ",") { at + 1 } else { tree(tokens, at, &path, found).max(at + 1) };
            }
            return at + 1;
        }
        match tokens.get(at) {
            Some((_, token)) if token.chars().all(is_word) || token == "*" => path.push(token.clone()),
            _ => break,
        }
        at += 1;
        if !is(at, "::") {
            break;
        }
        at += 1;
    }
    found.push(path);
    // A renaming, inside or outside of braces.
    if is(at, "as") { at + 2 } else { at }
}

/// Words, `::`, and single other characters, each with its line index.
fn tokens(code: &str) -> Vec<(usize, String)> {
    let mut tokens = Vec::new();
    for (line, text) in code.lines().enumerate() {
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let length = match c {
                _ if rest.starts_with("::") => 2,
                c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                c => c.len_utf8(),
            };
            if !c.is_whitespace() {
                tokens.push((line, rest[..length].to_string()));
            }
            rest = &rest[length..];
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &str, code: &str) -> Vec<String> {
        let macros = [("wire_enum".to_string(), "proto".to_string())];
        check(&Source::new(path, code), &macros)
    }

    #[test]
    fn forbidden_imports_are_found_however_they_are_written() {
        for (path, code, what) in [
            ("src/proto/plan.rs", "use crate::sys::fd;", "crate"),
            ("src/guest/mod.rs", "fn a() { crate::vmm::run() }", "inline"),
            ("src/run/job.rs", "use crate::{error::Error, guest::power};", "group"),
            ("src/run/job.rs", "use crate::{\n    proto::{plan, record},\n    guest,\n};", "long group"),
            ("src/verdict/assert.rs", "use super::super::sys;", "super of a file"),
            ("src/verdict/mod.rs", "use super::sys as quiet;", "super of a module"),
            ("src/vmm/mod.rs", "use crate::proto::plan::Plan;", "part of proto"),
            ("src/vmm/mod.rs", "use crate::proto::{topology, plan};", "part of proto in a group"),
            ("src/error.rs", "use crate::units;\nuse crate::cli;", "base"),
            ("src/klog/mod.rs", "use crate::scx;", "same tier"),
            ("src/newcomer/mod.rs", "use crate::proto;", "no row"),
            ("src/units.rs", "crate::wire_enum! {}", "macro"),
        ] {
            assert_eq!(refused(path, code).len(), 1, "{what}: {:?}", refused(path, code));
        }
        assert_eq!(
            refused("src/proto/a.rs", "\n\nuse crate::sys::fd;"),
            ["src/proto/a.rs:3: proto may not import sys::fd"]
        );
    }

    #[test]
    fn allowed_imports_tests_strings_and_roots_pass() {
        for (path, code) in [
            ("src/run/job.rs", "use crate::{Error, Result, vmm::kvm, proto::{plan::Plan, record}};"),
            ("src/vmm/mod.rs", "use crate::proto::topology::Topology; use crate::wire_enum; use super::vmm::kvm;"),
            ("src/verdict/assert.rs", "use super::checks; use crate::klog;"),
            ("src/proto/plan.rs", "#[cfg(test)]\nmod tests { use crate::sys; }"),
            ("src/proto/plan.rs", "// crate::sys\nconst A: &str = \"crate::sys\";"),
            ("src/main.rs", "use ktstr::guest; use crate::vmm;"),
        ] {
            assert_eq!(refused(path, code), Vec::<String>::new(), "{path}: {code}");
        }
    }

    #[test]
    fn module_without_row_is_told() {
        let lib = Source::new("src/lib.rs", "pub mod proto;\nmod newcomer;\n");
        assert_eq!(modules_without_row(&lib), ["newcomer"]);
    }

    #[test]
    fn macros_belong_to_the_module_that_defines_them() {
        let source = Source::new("src/proto/codec.rs", "#[macro_export]\nmacro_rules! wire_enum { () => {} }\n");
        assert_eq!(macro_owners(&[source]), [("wire_enum".to_string(), "proto".to_string())]);
    }
}
