//! Packs `guest/` into the base archive that the binary embeds, and names the build.
//!
//! Owns the manifest's syntax and the build's name; leaves the archive format to src/image/cpio.rs.
//! Invariant: the same tree gives the same archive, whatever machine, user or clock builds it.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[allow(dead_code)]
#[path = "src/image/cpio.rs"]
mod cpio;

/// What decides the bytes of the binary: a change here makes a build "dirty".
const SOURCES: [&str; 5] = ["src", "guest", "build.rs", "Cargo.toml", "Cargo.lock"];
/// Digits of the commit in a build's name: enough to be unique, short enough to read out.
const COMMIT_DIGITS: &str = "--short=12";

/// Sections that only unwinding reads, for the linker (GNU ld manual, "Output Section Discarding", "INSERT").
/// The C runtime's own stay: its start-up code names them.
const UNWIND_TABLES: &str = "SECTIONS { /DISCARD/ : {
    *(EXCLUDE_FILE(*crtbegin*.o *crtend*.o) .eh_frame EXCLUDE_FILE(*crtbegin*.o *crtend*.o) .gcc_except_table .gcc_except_table.*)
} } INSERT AFTER .rodata;";

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let guest = root.join("guest");
    let manifest = fs::read_to_string(guest.join("manifest"))?;
    let archive = pack(&manifest, |source| fs::read(guest.join(source)))?;
    fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("base.cpio"), archive)?;

    drop_unwind_tables()?;
    let version = std::env::var("CARGO_PKG_VERSION")?;
    println!("cargo::rustc-env=KTSTR_BUILD={}", commit(&root).unwrap_or(version));
    Ok(())
}

/// Leaves the tables for unwinding out of the released binary, an eighth of it: there a panic ends its process, and there
/// are no symbols for a backtrace. Only musl is linked by a linker that takes such a script for a static program.
fn drop_unwind_tables() -> Result<(), Box<dyn Error>> {
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_ENV", "musl") {
        let script = PathBuf::from(std::env::var("OUT_DIR")?).join("no-unwind-tables.ld");
        fs::write(&script, UNWIND_TABLES)?;
        println!("cargo::rustc-link-arg-bin=ktstr=-T{}", script.display());
    }
    Ok(())
}

/// The archive that a manifest describes; a fault names its line.
fn pack(manifest: &str, read: impl Fn(&str) -> std::io::Result<Vec<u8>>) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut writer = cpio::Writer::new(Vec::new());
    let mut directories = vec![String::new()];
    for (index, line) in manifest.lines().enumerate() {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let fault = |why: String| format!("guest/manifest line {}: {why}", index + 1);
        let mode = |text: &str| u32::from_str_radix(text, 8).map_err(|_| fault(format!("'{text}' is no octal mode")));
        let number = |text: &str| text.parse::<u32>().map_err(|_| fault(format!("'{text}' is no number")));
        let Some(path) = words.get(1) else {
            if words.is_empty() {
                continue;
            }
            return Err(fault("a path is missing".into()).into());
        };
        let parent = path.rsplit_once('/').map(|(parent, _)| parent.to_string());
        if !parent.is_some_and(|parent| directories.contains(&parent)) {
            return Err(fault(format!("the directory of {path} does not stand before it")).into());
        }
        match words[..] {
            ["dir", path, permissions] => {
                writer.dir(path, mode(permissions)?)?;
                directories.push(path.to_string());
            }
            ["node", path, permissions, major, minor] => {
                writer.char_device(path, mode(permissions)?, (number(major)?, number(minor)?))?;
            }
            ["link", path, target] => writer.link(path, target)?,
            ["file", path, permissions, source] => {
                let content = read(source).map_err(|cause| fault(format!("cannot read {source}: {cause}")))?;
                writer.file(path, mode(permissions)?, &content)?;
            }
            _ => return Err(fault(format!("'{line}' is no dir, node, link or file")).into()),
        }
    }
    Ok(writer.finish()?.0)
}

/// The commit being built, with "-dirty" where the tree differs from it; None outside the project's own repository.
fn commit(root: &Path) -> Option<String> {
    let top = git(root, &["rev-parse", "--show-toplevel"])?;
    if fs::canonicalize(top).ok()? != fs::canonicalize(root).ok()? {
        return None;
    }
    // logs/HEAD grows whenever HEAD moves; the others serve where there is no reflog.
    let branch = git(root, &["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let path = root.join(git(root, &["rev-parse", "--git-path", name])?);
        // A path that does not exist would make cargo run this script every time.
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    let commit = git(root, &["rev-parse", COMMIT_DIGITS, "HEAD"])?;
    let changes = git(root, &[&["status", "--porcelain", "--"][..], &SOURCES[..]].concat())?;
    Some(if changes.is_empty() { commit } else { format!("{commit}-dirty") })
}

/// The output of a git command, without its last newline; None where it fails or there is no git.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("--no-optional-locks").args(arguments).current_dir(root).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_string())
}
