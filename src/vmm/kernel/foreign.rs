//! What a file is that is no bootable x86_64 kernel, told from its first bytes.
//!
//! Owns the table of magic numbers and the words for each; leaves deciding that a file is foreign to the parent module.
//! Invariant: a pure function of the bytes.

/// Bytes of a file's start that `describe` wants: enough for a tar header, the farthest magic.
pub const HEAD_BYTES: usize = 512;

/// (offset, magic, what it is, what to do about it). Sources: each format's own specification, as in file(1).
const MAGICS: [(usize, &[u8], &str, &str); 25] = [
    (0, b"\x1f\x8b", "a gzip file", "unpack it first; a bzImage needs no unpacking"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it first; a bzImage needs no unpacking"),
    (0, b"\xfd7zXZ\0", "an xz file", "unpack it first; a bzImage needs no unpacking"),
    (0, b"BZh", "a bzip2 file", "unpack it first; a bzImage needs no unpacking"),
    (0, b"\x02\x21\x4c\x18", "an lz4 file", "unpack it first; a bzImage needs no unpacking"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file", "unpack it first; a bzImage needs no unpacking"),
    (0, b"\x5d\0\0", "an lzma file", "unpack it first; a bzImage needs no unpacking"),
    (0, b"\x89LZO\0", "an lzop file", "unpack it first; a bzImage needs no unpacking"),
    (0x38, b"ARM\x64", "a kernel for aarch64 (Image)", X86_ONLY),
    (0x38, b"RSC\x05", "a kernel for riscv64 (Image)", X86_ONLY),
    (4, b"zimg", "an EFI zboot image, as aarch64 and riscv64 kernels are packed", X86_ONLY),
    (0x24, b"\x18\x28\x6f\x01", "a kernel for 32-bit arm (zImage)", X86_ONLY),
    (0, b"\x27\x05\x19\x56", "a U-Boot image", X86_ONLY),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or FIT image", X86_ONLY),
    (0, b"07070", "a cpio archive, as an initramfs is one", "give the kernel, not its initramfs"),
    (257, b"ustar", "a tar archive", "unpack it and give arch/x86/boot/bzImage or boot/vmlinuz"),
    (0, b"!<arch>\n", "an ar archive or a Debian package", "unpack it (dpkg -x) and give boot/vmlinuz"),
    (0, b"\xed\xab\xee\xdb", "an RPM package", "unpack it and give its vmlinuz"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it first"),
    (0, b"QFI\xfb", "a qcow2 disk image", GIVE_KERNEL),
    (0, b"hsqs", "a squashfs file system", GIVE_KERNEL),
    (0, b"#!", "a script", GIVE_KERNEL),
    (0, b"\x7fELF", "an ELF file", GIVE_KERNEL),
    (0, b"MZ", "a PE program (EFI or Windows) that is no Linux kernel", GIVE_KERNEL),
    (0, b"# Automatically generated", "a kernel configuration", GIVE_KERNEL),
];

const X86_ONLY: &str = "ktstr boots x86_64 kernels: a bzImage or an ELF vmlinux";
pub const GIVE_KERNEL: &str = "give an x86_64 bzImage (arch/x86/boot/bzImage, /boot/vmlinuz-RELEASE) or an ELF vmlinux";

/// What these first bytes are, and what to do about it.
pub fn describe(head: &[u8]) -> (&'static str, &'static str) {
    for (offset, magic, what, hint) in MAGICS {
        if head.get(offset..).is_some_and(|rest| rest.starts_with(magic)) {
            return (what, hint);
        }
    }
    if head.iter().all(|b| *b == 0) {
        return ("nothing but zero bytes at its start", GIVE_KERNEL);
    }
    if head.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
        return ("a text file", GIVE_KERNEL);
    }
    ("of no kind known here", GIVE_KERNEL)
}

/// The name of an ELF machine number (System V ABI registry, include/uapi/linux/elf-em.h).
pub fn machine(number: u16) -> String {
    let name = match number {
        3 => "i386",
        8 => "mips",
        20 => "powerpc",
        21 => "ppc64",
        22 => "s390x",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv",
        247 => "bpf",
        258 => "loongarch",
        other => return format!("machine {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_mistakes_are_named() {
        let mut arm = vec![0u8; 64];
        arm[..2].copy_from_slice(b"MZ");
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        let mut zboot = vec![0u8; 64];
        zboot[..8].copy_from_slice(b"MZ\0\0zimg");
        for (head, word) in [
            (&b"\x1f\x8b\x08\0"[..], "gzip"),
            (b"\x28\xb5\x2f\xfd....", "zstd"),
            (&arm, "aarch64"),
            (&zboot, "zboot"),
            (b"070701000", "cpio"),
            (b"#!/bin/sh\n", "script"),
            (b"hello\n", "text"),
            (&[0; 64], "zero"),
            (&[0x99, 0xfe, 3], "no kind"),
            (b"", "zero"),
        ] {
            assert!(describe(head).0.contains(word), "{word}: {}", describe(head).0);
        }
    }
}
