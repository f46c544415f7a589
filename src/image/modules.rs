//! The kernel modules that a run needs: which, where the host has them, and the order to load them in.
//!
//! Owns the drivers of a disk and the search for them; leaves packing to assemble.rs and loading to guest/. Compressed
//! modules are packed as they are: kernels whose distribution compresses them unpack them by themselves
//! (CONFIG_MODULE_DECOMPRESS; Debian's since 6.12, whose 6.1 does not compress), so that no decoder is needed here.
//! Invariant: a module comes behind everything that it depends on, and all come from one directory.

use super::kconfig;
use crate::error::{Context, Error, Kind, Result};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Distributions' configurations are of 300 KiB at most.
const CONFIG_MOST_BYTES: u64 = 16 << 20;

/// Where modules go in the guest.
pub const MODULE_DIR: &str = "/ktstr/modules";

/// A driver: the module's name, its option, and its place in the source tree and below `kernel/` of a distribution.
struct Driver {
    name: &'static str,
    option: &'static str,
    place: &'static str,
    /// Without it there is no disk; of the others one transport is enough.
    needed: bool,
}

/// All that /dev/vda can need, each behind what it depends on (drivers/virtio/Kconfig): our own VMM has the disk on MMIO,
/// QEMU on PCI. Where `modules.dep` is missing, as in a package that was only unpacked, this order is all there is.
const DISK_DRIVERS: [Driver; 7] = [
    driver("virtio", "CONFIG_VIRTIO", "drivers/virtio"),
    driver("virtio_ring", "CONFIG_VIRTIO", "drivers/virtio"),
    driver("virtio_mmio", "CONFIG_VIRTIO_MMIO", "drivers/virtio"),
    driver("virtio_pci_modern_dev", "CONFIG_VIRTIO_PCI_LIB", "drivers/virtio"),
    driver("virtio_pci_legacy_dev", "CONFIG_VIRTIO_PCI_LIB_LEGACY", "drivers/virtio"),
    driver("virtio_pci", "CONFIG_VIRTIO_PCI", "drivers/virtio"),
    Driver { needed: true, ..driver("virtio_blk", "CONFIG_VIRTIO_BLK", "drivers/block") },
];
const DECOMPRESS_OPTION: &str = "CONFIG_MODULE_DECOMPRESS";

const fn driver(name: &'static str, option: &'static str, place: &'static str) -> Driver {
    Driver { name, option, place, needed: false }
}

/// Endings of a module's file (scripts/Makefile.modinst).
const ENDINGS: [&str; 4] = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"];

/// Whose modules are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// "/" but for tests.
    pub root: &'a Path,
    pub kernel: &'a Path,
    /// As the kernel names itself, where it does.
    pub release: Option<&'a str>,
    /// The kernel's configuration, where the user named it; else it is looked for.
    pub config: Option<&'a Path>,
    /// Where the user says the modules are: nothing else is looked at then.
    pub dir: Option<&'a Path>,
}

/// Files to pack, as (host, guest) in the order to load them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modules {
    pub files: Vec<(PathBuf, String)>,
    pub notes: Vec<String>,
}

/// How a kernel has a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Built {
    In,
    Module,
    Not,
    /// There is no configuration to look at.
    Unknown,
}

/// The modules that /dev/vda needs and this kernel does not have built in.
pub fn for_disk(request: &Request<'_>) -> Result<Modules> {
    let kernel = request.kernel.display();
    let config = read_config(request)?;
    let places = places(request);
    let holds = |place: &&PathBuf| DISK_DRIVERS.iter().any(|driver| find(place, driver).is_some());
    let place = places.iter().find(holds);
    let (dependencies, builtin) = match place {
        Some(place) => (read_list(place, "modules.dep")?, read_list(place, "modules.builtin")?),
        None => Default::default(),
    };
    let mut modules = Modules::default();
    let mut assumed = Vec::new();
    for driver in &DISK_DRIVERS {
        let file = place.and_then(|place| Some((place, find(place, driver)?)));
        let built = match built(config.as_deref(), driver.option) {
            Built::Unknown if builtin.lines().any(|line| stem(line) == driver.name) => Built::In,
            known => known,
        };
        match (built, file) {
            (Built::In, _) => {}
            (Built::Not, _) if driver.needed => {
                let message = format!("{kernel} was built without {}, which --disk needs", driver.option);
                return Err(Error::cannot_judge(message));
            }
            (Built::Module | Built::Unknown, Some((place, file))) => modules.add(place, &file, &dependencies),
            (Built::Module, None) if driver.needed => {
                let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
                let message =
                    format!("{} is a module of {kernel}, and is in none of {}", driver.name, looked.join(", "));
                return Err(Error::usage(message).hint("--modules DIR names the directory of the kernel's modules"));
            }
            (Built::Unknown, None) if driver.needed => assumed.push(driver.name),
            (Built::Not | Built::Module | Built::Unknown, _) => {}
        }
    }
    if !assumed.is_empty() {
        let what = assumed.join(", ");
        modules.notes.push(format!("no configuration and no modules of {kernel} were found: {what} must be built in"));
    }
    if built(config.as_deref(), DECOMPRESS_OPTION) == Built::Not {
        if let Some((file, _)) = modules.files.iter().find(|(file, _)| file.extension().is_some_and(|e| e != "ko")) {
            let message =
                format!("{kernel} cannot unpack {}: it was built without {DECOMPRESS_OPTION}", file.display());
            return Err(Error::usage(message).hint("unpack the modules into a directory, and name it with --modules"));
        }
    }
    Ok(modules)
}

impl Modules {
    /// Adds a module behind what `modules.dep` says that it depends on, which names the nearest first.
    fn add(&mut self, place: &Path, file: &Path, dependencies: &str) {
        let name = stem(&file.to_string_lossy());
        let line = dependencies.lines().filter_map(|line| line.split_once(':')).find(|(path, _)| stem(path) == name);
        let before = line.map(|(_, list)| list.split_whitespace().rev()).into_iter().flatten();
        for path in before.map(|path| place.join(path)).chain([file.to_path_buf()]) {
            let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
            if !self.files.iter().any(|(known, _)| stem(&known.to_string_lossy()) == stem(&name)) {
                self.files.push((path, format!("{MODULE_DIR}/{name}")));
            }
        }
    }
}

/// `kernel/drivers/block/virtio_blk.ko.xz` is virtio_blk; a dash in a file's name is an underscore in the module's.
fn stem(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

/// Directories that may hold the kernel's modules, best first.
fn places(request: &Request<'_>) -> Vec<PathBuf> {
    let of_release = |dir: &Path| request.release.map(|release| dir.join(release));
    if let Some(dir) = request.dir {
        let inside = [of_release(&dir.join("lib/modules")), of_release(dir)];
        return [dir.to_path_buf()].into_iter().chain(inside.into_iter().flatten()).collect();
    }
    let real = fs::canonicalize(request.kernel).unwrap_or_else(|_| request.kernel.to_path_buf());
    let mut places = Vec::new();
    for dir in [request.kernel.parent(), real.parent()].into_iter().flatten() {
        places.extend([dir.join("modules"), dir.to_path_buf()]);
        places.extend(of_release(&dir.join("lib/modules")));
        // boot/vmlinuz-RELEASE of a package that was unpacked, and arch/x86/boot/bzImage of a build tree.
        places.extend(dir.parent().and_then(|above| of_release(&above.join("lib/modules"))));
        places.extend(dir.parent().and_then(|above| of_release(&above.join("usr/lib/modules"))));
        places.extend(dir.ancestors().nth(3).filter(|_| dir.ends_with("arch/x86/boot")).map(Path::to_path_buf));
    }
    places.extend(of_release(&request.root.join("lib/modules")));
    places.extend(of_release(&request.root.join("usr/lib/modules")));
    let mut seen = std::collections::BTreeSet::new();
    places.retain(|place| seen.insert(place.clone()));
    places
}

/// The driver's file in a distribution's tree, in a build tree, or in a directory that holds just modules.
fn find(place: &Path, driver: &Driver) -> Option<PathBuf> {
    let Driver { name, place: below, .. } = driver;
    [format!("kernel/{below}/{name}"), format!("{below}/{name}"), (*name).to_owned()]
        .iter()
        .flat_map(|path| ENDINGS.map(|ending| place.join(format!("{path}{ending}"))))
        .find(|path| path.is_file())
}

/// A list of depmod's; empty where it is missing.
fn read_list(place: &Path, name: &str) -> Result<String> {
    let path = place.join(name);
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        other => other.context(|| format!("read {}", path.display())).map_err(|error| error.with_kind(Kind::Usage)),
    }
}

fn read_config(request: &Request<'_>) -> Result<Option<String>> {
    let found = match request.config {
        Some(config) => Some(config.to_path_buf()),
        None => {
            kconfig::candidates(request.root, request.kernel, request.release).into_iter().find(|path| path.is_file())
        }
    };
    found.map(|path| read_limited(&path)).transpose()
}

/// A configuration as text, as far as it is.
fn read_limited(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(CONFIG_MOST_BYTES + 1).read_to_end(&mut bytes));
    let what = || format!("read the kernel configuration {}", path.display());
    read.context(what).map_err(|error| error.with_kind(Kind::Usage))?;
    if bytes.len() as u64 > CONFIG_MOST_BYTES {
        return Err(Error::usage(format!("{} is larger than any kernel's configuration", path.display())));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn built(config: Option<&str>, option: &str) -> Built {
    let Some(config) = config else { return Built::Unknown };
    match config.lines().find_map(|line| line.strip_prefix(option)?.strip_prefix('=')).map(str::trim) {
        Some("y") => Built::In,
        Some("m") => Built::Module,
        _ => Built::Not,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tempdir::TempDir;
    use super::*;

    const DEBIAN: &[u8] =
        b"CONFIG_VIRTIO=y\nCONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_PCI_LIB=y\nCONFIG_VIRTIO_PCI_LIB_LEGACY=y\n\
        CONFIG_VIRTIO_MMIO=m\nCONFIG_VIRTIO_BLK=m\nCONFIG_MODULE_DECOMPRESS=y\n";

    fn modules(dir: &TempDir, release: Option<&str>, named: Option<&Path>) -> Result<Vec<String>> {
        let kernel = dir.path().join("k/vmlinuz");
        let request = Request { root: dir.path(), kernel: &kernel, release, config: None, dir: named };
        Ok(for_disk(&request)?.files.into_iter().map(|(_, guest)| guest.replace("/ktstr/modules/", "")).collect())
    }

    #[test]
    fn configuration_without_an_end_is_refused() {
        let why = read_limited(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(why.contains("/dev/zero is larger than any kernel's configuration"), "{why}");
    }

    #[test]
    fn modules_beside_the_kernel_come_without_depmod_and_still_compressed() {
        let dir = TempDir::new("modules-beside");
        dir.write("k/config", DEBIAN);
        dir.write("k/modules/virtio_blk.ko.xz", b"");
        dir.write("k/modules/virtio_mmio.ko.xz", b"");
        dir.write("k/modules/kvm.ko", b"");
        assert_eq!(modules(&dir, None, None).unwrap(), ["virtio_mmio.ko.xz", "virtio_blk.ko.xz"]);
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dir = TempDir::new("modules-dep");
        dir.write("k/config", &[b"CONFIG_VIRTIO=m\nCONFIG_VIRTIO_BLK=m\nCONFIG_VIRTIO_MMIO=m\n".as_slice()].concat());
        for path in ["drivers/virtio/virtio", "drivers/virtio/virtio_ring", "drivers/virtio/virtio_mmio"] {
            dir.write(&format!("lib/modules/7.2/kernel/{path}.ko"), b"");
        }
        dir.write("lib/modules/7.2/kernel/drivers/block/virtio_blk.ko", b"");
        let dep = "kernel/drivers/block/virtio_blk.ko: kernel/lib/odd-one.ko kernel/drivers/virtio/virtio_ring.ko \
                   kernel/drivers/virtio/virtio.ko\n";
        dir.write("lib/modules/7.2/modules.dep", dep.as_bytes());
        let names = modules(&dir, Some("7.2"), None).unwrap();
        assert_eq!(names, ["virtio.ko", "virtio_ring.ko", "virtio_mmio.ko", "odd-one.ko", "virtio_blk.ko"]);
    }

    #[test]
    fn drivers_that_are_built_in_are_not_packed() {
        let dir = TempDir::new("modules-builtin");
        dir.write("k/config", b"CONFIG_VIRTIO=y\nCONFIG_VIRTIO_BLK=y\nCONFIG_VIRTIO_MMIO=y\n");
        dir.write("k/modules/virtio_blk.ko", b"");
        assert_eq!(modules(&dir, None, None).unwrap(), Vec::<String>::new());
        fs::remove_file(dir.path().join("k/config")).unwrap();
        dir.write("k/modules/modules.builtin", b"kernel/drivers/virtio/virtio_mmio.ko\n");
        dir.write("k/modules/virtio_mmio.ko", b"");
        assert_eq!(modules(&dir, None, None).unwrap(), ["virtio_blk.ko"]);
    }

    #[test]
    fn missing_driver_is_told_before_anything_boots() {
        let dir = TempDir::new("modules-missing");
        dir.write("k/config", b"CONFIG_VIRTIO_MMIO=m\nCONFIG_VIRTIO_BLK=m\n");
        let error = modules(&dir, Some("7.2"), None).unwrap_err();
        assert!(error.to_string().contains("virtio_blk is a module of") && error.to_string().contains("--modules DIR"));
        dir.write("k/config", b"CONFIG_VIRTIO_MMIO=m\n# CONFIG_VIRTIO_BLK is not set\n");
        let error = modules(&dir, None, None).unwrap_err();
        assert_eq!((error.kind(), error.to_string().contains("without CONFIG_VIRTIO_BLK")), (Kind::CannotJudge, true));
        dir.write("k/config", b"CONFIG_VIRTIO_MMIO=m\nCONFIG_VIRTIO_BLK=m\n");
        dir.write("k/modules/virtio_blk.ko.xz", b"");
        assert!(modules(&dir, None, None).unwrap_err().to_string().contains("CONFIG_MODULE_DECOMPRESS"));
    }

    #[test]
    fn named_directory_is_the_only_one_looked_at() {
        let dir = TempDir::new("modules-named");
        dir.write("k/config", DEBIAN);
        dir.write("k/modules/virtio_blk.ko", b"");
        dir.write("mine/lib/modules/7.2/kernel/drivers/block/virtio_blk.ko.zst", b"");
        let mine = dir.path().join("mine");
        assert_eq!(modules(&dir, Some("7.2"), Some(&mine)).unwrap(), ["virtio_blk.ko.zst"]);
        assert!(modules(&dir, None, Some(&dir.path().join("k/nothing"))).is_err());
    }

    #[test]
    fn kernel_of_which_nothing_is_known_is_taken_as_it_is() {
        let dir = TempDir::new("modules-unknown");
        let kernel = dir.path().join("k/vmlinuz");
        let request = Request { root: dir.path(), kernel: &kernel, release: None, config: None, dir: None };
        let found = for_disk(&request).unwrap();
        assert!(found.files.is_empty() && found.notes[0].contains("virtio_blk must be built in"), "{found:?}");
    }
}
