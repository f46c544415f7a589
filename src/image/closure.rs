//! Everything a dynamic program needs to be started in the guest: its loader and, one after another, its libraries.
//!
//! Owns the walk over DT_NEEDED and the error that names the chain; leaves the places to search.rs, the format to elf.rs.
//! Invariant: the guest's loader finds every library, under the path it has on the host wherever that can be; a missing one
//! is an error.

use super::elf::{self, Elf};
use super::search::{Requirer, Search};
use crate::error::{Error, Result};
use crate::sys::fd::open_at_once;
use std::collections::{BTreeMap, VecDeque};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// musl's loader is its own C library and answers to these names (musl, ldso/dynlink.c).
const MUSL_OWN_NAMES: [&str; 7] = ["libc.", "libpthread.", "librt.", "libm.", "libdl.", "libutil.", "libxnet."];

/// PID 1 mounts file systems of its own here, which hide what an image put below.
const MOUNT_POINTS: [&str; 5] = ["/dev", "/proc", "/sys", "/tmp", "/run"];
/// Libraries from below a mount point go below this; the guest's ld.so.cache tells the loader.
const MOVED_DIR: &str = "/ktstr/lib";

/// Whether a file at this path of the image could not be seen once PID 1 has mounted its file systems.
pub fn hidden_in_guest(path: &str) -> bool {
    MOUNT_POINTS.iter().any(|point| path.strip_prefix(point).is_some_and(|rest| rest.starts_with('/')))
}

/// A file that must be in the guest, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    pub path: String,
    pub host: PathBuf,
    pub why: String,
}

/// What the programs of one image need.
#[derive(Debug, Default)]
pub struct Closure {
    /// By path, so that two programs share their libraries.
    pub files: BTreeMap<String, Needed>,
    /// soname -> path, for the guest's own ld.so.cache.
    pub sonames: BTreeMap<String, String>,
    /// Directories with libraries of programs that musl's loader starts.
    pub musl_dirs: Vec<String>,
}

/// A library on the way through the walk.
struct Object {
    name: String,
    elf: Elf,
    /// The directory that $ORIGIN stands for.
    origin: String,
    /// The object that needed it; the program itself has none.
    parent: Option<usize>,
}

/// Reads what the loader would read of a file on the host.
pub fn read_elf(host: &Path) -> std::result::Result<Elf, String> {
    let open = || open_at_once(host).and_then(|file| file.metadata().map(|meta| (file, meta.len())));
    let (file, bytes) = open().map_err(|cause| format!("cannot be opened: {cause}"))?;
    let read = |offset: u64, count: usize| {
        let mut buffer = vec![0; count];
        file.read_exact_at(&mut buffer, offset).map(|()| buffer)
    };
    elf::parse(&read, bytes)
}

impl Closure {
    /// Adds what the program at `host`, with these headers, needs. A static program needs nothing.
    pub fn add(&mut self, search: &Search, host: &Path, elf: &Elf) -> Result<()> {
        let name = file_name(host);
        let Some(loader) = elf.interpreter.clone() else { return Ok(()) };
        if !loader.starts_with('/') {
            return Err(Error::usage(format!("{name} names the loader '{loader}', which is no absolute path")));
        }
        let loader_host = search.on_host(&loader);
        if let Err(why) = read_elf(&loader_host) {
            return Err(Error::usage(format!("{name} needs the loader {loader}, which {why}")));
        }
        if hidden_in_guest(&loader) {
            return Err(Error::usage(format!(
                "{name} needs the loader {loader}, which PID 1's mounts would hide in the guest"
            )));
        }
        let musl = file_name(Path::new(&loader)).starts_with("ld-musl-");
        self.need(&loader, loader_host, format!("loader of {name}"));

        // The loader has the program's real path from the kernel; libraries keep the path they were found under.
        let real = std::fs::canonicalize(host).unwrap_or_else(|_| host.to_path_buf());
        let origin = real.parent().and_then(Path::to_str).unwrap_or_default().to_string();
        let mut objects = vec![Object { name, elf: elf.clone(), origin, parent: None }];
        let mut loaded = BTreeMap::from([(file_name(Path::new(&loader)), loader)]);
        let mut queue = VecDeque::from([0]);
        while let Some(index) = queue.pop_front() {
            for wanted in objects[index].elf.needed.clone() {
                if loaded.contains_key(&wanted) || (musl && MUSL_OWN_NAMES.iter().any(|own| wanted.starts_with(own))) {
                    continue;
                }
                let (path, host, elf) = find(search, &objects, index, &wanted, musl)?;
                let guest = if hidden_in_guest(&path) { format!("{MOVED_DIR}{path}") } else { path.clone() };
                self.need(&guest, host, format!("library, {}", chain(&objects, index)));
                let guest_dir = dir_of(&guest);
                if musl && !self.musl_dirs.contains(&guest_dir) {
                    self.musl_dirs.push(guest_dir);
                }
                loaded.insert(wanted.clone(), guest);
                let origin = dir_of(&path);
                queue.push_back(objects.len());
                objects.push(Object { name: wanted, elf, origin, parent: Some(index) });
            }
        }
        if !musl {
            for (soname, path) in loaded.into_iter().filter(|(soname, _)| !soname.contains('/')) {
                self.sonames.entry(soname).or_insert(path);
            }
        }
        Ok(())
    }

    fn need(&mut self, path: &str, host: PathBuf, why: String) {
        self.files.entry(path.to_string()).or_insert_with(|| Needed { path: path.to_string(), host, why });
    }
}

/// The first candidate that the loader would take; like it, we pass over libraries of another machine.
fn find(search: &Search, objects: &[Object], index: usize, wanted: &str, musl: bool) -> Result<(String, PathBuf, Elf)> {
    let object = &objects[index];
    let mut rpaths = Vec::new();
    if object.elf.runpath.is_empty() {
        let mut next = Some(index);
        while let Some(at) = next {
            rpaths.push((&objects[at].elf.rpath[..], &objects[at].origin[..]));
            next = objects[at].parent;
        }
    }
    let requirer = Requirer { origin: &object.origin, rpaths, runpath: &object.elf.runpath, musl };
    let candidates = search.candidates(wanted, &requirer);
    let mut unusable = Vec::new();
    for path in &candidates.paths {
        let host = search.on_host(path);
        if !path.starts_with('/') || !host.is_file() {
            continue;
        }
        match read_elf(&host) {
            Ok(elf) => return Ok((normalize(path), host, elf)),
            Err(why) => unusable.push(format!("{path} {why}")),
        }
    }
    let place = if candidates.dirs.is_empty() { "there".to_string() } else { candidates.dirs.join(", ") };
    let program = &objects[0].name;
    let via = if index == 0 { String::new() } else { format!(" (via {})", via(objects, index)) };
    let mut message = format!("{program} needs {wanted}{via}: not found in {place}");
    if !unusable.is_empty() {
        message.push_str(&format!("; {}", unusable.join("; ")));
    }
    Err(Error::usage(message).hint("install the library, or name its directory in LD_LIBRARY_PATH"))
}

/// The libraries between the program and one of its objects: `libb.so <- liba.so`.
fn via(objects: &[Object], index: usize) -> String {
    let mut names = Vec::new();
    let mut next = Some(index);
    while let Some(at) = next.filter(|at| *at != 0) {
        names.push(objects[at].name.as_str());
        next = objects[at].parent;
    }
    names.join(" <- ")
}

fn chain(objects: &[Object], index: usize) -> String {
    let program = &objects[0].name;
    if index == 0 { format!("needed by {program}") } else { format!("needed by {} <- {program}", via(objects, index)) }
}

fn dir_of(path: &str) -> String {
    path.rsplit_once('/').map_or("", |(dir, _)| dir).to_string()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Takes `.` and `..` out by name: an archive holds no such paths, and the guest has no links among its directories.
pub fn normalize(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::super::elf::fixture::{build, library, program};
    use super::super::tempdir::TempDir;
    use super::*;

    fn host(name: &str) -> (TempDir, Search) {
        let dir = TempDir::new(name);
        dir.write("lib64/ld.so", &build(&library(&[])));
        let search = Search::of_host(dir.path(), None);
        (dir, search)
    }

    fn paths(closure: &Closure) -> Vec<&str> {
        closure.files.keys().map(String::as_str).collect()
    }

    #[test]
    fn closure_follows_needed_through_libraries() {
        let (dir, search) = host("closure-follows");
        dir.write("usr/lib/liba.so", &build(&library(&["libb.so", "ld.so"])));
        dir.write("lib/libb.so", &build(&library(&["liba.so"])));
        let mut closure = Closure::default();
        closure.add(&search, &dir.path().join("prog"), &program(&["liba.so"])).unwrap();
        assert_eq!(paths(&closure), ["/lib/libb.so", "/lib64/ld.so", "/usr/lib/liba.so"]);
        assert_eq!(closure.files["/lib/libb.so"].why, "library, needed by liba.so <- prog");
        assert_eq!(closure.sonames["libb.so"], "/lib/libb.so");
    }

    #[test]
    fn missing_library_names_the_chain_and_the_places() {
        let (dir, search) = host("closure-missing");
        dir.write("lib/libx.so", &build(&library(&["libbar.so.1"])));
        let error = Closure::default().add(&search, Path::new("/b/scx_foo"), &program(&["libx.so"])).unwrap_err();
        assert!(error.message().starts_with("scx_foo needs libbar.so.1 (via libx.so): not found in /lib"), "{error}");
        assert_eq!(error.kind().exit_code(), 128);
    }

    #[test]
    fn library_of_another_machine_is_passed_over_and_named() {
        let (dir, search) = host("closure-machine");
        let mut foreign = build(&library(&[]));
        foreign[18] = 40;
        dir.write("lib64/libx.so", &foreign);
        let mut closure = Closure::default();
        let error = closure.add(&search, Path::new("/p"), &program(&["libx.so"])).unwrap_err();
        assert!(error.message().contains("/lib64/libx.so is built for another machine: 64-bit arm"), "{error}");
        dir.write("usr/lib/libx.so", &build(&library(&[])));
        closure.add(&search, Path::new("/p"), &program(&["libx.so"])).unwrap();
        assert!(closure.files.contains_key("/usr/lib/libx.so"));
    }

    #[test]
    fn missing_loader_is_named() {
        let dir = TempDir::new("closure-loader");
        let search = Search::of_host(dir.path(), None);
        let error = Closure::default().add(&search, Path::new("/p"), &program(&[])).unwrap_err();
        assert!(error.message().starts_with("p needs the loader /lib64/ld.so, which cannot be opened"), "{error}");
    }

    #[test]
    fn rpath_is_inherited_and_runpath_is_not() {
        let (dir, search) = host("closure-rpath");
        dir.write("opt/liba.so", &build(&library(&["libb.so"])));
        dir.write("opt/libb.so", &build(&library(&[])));
        let rpath = Elf { rpath: vec!["/opt".into()], ..program(&["liba.so"]) };
        Closure::default().add(&search, Path::new("/p"), &rpath).unwrap();
        let runpath = Elf { runpath: vec!["/opt".into()], ..program(&["liba.so"]) };
        let error = Closure::default().add(&search, Path::new("/p"), &runpath).unwrap_err();
        assert!(error.message().starts_with("p needs libb.so (via liba.so)"), "{error}");
    }

    #[test]
    fn library_below_a_mount_point_is_moved_and_its_origin_is_not() {
        let (dir, search) = host("closure-moved");
        let origin = |needed: &str| Elf { runpath: vec!["$ORIGIN".into()], ..library(&[needed]) };
        dir.write("tmp/build/liba.so", &build(&origin("libb.so")));
        dir.write("tmp/build/libb.so", &build(&library(&[])));
        let app = Elf { runpath: vec!["/tmp/build".into()], ..program(&["liba.so"]) };
        let mut closure = Closure::default();
        closure.add(&search, Path::new("/p"), &app).unwrap();
        assert_eq!(closure.sonames["libb.so"], "/ktstr/lib/tmp/build/libb.so");
        assert!(closure.files.contains_key("/ktstr/lib/tmp/build/liba.so"));
        assert!(!hidden_in_guest("/tmpfiles/x") && hidden_in_guest("/run/x"));
    }

    #[test]
    fn dots_are_taken_out_of_paths() {
        assert_eq!(normalize("/opt/app/../lib//./x"), "/opt/lib/x");
        assert_eq!(normalize("/../x"), "/x");
    }
}
