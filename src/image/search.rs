//! Where the dynamic loader of a host looks for a library.
//!
//! Owns the search order of ld.so(8) and of musl's loader, and `ld.so.conf`; leaves which libraries are needed to closure.rs.
//! Invariant: files are looked up under the given root only, so the rules are tested on a directory of their own.

use super::ldcache;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Directories that loaders are built to look in last: Debian's, then Fedora's, then plain.
#[cfg(target_arch = "x86_64")]
const DEFAULT_DIRS: [&str; 6] =
    ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];
#[cfg(target_arch = "aarch64")]
const DEFAULT_DIRS: [&str; 6] =
    ["/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];
/// What musl's loader uses where /etc/ld-musl-ARCH.path is missing (musl, ldso/dynlink.c).
const MUSL_DIRS: [&str; 3] = ["/lib", "/usr/local/lib", "/usr/lib"];
/// What $LIB may stand for: the loader's build decides, so each is tried.
#[cfg(target_arch = "x86_64")]
const LIB_TOKENS: [&str; 3] = ["lib/x86_64-linux-gnu", "lib64", "lib"];
#[cfg(target_arch = "aarch64")]
const LIB_TOKENS: [&str; 3] = ["lib/aarch64-linux-gnu", "lib64", "lib"];
/// An ld.so.conf that includes itself must end somewhere.
const MAX_INCLUDE_DEPTH: u32 = 8;

/// The file that tells musl's loader its directories.
pub fn musl_path_file() -> String {
    format!("/etc/ld-musl-{}.path", std::env::consts::ARCH)
}

/// The search rules of one host.
#[derive(Clone, Debug)]
pub struct Search {
    root: PathBuf,
    /// LD_LIBRARY_PATH of this process: a program that needs it on the host is run with it.
    library_path: Vec<String>,
    /// Read when the first library is looked for: most runs need none, and a host has thousands.
    configured: OnceCell<Configured>,
}

/// What the loaders are told by files below /etc.
#[derive(Clone, Debug, Default)]
struct Configured {
    cache: BTreeMap<String, Vec<String>>,
    system_dirs: Vec<String>,
    musl_dirs: Vec<String>,
}

impl Search {
    /// The host whose files lie under `root` ("/" but for tests).
    pub fn of_host(root: &Path, library_path: Option<&str>) -> Self {
        let library_path = split(library_path.unwrap_or_default());
        Self { root: root.to_path_buf(), library_path, configured: OnceCell::new() }
    }

    fn configured(&self) -> &Configured {
        self.configured.get_or_init(|| Configured::read(&self.root))
    }

    /// The file on the host behind an absolute path.
    pub fn on_host(&self, path: &str) -> PathBuf {
        below(&self.root, path)
    }

    /// Every path to try for a library, in the loader's order, and the directories by name for the error message.
    pub fn candidates(&self, name: &str, requirer: &Requirer<'_>) -> Candidates {
        let mut found = Candidates::default();
        if name.contains('/') {
            found.paths.extend(expand(name, requirer.origin));
            return found;
        }
        let configured = self.configured();
        let in_dirs = |found: &mut Candidates, dirs: &[String], origin: &str| {
            for dir in dirs.iter().flat_map(|dir| expand(dir, origin)).filter(|dir| dir.starts_with('/')) {
                found.paths.push(format!("{}/{name}", dir.trim_end_matches('/')));
                if !found.dirs.contains(&dir) {
                    found.dirs.push(dir);
                }
            }
        };
        // musl's loader asks LD_LIBRARY_PATH first, glibc's only after RPATH.
        if requirer.musl {
            in_dirs(&mut found, &self.library_path, requirer.origin);
        }
        for (dirs, origin) in &requirer.rpaths {
            in_dirs(&mut found, dirs, origin);
        }
        if !requirer.musl {
            in_dirs(&mut found, &self.library_path, requirer.origin);
        }
        in_dirs(&mut found, requirer.runpath, requirer.origin);
        if requirer.musl {
            in_dirs(&mut found, &configured.musl_dirs, "");
            return found;
        }
        if let Some(paths) = configured.cache.get(name) {
            found.paths.extend(paths.iter().cloned());
        }
        if !configured.cache.is_empty() {
            found.dirs.push("/etc/ld.so.cache".into());
        }
        in_dirs(&mut found, &configured.system_dirs, "");
        found
    }
}

impl Configured {
    fn read(root: &Path) -> Self {
        let mut configured = Self::default();
        match fs::read(below(root, "/etc/ld.so.cache")).ok().and_then(|bytes| ldcache::read(&bytes)) {
            Some(libraries) => {
                for (soname, path) in libraries {
                    configured.cache.entry(soname).or_default().push(path);
                }
            }
            None => configured.read_conf(root, "/etc/ld.so.conf", 0),
        }
        configured.system_dirs.extend(DEFAULT_DIRS.map(str::to_string));
        configured.musl_dirs = match fs::read_to_string(below(root, &musl_path_file())) {
            Ok(text) => text.split([':', '\n']).filter(|dir| !dir.is_empty()).map(str::to_string).collect(),
            Err(_) => MUSL_DIRS.map(str::to_string).to_vec(),
        };
        configured
    }

    fn read_conf(&mut self, root: &Path, path: &str, depth: u32) {
        // A host without the file simply has no further directories.
        let Ok(text) = fs::read_to_string(below(root, path)) else { return };
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if let Some(patterns) = line.strip_prefix("include").filter(|rest| rest.starts_with([' ', '\t'])) {
                if depth < MAX_INCLUDE_DEPTH {
                    let patterns = patterns.split_whitespace();
                    patterns.flat_map(|pattern| glob(root, path, pattern)).for_each(|file| {
                        self.read_conf(root, &file, depth + 1);
                    });
                }
            } else if line.starts_with('/') {
                self.system_dirs.push(line.trim_end_matches('/').to_string());
            }
        }
    }
}

/// The file under a root behind an absolute path.
fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// The files that match a pattern whose last component may hold `*` and `?`; relative to the including file.
fn glob(root: &Path, from: &str, pattern: &str) -> Vec<String> {
    let base = from.rsplit_once('/').map_or("", |(dir, _)| dir);
    let pattern = if pattern.starts_with('/') { pattern.to_string() } else { format!("{base}/{pattern}") };
    let Some((dir, last)) = pattern.rsplit_once('/') else { return Vec::new() };
    let Ok(entries) = fs::read_dir(below(root, dir)) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut files: Vec<String> = names
        .filter(|name| (last.starts_with('.') || !name.starts_with('.')) && matches(last.as_bytes(), name.as_bytes()))
        .map(|name| format!("{dir}/{name}"))
        .collect();
    files.sort();
    files
}

/// The object whose DT_NEEDED is looked up.
#[derive(Clone, Debug)]
pub struct Requirer<'a> {
    /// The directory that $ORIGIN stands for.
    pub origin: &'a str,
    /// DT_RPATH of the object and of those that led to it, each with its own origin; empty where it has DT_RUNPATH.
    pub rpaths: Vec<(&'a [String], &'a str)>,
    pub runpath: &'a [String],
    pub musl: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    pub paths: Vec<String>,
    pub dirs: Vec<String>,
}

fn split(list: &str) -> Vec<String> {
    list.split([':', ';']).filter(|dir| !dir.is_empty()).map(str::to_string).collect()
}

/// Replaces the tokens of ld.so(8); $LIB gives several results.
fn expand(text: &str, origin: &str) -> Vec<String> {
    let text = text.replace("${ORIGIN}", origin).replace("$ORIGIN", origin);
    let text = text.replace("${PLATFORM}", std::env::consts::ARCH).replace("$PLATFORM", std::env::consts::ARCH);
    if text.contains("$LIB") || text.contains("${LIB}") {
        LIB_TOKENS.iter().map(|lib| text.replace("${LIB}", lib).replace("$LIB", lib)).collect()
    } else {
        vec![text]
    }
}

/// Shell pattern with `*` and `?`.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.first(), name.first()) {
        (None, None) => true,
        (Some(b'*'), _) => matches(&pattern[1..], name) || (!name.is_empty() && matches(pattern, &name[1..])),
        (Some(b'?'), Some(_)) => matches(&pattern[1..], &name[1..]),
        (Some(a), Some(b)) if a == b => matches(&pattern[1..], &name[1..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tempdir::TempDir;
    use super::*;

    fn requirer(musl: bool) -> Requirer<'static> {
        Requirer { origin: "/opt/app", rpaths: Vec::new(), runpath: &[], musl }
    }

    #[test]
    fn host_is_asked_for_its_libraries_when_one_is_looked_for() {
        let dir = TempDir::new("search-late");
        let search = Search::of_host(dir.path(), None);
        dir.write("etc/ld.so.cache", &ldcache::write(&[("libx.so".into(), "/cached/libx.so".into())]));
        let _ = search.on_host("/etc/passwd");
        let _ = search.candidates("/opt/liby.so", &requirer(false));
        assert!(search.configured.get().is_none());
        assert_eq!(search.candidates("libx.so", &requirer(false)).paths[0], "/cached/libx.so");
    }

    #[test]
    fn order_is_rpath_environment_runpath_cache_defaults() {
        let dir = TempDir::new("search-order");
        let cache = ldcache::write(&[("libx.so".into(), "/cached/libx.so".into())]);
        dir.write("etc/ld.so.cache", &cache);
        let search = Search::of_host(dir.path(), Some("/env"));
        let rpath = vec!["$ORIGIN/../lib".to_string()];
        let runpath = vec!["${ORIGIN}".to_string(), "relative".to_string()];
        let found = search.candidates(
            "libx.so",
            &Requirer { rpaths: vec![(&rpath, "/opt/app")], runpath: &runpath, ..requirer(false) },
        );
        assert_eq!(
            found.paths[..5],
            [
                "/opt/app/../lib/libx.so",
                "/env/libx.so",
                "/opt/app/libx.so",
                "/cached/libx.so",
                "/lib/x86_64-linux-gnu/libx.so"
            ]
        );
        assert!(found.dirs.contains(&"/etc/ld.so.cache".to_string()));
        assert!(!found.dirs.iter().any(|dir| dir.contains("relative")));
    }

    #[test]
    fn conf_is_read_with_includes_where_there_is_no_cache() {
        let dir = TempDir::new("search-conf");
        dir.write("etc/ld.so.conf", b"include ld.so.conf.d/*.conf # all\n/last/\ninclude /etc/ld.so.conf\n");
        dir.write("etc/ld.so.conf.d/b.conf", b"/b\n");
        dir.write("etc/ld.so.conf.d/a.conf", b"# comment\n/a\n");
        dir.write("etc/ld.so.conf.d/.hidden.conf", b"/hidden\n");
        dir.write("etc/ld.so.conf.d/old.conf.bak", b"/bak\n");
        let dirs = Search::of_host(dir.path(), None).candidates("l", &requirer(false)).dirs;
        assert_eq!(dirs[..3], ["/a", "/b", "/last"]);
        assert!(!dirs.iter().any(|dir| dir == "/hidden" || dir == "/bak"));
    }

    #[test]
    fn path_in_needed_is_taken_as_it_is() {
        let search = Search::of_host(Path::new("/nonexistent"), None);
        assert_eq!(search.candidates("$ORIGIN/libx.so", &requirer(false)).paths, ["/opt/app/libx.so"]);
    }

    #[test]
    fn lib_token_is_tried_in_every_meaning() {
        assert_eq!(expand("/opt/$LIB", "/"), ["/opt/lib/x86_64-linux-gnu", "/opt/lib64", "/opt/lib"]);
    }

    #[test]
    fn musl_looks_in_its_own_places() {
        let dir = TempDir::new("search-musl");
        let search = Search::of_host(dir.path(), Some("/env"));
        let paths = search.candidates("libx.so", &requirer(true)).paths;
        assert_eq!(paths, ["/env/libx.so", "/lib/libx.so", "/usr/local/lib/libx.so", "/usr/lib/libx.so"]);
    }

    #[test]
    fn patterns_match_like_a_shell() {
        assert!(matches(b"*.conf", b"a.conf") && matches(b"a?c", b"abc") && matches(b"*", b""));
        assert!(!matches(b"*.conf", b"a.conf.bak") && !matches(b"a?c", b"ac"));
    }
}
