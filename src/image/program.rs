//! What a file is that the guest shall run: ELF program or script, and what comes with it.
//!
//! Owns telling programs from everything else, and `#!` lines; leaves libraries to closure.rs.
//! Invariant: what the guest's kernel could not start is refused here, with the reason.

use super::closure::{Closure, Needed, hidden_in_guest, normalize, read_elf};
use super::elf::{self, Elf};
use super::search::Search;
use crate::error::{Context, Error, Kind, Result};
use crate::sys::fd::open_at_once;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The kernel looks at this much of a file to tell what it is (BINPRM_BUF_SIZE, include/uapi/linux/binfmts.h).
const HEAD_BYTES: u64 = 256;
/// Interpreters may be scripts themselves, this deep (exec_binprm, fs/exec.c).
const MAX_SCRIPT_DEPTH: u32 = 5;
/// Where PID 1's PATH looks, and so where a program found by `env` can be found again.
const GUEST_PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

#[derive(Clone, Debug, PartialEq, Eq)]
enum Runnable {
    Elf(Elf),
    Script { interpreter: String, argument: String },
}

/// Adds all that the program at `host` needs to be started; `role` names it in errors, such as "scheduler". Notes what could
/// not be found out.
pub fn add(search: &Search, role: &str, host: &Path, closure: &mut Closure, notes: &mut Vec<String>) -> Result<()> {
    add_at_depth(search, role, host, (closure, notes), 0)
}

fn add_at_depth(
    search: &Search,
    role: &str,
    host: &Path,
    (closure, notes): (&mut Closure, &mut Vec<String>),
    depth: u32,
) -> Result<()> {
    let shown = format!("{role} {}", host.display());
    let (interpreter, argument) = match inspect(role, host)? {
        Runnable::Elf(elf) => return closure.add(search, host, &elf),
        Runnable::Script { interpreter, argument } => (interpreter, argument),
    };
    if depth >= MAX_SCRIPT_DEPTH {
        return Err(Error::usage(format!("{shown} is a script whose interpreters are scripts without end")));
    }
    let mut programs = vec![(interpreter.clone(), search.on_host(&interpreter))];
    if interpreter.ends_with("/env") {
        let name = env_program(&argument);
        let name =
            name.ok_or_else(|| Error::usage(format!("{shown} has a '#!{interpreter}' line without a program")))?;
        let found = in_path(search, name);
        programs.push(found.ok_or_else(|| {
            Error::usage(format!("{shown} is a script for '{name}', which is not in PATH"))
                .hint(format!("install {name}"))
        })?);
    }
    for (path, program) in programs {
        if !program.is_file() {
            let error = Error::usage(format!("{shown} is a script for {path}, which does not exist"));
            return Err(error.hint("install the interpreter, or mend the first line of the script"));
        }
        if hidden_in_guest(&normalize(&path)) {
            return Err(Error::usage(format!(
                "{shown} is a script for {path}, which PID 1's mounts would hide in the guest"
            )));
        }
        let why = format!("interpreter of {}", host.display());
        let needed = Needed { path: normalize(&path), host: program.clone(), why };
        closure.files.entry(needed.path.clone()).or_insert(needed);
        add_at_depth(search, &format!("{shown}: interpreter"), &program, (&mut *closure, &mut *notes), depth + 1)?;
    }
    let note = format!("{shown} is a script: commands and modules that it uses come along only by --include");
    if depth == 0 {
        notes.push(note);
    }
    Ok(())
}

/// Tells what a file is, or why it cannot be run.
fn inspect(role: &str, host: &Path) -> Result<Runnable> {
    let shown = format!("{role} {}", host.display());
    let wrong = |why: &str| Error::usage(format!("{shown} {why}"));
    let attempt = || format!("open the {shown}");
    let mut file = open_at_once(host).context(attempt).map_err(|error| error.with_kind(Kind::Usage))?;
    let meta = file.metadata().context(attempt)?;
    if meta.is_dir() {
        return Err(wrong("is a directory").hint("name the program in it"));
    }
    if !meta.is_file() {
        return Err(wrong("is not a regular file"));
    }
    if meta.len() == 0 {
        return Err(wrong("is empty"));
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(wrong("is not executable").hint(format!("chmod +x {}", host.display())));
    }
    let mut head = Vec::new();
    file.by_ref().take(HEAD_BYTES).read_to_end(&mut head).context(|| format!("read the {shown}"))?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let (interpreter, argument) = script_line(line).map_err(|why| wrong(&why))?;
        return Ok(Runnable::Script { interpreter, argument });
    }
    if !elf::is_elf(&head) {
        return Err(wrong("is neither an ELF program nor a script with a '#!' line"));
    }
    let elf = read_elf(host).map_err(|why| wrong(&why))?;
    if !elf.runnable {
        return Err(wrong("is a shared library, not a program: it has no entry point"));
    }
    Ok(Runnable::Elf(elf))
}

/// Interpreter and argument of what follows `#!`, cut as load_script (fs/binfmt_script.c) does.
fn script_line(line: &[u8]) -> std::result::Result<(String, String), String> {
    let end = line.iter().position(|byte| *byte == b'\n').unwrap_or(line.len());
    let text = std::str::from_utf8(&line[..end]).map_err(|_| "has a '#!' line that is not UTF-8".to_string())?;
    let text = text.trim_matches([' ', '\t']);
    let (interpreter, argument) = text.split_once([' ', '\t']).unwrap_or((text, ""));
    if let Some(name) = interpreter.strip_suffix('\r') {
        return Err(format!("has DOS line ends: its interpreter would be '{name}\\r'"));
    }
    if !interpreter.starts_with('/') {
        return Err(format!("has a '#!' line without an absolute path: '{interpreter}'"));
    }
    Ok((interpreter.to_string(), argument.trim_matches([' ', '\t']).to_string()))
}

/// The program that `env` would run: the first word that is neither option nor assignment.
fn env_program(argument: &str) -> Option<&str> {
    argument.split_whitespace().find(|word| !word.starts_with('-') && !word.contains('='))
}

/// Finds a program as `env` does, by this process's PATH; gives the path in the guest and the file on the host.
fn in_path(search: &Search, name: &str) -> Option<(String, PathBuf)> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut dirs = path.split(':').filter(|dir| dir.starts_with('/')).chain(GUEST_PATH);
    let (dir, host) = dirs.find_map(|dir| {
        let host = search.on_host(&format!("{dir}/{name}"));
        host.is_file().then_some((dir, host))
    })?;
    let dir = if GUEST_PATH.contains(&dir) { dir } else { "/usr/bin" };
    Some((format!("{dir}/{name}"), host))
}

#[cfg(test)]
mod tests {
    use super::super::elf::fixture::{build, library, program};
    use super::super::tempdir::TempDir;
    use super::*;

    fn add_one(dir: &TempDir, host: &Path) -> Result<(Closure, Vec<String>)> {
        let (mut closure, mut notes) = (Closure::default(), Vec::new());
        let search = Search::of_host(dir.path(), None);
        add(&search, "scheduler", host, &mut closure, &mut notes).map(|()| (closure, notes))
    }

    fn refused(dir: &TempDir, host: &Path) -> String {
        let error = add_one(dir, host).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        error.to_string()
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_the_reason() {
        let dir = TempDir::new("program-refused");
        let elf = build(&program(&[]));
        let mut object = elf.clone();
        object[16] = 1;
        let mut foreign = elf.clone();
        foreign[18] = 40;
        let cases: [(&str, &[u8], &str); 8] = [
            ("empty", b"", "is empty"),
            ("garbage", &[0xde; 100], "is neither an ELF program nor a script"),
            ("object.o", &object, "is neither program nor shared library"),
            ("foreign", &foreign, "is built for another machine"),
            ("cut", &elf[..elf.len() - 1], "is truncated"),
            ("lib.so", &build(&library(&[])), "is a shared library"),
            ("relative", b"#!sh\n", "without an absolute path"),
            ("dos", b"#!/bin/sh\r\n", "DOS line ends"),
        ];
        for (name, content, reason) in cases {
            let message = refused(&dir, &dir.write_program(name, content));
            assert!(message.contains(reason) && message.starts_with("scheduler /"), "{name}: {message}");
        }
        assert!(refused(&dir, &dir.write("plain", &elf)).contains("is not executable (chmod +x /"));
        assert!(refused(&dir, dir.path()).contains("is a directory"));
        assert!(refused(&dir, Path::new("/nowhere/x")).contains("cannot open the scheduler /nowhere/x: no such file"));
    }

    #[test]
    fn script_brings_its_interpreter_and_the_libraries_of_it() {
        let dir = TempDir::new("program-script");
        dir.write("lib64/ld.so", &build(&library(&[])));
        dir.write("lib/libsh.so", &build(&library(&[])));
        dir.write_program("bin/sh", &build(&program(&["libsh.so"])));
        let (closure, notes) = add_one(&dir, &dir.write_program("s", b"#! /bin/sh -e\necho\n")).unwrap();
        assert_eq!(closure.files.keys().collect::<Vec<_>>(), ["/bin/sh", "/lib/libsh.so", "/lib64/ld.so"]);
        assert!(notes[0].contains("is a script"));
    }

    #[test]
    fn script_without_its_interpreter_is_refused() {
        let dir = TempDir::new("program-interpreter");
        let message = refused(&dir, &dir.write_program("s", b"#!/opt/python\n"));
        assert!(message.contains("is a script for /opt/python, which does not exist"), "{message}");
        dir.write_program("usr/bin/env", &build(&Elf { interpreter: None, ..program(&[]) }));
        let message = refused(&dir, &dir.write_program("e", b"#!/usr/bin/env -S A=1 nosuchthing -x\n"));
        assert!(message.contains("script for 'nosuchthing', which is not in PATH"), "{message}");
    }

    #[test]
    fn interpreters_that_are_scripts_without_end_are_refused() {
        let dir = TempDir::new("program-loop");
        dir.write_program("bin/loop", b"#!/bin/loop\n");
        assert!(refused(&dir, &dir.path().join("bin/loop")).contains("without end"));
    }
}
