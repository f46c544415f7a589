//! The disk of the plan, as the kernel shows it.
//!
//! Owns waiting for it and what is said where it does not come; leaves using it to workload/.
//! Invariant: work that needs a disk never begins on another machine's, or on none.

use crate::error::{Error, Result};
use crate::sys::time;
use std::fs;
use std::path::Path;

/// The first virtio disk of a kernel.
const NAME: &str = "vda";
/// Unit of /sys/block/*/size, whatever the disk's own is (Documentation/ABI/stable/sysfs-block).
const SECTOR_BYTES: u64 = 512;
/// A driver finds its disk within milliseconds of being loaded; under emulation it has taken a second.
const WAIT_NS: u64 = 10_000_000_000;
const LOOK_NS: u64 = 5_000_000;

/// Waits for the disk, of exactly this length. `root` is "/" but for tests.
pub fn wait_for(root: &Path, bytes: u64) -> Result<()> {
    wait_until(root, bytes, time::monotonic_ns() + WAIT_NS)
}

fn wait_until(root: &Path, bytes: u64, deadline_ns: u64) -> Result<()> {
    let size = root.join("sys/block").join(NAME).join("size");
    loop {
        let sectors = fs::read_to_string(&size).ok().and_then(|text| text.trim().parse::<u64>().ok());
        // A disk shows up with no sectors before its driver has asked for its capacity.
        match sectors.filter(|count| *count > 0) {
            Some(count) if count * SECTOR_BYTES != bytes => {
                let seen = count * SECTOR_BYTES;
                return Err(Error::cannot_judge(format!("/dev/{NAME} has {seen} bytes, and {bytes} were asked for")));
            }
            Some(_) if root.join("dev").join(NAME).exists() => return Ok(()),
            _ => {}
        }
        if time::monotonic_ns() > deadline_ns {
            return Err(Error::cannot_judge(format!("/dev/{NAME} did not appear")).hint(
                "the kernel needs CONFIG_VIRTIO_BLK, and CONFIG_VIRTIO_MMIO with ACPI (on QEMU: CONFIG_VIRTIO_PCI)",
            ));
        }
        if let Err(error) = time::sleep_ns(LOOK_NS) {
            // A signal only shortens it.
            debug_assert_eq!(error.raw_os_error(), Some(libc::EINTR));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_of_the_right_length_is_accepted_and_no_other() {
        let root = std::env::temp_dir().join(format!("ktstr-guest-disk-{}", std::process::id()));
        fs::create_dir_all(root.join("sys/block/vda")).unwrap();
        fs::create_dir_all(root.join("dev")).unwrap();
        let missing = wait_until(&root, 1 << 20, 0).unwrap_err().to_string();
        assert!(missing.contains("did not appear") && missing.contains("CONFIG_VIRTIO_BLK"), "{missing}");
        fs::write(root.join("sys/block/vda/size"), "2048\n").unwrap();
        assert!(wait_until(&root, 1 << 20, 0).is_err(), "no node yet");
        fs::write(root.join("dev/vda"), "").unwrap();
        assert!(wait_until(&root, 1 << 20, 0).is_ok());
        let other = wait_until(&root, 1 << 21, 0).unwrap_err().to_string();
        assert!(other.contains("has 1048576 bytes, and 2097152 were asked for"), "{other}");
        fs::remove_dir_all(root).unwrap();
    }
}
