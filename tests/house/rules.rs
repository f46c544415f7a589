//! The rules about single files.
//!
//! Owns one function a rule, from a prepared file to its violations; leaves walking the tree to `main`.
//! Invariant: each rule has a test with a snippet that breaks it.

use super::source::{Source, is_word};

/// A file beyond this is told.
pub const SOFT_LINES: usize = 500;
/// A file beyond this fails.
pub const HARD_LINES: usize = 800;
/// A seventh parameter means that a struct is missing.
const MOST_PARAMETERS: usize = 6;

/// Where `unsafe` may stand.
const UNSAFE_PLACES: &[&str] =
    &["src/sys/", "src/vmm/kvm", "src/vmm/memory", "src/workload/slot", "src/workload/kinds", "src/channel/ring"];
/// Who may print: the command line, reports, and a built-in scheduler, whose output is its own.
const PRINTERS: &[&str] = &["src/cli/", "src/report/", "src/scx/probe", "src/main.rs"];
/// Modules whose results depend on nothing but their arguments.
const PURE: &[&str] = &[
    "src/proto/",
    "src/verdict/",
    "src/klog/",
    "src/units.rs",
    "src/cli/flags.rs",
    "src/cli/args.rs",
    "src/cli/parse.rs",
    "src/cli/describe.rs",
    "src/cli/matrix.rs",
    "src/cli/split.rs",
];
/// What a pure module does not name.
const IMPURE: &[&str] = &[
    "libc::",
    "std::fs",
    "std::net",
    "std::process",
    "std::env",
    "std::thread",
    "Instant::now",
    "SystemTime",
    "File::",
];

/// All that the binary is built from.
const DEPENDENCIES: &[&str] = &[
    "crc32fast",
    "kvm-bindings",
    "kvm-ioctls",
    "lexopt",
    "libc",
    "linux-loader",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
];

pub fn length(source: &Source) -> Vec<String> {
    let lines = source.lines();
    let beyond = lines > HARD_LINES;
    beyond.then(|| source.at(lines, &format!("{lines} lines, {HARD_LINES} at most"))).into_iter().collect()
}

/// `//!` with three parts: what it is, `Owns`, `Invariant:`.
pub fn header(source: &Source) -> Vec<String> {
    let head: Vec<&str> = source.raw.lines().take_while(|line| line.starts_with("//!")).collect();
    let has = |word: &str| head.iter().any(|line| line.contains(word));
    let mut missing = Vec::new();
    if head.is_empty() {
        missing.push(source.at(0, "does not begin with //!"));
    } else {
        for word in ["Owns ", "Invariant: "] {
            if !has(word) {
                missing.push(source.at(0, &format!("the //! head has no '{}'", word.trim())));
            }
        }
    }
    missing
}

pub fn unwraps(source: &Source) -> Vec<String> {
    const SILENT: [&str; 7] =
        [".unwrap()", ".unwrap_err()", ".expect(", ".expect_err(", "let _ =", "let _=", "unwrap_unchecked"];
    let mut found: Vec<String> = SILENT.iter().flat_map(|needle| source.live_hits(needle)).collect();
    for (at, _) in source.live.match_indices(".ok();") {
        let statement = source.live[..at].rsplit([';', '{', '}']).next().unwrap_or("");
        if !statement.contains('=') && !whole(statement, "return") {
            found.push(source.at(source.live[..at].matches('\n').count(), "a Result is dropped by .ok();"));
        }
    }
    found
}

pub fn unfinished(source: &Source) -> Vec<String> {
    const MACROS: [&str; 3] = ["todo!", "unimplemented!", "dbg!"];
    const WORDS: [&str; 5] = ["TODO", "FIXME", "XXX", "for now", "placeholder"];
    let mut found: Vec<String> = MACROS.iter().flat_map(|needle| source.live_hits(needle)).collect();
    for (at, line) in source.raw.lines().enumerate() {
        if WORDS.iter().any(|word| whole(line, word)) {
            found.push(source.at(at, line));
        }
    }
    found
}

/// Whether the words stand by themselves.
fn whole(line: &str, words: &str) -> bool {
    line.match_indices(words)
        .any(|(at, _)| !line[..at].ends_with(is_word) && !line[at + words.len()..].starts_with(is_word))
}

/// `unsafe` only in its places, and each with a SAFETY comment directly above its statement.
pub fn unsafe_code(source: &Source) -> Vec<String> {
    let allowed = UNSAFE_PLACES.iter().any(|place| source.is_in(place));
    let code: Vec<&str> = source.code.lines().collect();
    let raw: Vec<&str> = source.raw.lines().collect();
    let mut violations = Vec::new();
    for (at, line) in code.iter().enumerate() {
        let used = whole(line, "unsafe");
        let allows = line.contains("allow(unsafe_code)");
        if !allowed && (used || allows) {
            violations.push(source.at(at, "unsafe is not at home here"));
        } else if used && !line.contains("allow(") && !explained(&code, &raw, at) {
            violations.push(source.at(at, "no // SAFETY: directly above"));
        }
    }
    violations
}

/// Walks up from a line to the comment above its statement, and looks for SAFETY in it.
fn explained(code: &[&str], raw: &[&str], at: usize) -> bool {
    let mut index = at;
    while index > 0 {
        index -= 1;
        let (bare, text) = (code[index].trim_end(), raw[index].trim());
        if text.starts_with("//") {
            let block = raw[..=index].iter().rev().take_while(|line| line.trim().starts_with("//"));
            return block.into_iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety"));
        }
        // The statement before ends here; an attribute or the first half of our own statement does not.
        if bare.is_empty() || bare.ends_with([';', '{', '}', ',']) {
            return false;
        }
    }
    false
}

pub fn printing(source: &Source) -> Vec<String> {
    if PRINTERS.iter().any(|place| source.is_in(place)) {
        return Vec::new();
    }
    ["println!", "eprintln!", "print!", "eprint!"].iter().flat_map(|needle| source.live_hits(needle)).collect()
}

pub fn exits(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    if source.path != "src/main.rs" {
        found.extend(["process::exit(", "process::abort("].iter().flat_map(|needle| source.live_hits(needle)));
    }
    if !source.is_in("src/sys/") {
        found.extend(["libc::_exit", "libc::exit", "libc::abort"].iter().flat_map(|needle| source.live_hits(needle)));
    }
    found
}

pub fn purity(source: &Source) -> Vec<String> {
    if !PURE.iter().any(|place| source.is_in(place)) {
        return Vec::new();
    }
    IMPURE.iter().flat_map(|needle| source.live_hits(needle)).collect()
}

pub fn parameters(source: &Source) -> Vec<String> {
    let mut violations = Vec::new();
    for (at, _) in source.live.match_indices("fn ") {
        let before = source.live[..at].chars().next_back();
        let signature = &source.live[at + 3..];
        let name: String = signature.chars().take_while(|c| is_word(*c)).collect();
        if before.is_some_and(is_word) || name.is_empty() {
            continue;
        }
        let count = parameter_count(&signature[name.len()..]);
        if count > MOST_PARAMETERS {
            let line = source.live[..at].matches('\n').count();
            violations.push(source.at(line, &format!("{name} takes {count} parameters, {MOST_PARAMETERS} at most")));
        }
    }
    violations
}

/// Counts the parameters after a function's name, generics skipped; `self` counts as none.
fn parameter_count(signature: &str) -> usize {
    let signature = signature.replace("->", "  ");
    let (mut angles, mut depth, mut parameter, mut count) = (0i32, 0i32, String::new(), 0);
    let is_counted = |text: &str| !text.trim().is_empty() && !text.trim().ends_with("self");
    for c in signature.chars() {
        match c {
            '<' => angles += 1,
            '>' => angles -= 1,
            '(' | '[' | '{' if depth > 0 || angles == 0 => depth += 1,
            ')' | ']' | '}' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    return count + usize::from(is_counted(&parameter));
                }
            }
            ',' if depth == 1 && angles == 0 => {
                count += usize::from(is_counted(&parameter));
                parameter.clear();
                continue;
            }
            _ => {}
        }
        if depth > 0 && !(depth == 1 && c == '(') {
            parameter.push(c);
        }
    }
    count
}

/// Reads the sections of the manifest that end in the binary or in its build.
pub fn dependencies(manifest: &str) -> Vec<String> {
    let mut violations = Vec::new();
    let mut found = Vec::new();
    let mut section = "";
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
            if section.contains("build-dependencies")
                || (section.contains("target") && section.contains("dependencies"))
            {
                violations.push(format!("Cargo.toml: section [{section}]"));
            }
            if let Some(name) = section.strip_prefix("dependencies.") {
                found.push(name);
            }
        } else if let (Some((name, _)), "dependencies") = (line.split_once('='), section) {
            found.push(name.trim());
        }
    }
    for name in &found {
        if !DEPENDENCIES.contains(name) {
            violations.push(format!("Cargo.toml: {name} is not on the list"));
        }
    }
    for name in DEPENDENCIES.iter().filter(|name| !found.contains(name)) {
        violations.push(format!("Cargo.toml: {name} is on the list, but not used"));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source::new(path, text)
    }

    #[test]
    fn long_file_fails_and_short_passes() {
        assert!(length(&source("src/a.rs", &"\n".repeat(HARD_LINES))).is_empty());
        assert_eq!(length(&source("src/a.rs", &"\n".repeat(HARD_LINES + 1))).len(), 1);
    }

    #[test]
    fn head_without_its_parts_fails() {
        assert!(header(&source("src/a.rs", "//! A.\n//!\n//! Owns b.\n//! Invariant: c.\nuse d;\n")).is_empty());
        assert_eq!(header(&source("src/a.rs", "use d;\n")).len(), 1);
        assert_eq!(header(&source("src/a.rs", "//! A.\nuse d;\n")).len(), 2);
        assert_eq!(header(&source("src/a.rs", "//! A.\n//! Owns b.\n\n//! Invariant: c.\n")).len(), 1);
    }

    #[test]
    fn unwraps_and_silence_fail_outside_tests() {
        for bad in ["a.unwrap();", "a.expect(\"b\");", "let _ = a();", "a().ok();"] {
            assert_eq!(unwraps(&source("src/a.rs", &format!("fn f() {{ {bad} }}"))).len(), 1, "{bad}");
            assert!(unwraps(&source("src/a.rs", &format!("#[cfg(test)]\nmod t {{ fn f() {{ {bad} }} }}"))).is_empty());
            assert!(unwraps(&source("src/a.rs", &format!("// {bad}\n"))).is_empty());
        }
        assert!(unwraps(&source("src/a.rs", "a.unwrap_or(1); let b = a.ok(); let _c = 1;")).is_empty());
    }

    #[test]
    fn unfinished_work_fails() {
        let word = ["FIX", "ME"].concat();
        for bad in ["todo!()".to_string(), format!("// {word} later"), format!("// good enough {} now", "for")] {
            assert_eq!(unfinished(&source("src/a.rs", &bad)).len(), 1, "{bad}");
        }
        assert!(unfinished(&source("src/a.rs", "let nowhere = \"TODOS\"; // for nowhere")).is_empty());
    }

    #[test]
    fn unsafe_without_reason_or_out_of_place_fails() {
        let good = "// SAFETY: a.\nlet b =\n    unsafe { c() };\n";
        assert!(unsafe_code(&source("src/sys/a.rs", good)).is_empty());
        assert_eq!(unsafe_code(&source("src/cli/a.rs", good)).len(), 1);
        for bad in [
            "let b = unsafe { c() };",
            "// because\nunsafe { c() };",
            "// SAFETY: a.\nlet b = 1;\nunsafe { c() };",
            "// SAFETY: a.\n\nunsafe { c() };",
        ] {
            assert_eq!(unsafe_code(&source("src/sys/a.rs", bad)).len(), 1, "{bad}");
        }
        assert_eq!(unsafe_code(&source("src/cli/a.rs", "#![allow(unsafe_code)]")).len(), 1);
        assert!(unsafe_code(&source("src/lib.rs", "#![deny(unsafe_code, unsafe_op_in_unsafe_fn)]")).is_empty());
        assert!(unsafe_code(&source("src/cli/a.rs", "// unsafe\nlet a = \"unsafe\";")).is_empty());
        assert!(
            unsafe_code(&source("src/sys/a.rs", "// SAFETY: a\n// and b.\n#[inline]\nunsafe fn c() {}")).is_empty()
        );
    }

    #[test]
    fn printing_and_exits_fail_outside_their_places() {
        assert_eq!(printing(&source("src/run/a.rs", "eprintln!(\"\");")).len(), 1);
        assert!(printing(&source("src/report/a.rs", "println!(\"\");")).is_empty());
        assert!(printing(&source("src/run/a.rs", "#[cfg(test)]\nmod t { fn a() { println!() } }")).is_empty());
        assert_eq!(exits(&source("src/run/a.rs", "std::process::exit(1)")).len(), 1);
        assert_eq!(exits(&source("src/run/a.rs", "libc::_exit(1)")).len(), 1);
        assert!(exits(&source("src/main.rs", "std::process::exit(1)")).is_empty());
        assert!(exits(&source("src/sys/process.rs", "libc::_exit(1)")).is_empty());
    }

    #[test]
    fn io_in_a_pure_module_fails() {
        assert_eq!(purity(&source("src/verdict/a.rs", "std::fs::read(b)")).len(), 1);
        assert_eq!(purity(&source("src/cli/parse.rs", "std::env::args()")).len(), 1);
        assert_eq!(purity(&source("src/proto/a.rs", "let a = Instant::now();")).len(), 1);
        assert!(purity(&source("src/run/a.rs", "std::fs::read(b)")).is_empty());
    }

    #[test]
    fn seventh_parameter_fails() {
        let six =
            "fn a<T: Fn(u8, u8) -> u8>(&mut self, b: (u8, u8), c: Vec<(u8, u8)>, d: [u8; 2], e: T, f: u8, g: u8) {}";
        assert!(parameters(&source("src/a.rs", six)).is_empty(), "{:?}", parameters(&source("src/a.rs", six)));
        let seven = "fn a(b: u8, c: u8, d: u8, e: u8, f: u8, g: u8,\n h: u8,) -> u8 { x(1, 2) }";
        assert_eq!(parameters(&source("src/a.rs", seven)), ["src/a.rs:1: a takes 7 parameters, 6 at most"]);
        assert!(parameters(&source("src/a.rs", "fn a() { b(1, 2, 3, 4, 5, 6, 7, 8) }")).is_empty());
    }

    #[test]
    fn foreign_missing_and_build_dependencies_fail() {
        let listed: String = DEPENDENCIES.iter().map(|name| format!("{name} = \"1\"\n")).collect();
        let good = format!("[package]\nname = \"k\"\n[dependencies]\n{listed}[dev-dependencies]\nx = \"1\"\n");
        assert_eq!(dependencies(&good), Vec::<String>::new());
        assert_eq!(dependencies(&good.replace("[dev-", "serde = \"1\"\n[dev-")).len(), 1);
        assert_eq!(dependencies(&good.replace("libc = \"1\"\n", "")).len(), 1);
        assert_eq!(dependencies(&format!("{good}[build-dependencies]\ncc = \"1\"\n")).len(), 1);
        assert_eq!(dependencies(&format!("{good}[dependencies.anyhow]\nversion = \"1\"\n")).len(), 1);
    }
}
