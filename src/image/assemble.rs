//! Puts one guest image together: the embedded base archive, and the archive of this run behind it.
//!
//! Owns what goes where in the guest and why; leaves finding it to closure.rs and program.rs, the writing to contents.rs.
//! Invariant: what the guest could not use is refused here, before anything boots.

use super::closure::{Closure, hidden_in_guest, normalize, read_elf};
use super::contents::{Contents, END, Source, Written, write};
use super::modules::Modules;
use super::search::{Search, musl_path_file};
use super::{cpio, kconfig, ldcache, program, strip};
use crate::error::{Context, Error, Kind, Result};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub const INIT: &str = "/init";
pub const PLAN: &str = "/ktstr/plan";
pub const SCHED_DIR: &str = "/ktstr/sched";
const LD_CACHE: &str = "/etc/ld.so.cache";
/// Debugging data of /init are left out where there is more of them than this: a test binary's are most of it.
const DEBUG_BYTES: usize = 1 << 20;

/// What one run's image is made of.
#[derive(Clone, Debug)]
pub struct ImageSpec {
    /// The binary that runs: /proc/self/exe.
    pub init: PathBuf,
    /// The encoded plan.
    pub plan: Vec<u8>,
    /// The scheduler under test, where it is an external program.
    pub sched: Option<PathBuf>,
    /// Beside it, its configuration is looked for; none: an image for any kernel.
    pub kernel: Option<PathBuf>,
    /// Read from the kernel image where it is not known.
    pub release: Option<String>,
    /// The kernel's configuration, where the user named it; else it is looked for.
    pub kernel_config: Option<PathBuf>,
    /// Files or directories of the host, and where they go in the guest.
    pub includes: Vec<(PathBuf, String)>,
    /// Kernel modules, and what was said when they were looked for.
    pub modules: Modules,
}

/// One entry of an image, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: String,
    pub bytes: u64,
    pub mode: u32,
    /// What it is there for.
    pub why: String,
}

/// A complete initramfs.
#[derive(Debug)]
pub struct Image {
    /// An anonymous memory file, at its beginning.
    pub file: File,
    pub bytes: u64,
    /// So much of its beginning, whole pages, is equal for all runs of the same files.
    pub shared_bytes: u64,
    /// What this run added to the base archive.
    pub entries: Vec<Entry>,
    pub sched_guest_path: Option<String>,
    /// What the user should know, but what does not stop the run.
    pub notes: Vec<String>,
}

/// Where a scheduler's program goes in the guest.
pub fn sched_guest_path(sched: &Path) -> Result<String> {
    match sched.file_name().and_then(|name| name.to_str()) {
        Some(name) => Ok(format!("{SCHED_DIR}/{name}")),
        None => Err(Error::usage(format!("scheduler {} has no name in UTF-8", sched.display()))),
    }
}

/// Makes the image of one run in an anonymous memory file.
pub fn assemble(spec: &ImageSpec) -> Result<Image> {
    let library_path = std::env::var("LD_LIBRARY_PATH").ok();
    let search = Search::of_host(Path::new("/"), library_path.as_deref());
    let mut contents = Contents::default();
    let mut notes = Vec::new();
    let mut closure = Closure::default();

    add_init(&search, &spec.init, &mut contents, &mut closure)?;
    contents.add(PLAN, 0o600, Source::Bytes(spec.plan.clone()), "plan of this run")?;
    let mut sched_path = None;
    if let Some(sched) = &spec.sched {
        let guest = sched_guest_path(sched)?;
        program::add(&search, "scheduler", sched, &mut closure, &mut notes)?;
        contents.add_file(&guest, sched, 0o755, "scheduler under test")?;
        add_kernel_config(spec, &mut contents, &mut notes)?;
        sched_path = Some(guest);
    }
    for (host, guest) in &spec.includes {
        add_include(&search, host, guest, &mut contents, &mut closure)?;
    }
    for (host, guest) in &spec.modules.files {
        contents.add_file(guest, host, 0o644, "kernel module that the disk needs")?;
    }
    notes.extend(spec.modules.notes.iter().cloned());
    add_closure(&closure, &mut contents)?;
    let Written { file, bytes, shared_bytes, entries } = write(&mut contents)?;
    Ok(Image { file, bytes, shared_bytes, entries, sched_guest_path: sched_path, notes })
}

/// Lists any concatenation of newc archives, such as an image of ours or a distribution's.
pub fn list(bytes: &[u8]) -> Result<Vec<Entry>> {
    let entry = |entry: cpio::Entry<'_>| {
        let path = format!("/{}", entry.name.trim_start_matches('/'));
        let why = match (entry.mode & cpio::TYPE_MASK, entry.device) {
            (cpio::TYPE_LINK, _) => format!("link to {}", String::from_utf8_lossy(entry.content)),
            (cpio::TYPE_CHAR, (major, minor)) => format!("character device {major}:{minor}"),
            _ => purpose(&path).to_string(),
        };
        Entry { path, bytes: entry.content.len() as u64, mode: entry.mode, why }
    };
    cpio::Reader::new(bytes)
        .map(|step| step.map(entry).map_err(|malformed| Error::usage(format!("not a usable initramfs: {malformed}"))))
        .collect()
}

/// What an entry of our own images is for, by its path alone.
pub(super) fn purpose(path: &str) -> &'static str {
    match path {
        INIT => "ktstr itself, PID 1 of the guest",
        PLAN => "plan of the run",
        END => "end marker",
        LD_CACHE => "where the loader finds the packed libraries",
        _ if path.starts_with("/ktstr/sched/") => "scheduler under test",
        _ if path.starts_with("/ktstr/modules/") => "kernel module",
        _ if path.starts_with("/boot/config-") => "kernel configuration, for libbpf programs",
        _ => "",
    }
}

/// PID 1 is this program again. A dynamically linked one, as a user's own test binary is, comes with its loader and its
/// libraries: the kernel starts it like any other program.
fn add_init(search: &Search, init: &Path, contents: &mut Contents, closure: &mut Closure) -> Result<()> {
    const WHY: &str = "ktstr itself, PID 1 of the guest";
    let elf = read_elf(init).map_err(|why| Error::usage(format!("{}, the guest's /init, {why}", init.display())))?;
    if elf.interpreter.is_some() || !elf.needed.is_empty() {
        // Libraries may be named relative to the program's own place; one that was replaced meanwhile has none.
        let real = fs::canonicalize(init).unwrap_or_else(|_| init.to_path_buf());
        closure.add(search, &real, &elf)?;
    }
    let read = || format!("read {}", init.display());
    let mut file = File::open(init).context(read)?;
    let length = file.metadata().context(read)?.len();
    // Of a program that is packed whole, only so much is looked at.
    let mut bytes = Vec::new();
    file.by_ref().take(strip::HEAD_BYTES as u64).read_to_end(&mut bytes).context(read)?;
    if strip::loaded_end(&bytes).is_some_and(|end| end.saturating_add(DEBUG_BYTES) as u64 >= length) {
        return contents.add_file(INIT, init, 0o755, WHY);
    }
    file.read_to_end(&mut bytes).context(read)?;
    match strip::loaded_part(&bytes).filter(|kept| kept.len() + DEBUG_BYTES < bytes.len()) {
        Some(kept) => contents.add(INIT, 0o755, Source::Bytes(kept), WHY),
        None => contents.add_file(INIT, init, 0o755, WHY),
    }
}

/// Programs that use libbpf read /boot/config-RELEASE; real scx schedulers fail without it, with a bare "Invalid argument".
fn add_kernel_config(spec: &ImageSpec, contents: &mut Contents, notes: &mut Vec<String>) -> Result<()> {
    let Some(kernel_path) = &spec.kernel else {
        notes.push("no kernel is named: no configuration is packed, and schedulers that read it may fail".into());
        return Ok(());
    };
    let release = match &spec.release {
        Some(release) => Some(release.clone()),
        None => kconfig::release(kernel_path)?,
    };
    let kernel = kernel_path.display();
    let Some(release) = release else {
        notes.push(format!(
            "{kernel} does not tell its release: its configuration is not packed, and schedulers that read it may fail"
        ));
        return Ok(());
    };
    let found = match &spec.kernel_config {
        Some(config) => Some(config.clone()),
        None => {
            kconfig::candidates(Path::new("/"), kernel_path, Some(&release)).into_iter().find(|path| path.is_file())
        }
    };
    match found {
        Some(config) => {
            let why = format!("configuration of the kernel, from {}", config.display());
            contents.add_file(&format!("/boot/config-{release}"), &config, 0o644, &why)
        }
        None => {
            notes.push(format!(
                "no configuration found for kernel {release} (looked beside {kernel}, in /boot and in /lib/modules): \
                 schedulers that read it may fail with 'Invalid argument'"
            ));
            Ok(())
        }
    }
}

/// The loaders, libraries and interpreters, and a cache by which the loader finds each library wherever it lay on the host.
fn add_closure(closure: &Closure, contents: &mut Contents) -> Result<()> {
    for needed in closure.files.values() {
        if !contents.holds(&needed.path) {
            contents.add_file(&needed.path, &needed.host, 0o755, &needed.why)?;
        }
    }
    if !closure.sonames.is_empty() && !contents.holds(LD_CACHE) {
        let pairs: Vec<(String, String)> = closure.sonames.clone().into_iter().collect();
        contents.add(LD_CACHE, 0o644, Source::Bytes(ldcache::write(&pairs)), purpose(LD_CACHE))?;
    }
    let musl_path = musl_path_file();
    if !closure.musl_dirs.is_empty() && !contents.holds(&musl_path) {
        let dirs = closure.musl_dirs.join("\n") + "\n";
        contents.add(&musl_path, 0o644, Source::Bytes(dirs.into_bytes()), purpose(LD_CACHE))?;
    }
    Ok(())
}

/// One `--include`: a file, with its libraries where it is a program, or a directory with all that is in it.
fn add_include(
    search: &Search,
    host: &Path,
    guest: &str,
    contents: &mut Contents,
    closure: &mut Closure,
) -> Result<()> {
    let path = guest_path(guest)?;
    let meta = fs::metadata(host)
        .context(|| format!("include {}", host.display()))
        .map_err(|error| error.with_kind(Kind::Usage))?;
    if meta.is_dir() {
        return add_tree(host, &path, contents);
    }
    contents.add_file(&path, host, permissions(&meta), "included")?;
    match read_elf(host) {
        Ok(elf) => closure.add(search, host, &elf),
        // Data is as welcome as programs.
        Err(_) => Ok(()),
    }
}

fn add_tree(host: &Path, guest: &str, contents: &mut Contents) -> Result<()> {
    let shown = || format!("include {}", host.display());
    contents.add_dir(guest)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(host).context(shown)? {
        names.push(entry.context(shown)?.file_name());
    }
    names.sort();
    for name in names {
        let path = host.join(&name);
        let shown = || format!("include {}", path.display());
        let Some(name) = name.to_str() else {
            return Err(Error::usage(format!("cannot include {}: its name is not UTF-8", path.display())));
        };
        let below = format!("{}/{name}", guest.trim_end_matches('/'));
        let meta = fs::symlink_metadata(&path).context(shown)?;
        if meta.is_dir() {
            add_tree(&path, &below, contents)?;
        } else if meta.is_file() {
            contents.add_file(&below, &path, permissions(&meta), "included")?;
        } else if meta.is_symlink() {
            let target = fs::read_link(&path).context(shown)?;
            let Some(target) = target.to_str() else {
                return Err(Error::usage(format!("cannot include {}: its target is not UTF-8", path.display())));
            };
            contents.add(&below, 0o777, Source::Link(target.to_string()), "included")?;
        } else {
            let message = format!("cannot include {}: neither file, directory nor link", path.display());
            return Err(Error::usage(message));
        }
    }
    Ok(())
}

/// A user's path in the guest, cleaned; what ktstr itself puts there is refused by `Contents`.
fn guest_path(guest: &str) -> Result<String> {
    let path = normalize(guest);
    if !guest.starts_with('/') || path == "/" || guest.contains('\0') {
        return Err(Error::usage(format!("'{guest}' is not an absolute path for a file in the guest")));
    }
    if hidden_in_guest(&path) {
        let message = format!("{path} in the guest would be hidden: PID 1 mounts a file system over it");
        return Err(Error::usage(message).hint("choose a path such as /data/NAME"));
    }
    if path == END {
        return Err(Error::usage(format!("{END} in the guest is ktstr's own")));
    }
    Ok(path)
}

fn permissions(meta: &fs::Metadata) -> u32 {
    meta.permissions().mode() & 0o777
}

#[cfg(test)]
mod tests {
    use super::super::contents::BASE;
    use super::super::elf::{Elf, fixture};
    use super::super::tempdir::TempDir;
    use super::*;
    use std::io::Read;

    fn spec(dir: &TempDir) -> ImageSpec {
        let init = fixture::build(&Elf { interpreter: None, ..fixture::program(&[]) });
        ImageSpec {
            init: dir.write_program("ktstr", &init),
            plan: b"plan".to_vec(),
            sched: None,
            kernel: Some(dir.write("vmlinux", b"Linux version 7.2.0-test (x) ")),
            release: None,
            kernel_config: None,
            includes: Vec::new(),
            modules: Modules::default(),
        }
    }

    fn bytes(image: &mut Image) -> Vec<u8> {
        let mut bytes = Vec::new();
        image.file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, image.bytes);
        bytes
    }

    fn refused(spec: &ImageSpec) -> String {
        let error = assemble(spec).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        error.to_string()
    }

    #[test]
    fn image_is_the_base_then_the_run_and_ends_in_the_marker() {
        let dir = TempDir::new("assemble-image");
        let mut image = assemble(&spec(&dir)).unwrap();
        let bytes = bytes(&mut image);
        assert!(bytes.starts_with(BASE) && bytes.len() % 512 == 0);
        let entries = list(&bytes).unwrap();
        assert_eq!(entries.last().unwrap().path, END);
        assert!(entries.iter().any(|entry| entry.path == "/dev/console" && entry.why == "character device 5:1"));
        let init = entries.iter().find(|entry| entry.path == INIT).unwrap();
        assert_eq!((init.mode, &init.why[..]), (0o100755, "ktstr itself, PID 1 of the guest"));
        assert_eq!(image.entries.len() + list(BASE).unwrap().len(), entries.len());
    }

    #[test]
    fn same_inputs_give_the_same_bytes() {
        let dir = TempDir::new("assemble-same");
        let mut spec = spec(&dir);
        dir.write("data/b", b"b");
        dir.write("data/a/c", b"c");
        spec.includes.push((dir.path().join("data"), "/data".into()));
        assert_eq!(bytes(&mut assemble(&spec).unwrap()), bytes(&mut assemble(&spec).unwrap()));
    }

    #[test]
    fn runs_of_the_same_files_differ_behind_the_shared_part_only() {
        let dir = TempDir::new("assemble-shared");
        let spec = spec(&dir);
        let longer = ImageSpec { plan: vec![b'p'; 9000], ..spec.clone() };
        let (mut one, mut two) = (assemble(&spec).unwrap(), assemble(&longer).unwrap());
        let at = one.shared_bytes as usize;
        assert_eq!((one.shared_bytes, at % 4096), (two.shared_bytes, 0));
        let (one, two) = (bytes(&mut one), bytes(&mut two));
        assert_eq!(one[..at], two[..at]);
        let names = |part: &[u8]| list(part).unwrap().into_iter().map(|entry| entry.path).collect::<Vec<_>>();
        assert_eq!(
            (names(&one[at..]), names(&two[at..])),
            (vec![PLAN.into(), END.into()], vec![PLAN.into(), END.into()])
        );
        dir.write_program("ktstr", &fixture::build(&Elf { interpreter: None, ..fixture::program(&[]) }).repeat(2));
        assert_ne!(bytes(&mut assemble(&spec).unwrap())[..at], one[..at], "another program is another image");
    }

    #[test]
    fn parents_stand_before_their_children() {
        let dir = TempDir::new("assemble-parents");
        let mut spec = spec(&dir);
        let data = dir.write("data/deep/er/file", b"x");
        spec.includes = vec![(data, "/opt/t/deep/more/file".into()), (dir.path().join("data"), "/opt/t".into())];
        let image = list(&bytes(&mut assemble(&spec).unwrap())).unwrap();
        let mut known = vec![String::new()];
        for entry in &image {
            assert!(
                known.iter().any(|dir| Some(&dir[..]) == entry.path.rsplit_once('/').map(|p| p.0)),
                "{}",
                entry.path
            );
            if entry.mode & cpio::TYPE_MASK == cpio::TYPE_DIR {
                known.push(entry.path.clone());
            }
        }
        assert!(known.contains(&"/opt/t/deep/more".to_string()));
    }

    #[test]
    fn scheduler_comes_with_the_configuration_of_its_kernel() {
        let dir = TempDir::new("assemble-config");
        let mut spec = spec(&dir);
        spec.sched = Some(dir.write_program("scx_static", &fs::read(&spec.init).unwrap()));
        let image = assemble(&spec).unwrap();
        assert_eq!(image.sched_guest_path.as_deref(), Some("/ktstr/sched/scx_static"));
        assert!(image.notes[0].starts_with("no configuration found for kernel 7.2.0-test"), "{:?}", image.notes);
        dir.write("config", b"CONFIG_X=y");
        let image = assemble(&spec).unwrap();
        assert_eq!(image.notes, Vec::<String>::new());
        assert!(image.entries.iter().any(|entry| entry.path == "/boot/config-7.2.0-test" && entry.bytes == 10));
    }

    #[test]
    fn dynamic_init_comes_with_its_libraries_and_without_debugging_data() {
        let dir = TempDir::new("assemble-dynamic");
        let mut spec = spec(&dir);
        spec.init = dir.write_program("dynamic", &fixture::build(&fixture::program(&["libktstr-nowhere.so.1"])));
        let why = refused(&spec);
        assert!(why.contains("needs the loader") || why.contains("libktstr-nowhere.so.1"), "{why}");
        // This very program: static or not, as the tests are built.
        spec.init = "/proc/self/exe".into();
        let image = assemble(&spec).unwrap();
        let init = image.entries.iter().find(|entry| entry.path == INIT).unwrap();
        assert!(init.bytes <= fs::metadata("/proc/self/exe").unwrap().len() && init.mode & 0o111 == 0o111);
        let elf = read_elf(&spec.init).unwrap();
        let packed = |path: &String| image.entries.iter().any(|entry| entry.path == *path);
        assert!(elf.interpreter.iter().all(packed), "{:?}", image.entries);
    }

    #[test]
    fn includes_that_cannot_be_are_refused() {
        let dir = TempDir::new("assemble-includes");
        let data = dir.write("data", b"x");
        let cases = [
            (data.clone(), "relative", "is not an absolute path"),
            (data.clone(), "/..", "is not an absolute path"),
            (data.clone(), END, "is ktstr's own"),
            (data.clone(), INIT, "two files for /init in the guest"),
            (data.clone(), "/tmp/x", "would be hidden"),
            (data.clone(), "/tmp", "both a directory and something else"),
            (data.clone(), "/etc/passwd/x", "which is no directory"),
            (dir.path().join("nothing"), "/x", "no such file or directory"),
        ];
        for (host, guest, reason) in cases {
            let message = refused(&ImageSpec { includes: vec![(host, guest.into())], ..spec(&dir) });
            assert!(message.contains(reason), "{guest}: {message}");
        }
    }

    #[test]
    fn damaged_initramfs_is_an_error() {
        assert!(list(&BASE[..300]).unwrap_err().message().starts_with("not a usable initramfs: byte"));
    }
}
