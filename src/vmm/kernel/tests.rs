//! Tests of the recognition of kernel files, on files made here.
//!
//! Owns the makers of small valid and broken files; leaves real kernels to the VM tests.
//! Invariant: no test needs a kernel, KVM or root.

use super::*;
use std::io::Write;

/// A small bzImage that passes every check.
pub fn bzimage() -> Vec<u8> {
    let mut file = vec![0u8; 1024 + 4096];
    file[0x1F1] = 1;
    file[0x1F4..0x1F8].copy_from_slice(&256u32.to_le_bytes());
    file[0x1FE..0x200].copy_from_slice(&0xAA55u16.to_le_bytes());
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20Fu16.to_le_bytes());
    file[0x20E..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    file[0x211] = 1;
    file[0x22C..0x230].copy_from_slice(&0x7FFF_FFFFu32.to_le_bytes());
    file[0x236] = 1;
    file[0x238..0x23C].copy_from_slice(&2047u32.to_le_bytes());
    file[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
    file[0x260..0x264].copy_from_slice(&0x20_0000u32.to_le_bytes());
    file[0x300..0x30F].copy_from_slice(b"6.99.0-test (a)");
    file
}

/// A small vmlinux that passes every check.
pub fn vmlinux() -> Vec<u8> {
    let mut file = vec![0u8; 4096];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[24..32].copy_from_slice(&0x100_0040u64.to_le_bytes());
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..58].copy_from_slice(&[56, 0, 1, 0]);
    let header = &mut file[64..120];
    header[..4].copy_from_slice(&1u32.to_le_bytes());
    for (at, value) in [(8, 1024u64), (16, 0xFFFF_FFFF_8100_0000), (24, 0x100_0000), (32, 2048), (40, 0x10_0000)] {
        header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    file[2000..2027].copy_from_slice(b"Linux version %s\0xxxxxxxxx\n");
    file[2100..2125].copy_from_slice(b"Linux version 7.1.2-rc3 (");
    file
}

struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("ktstr-kernel-{}-{name}", std::process::id()));
        File::create(&path).unwrap().write_all(content).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

fn refused(name: &str, content: &[u8]) -> String {
    let file = TempFile::new(name, content);
    let error = KernelImage::open(&file.0).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Usage, "{name}");
    error.to_string()
}

fn with(mut file: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn bzimage_is_recognised_with_its_span_and_release() {
    let file = TempFile::new("bz", &bzimage());
    let image = KernelImage::open(&file.0).unwrap();
    assert_eq!(image.kind, KernelKind::BzImage);
    assert_eq!((image.start_gpa, image.end_gpa, image.entry_gpa), (0x100_0000, 0x120_0000, 0x100_0200));
    assert_eq!((image.initramfs_end_max, image.cmdline_max_bytes), (0x8000_0000, 2047));
    assert_eq!(image.release().unwrap().as_deref(), Some("6.99.0-test"));
    assert!(image.check_cmdline("quiet").is_ok());
    assert!(image.check_cmdline(&"x".repeat(2048)).is_err());
}

#[test]
fn vmlinux_is_recognised_with_its_span_and_release() {
    let file = TempFile::new("elf", &vmlinux());
    let image = KernelImage::open(&file.0).unwrap();
    assert_eq!(image.kind, KernelKind::Vmlinux);
    assert_eq!((image.start_gpa, image.end_gpa, image.entry_gpa), (0x100_0000, 0x110_0000, 0x100_0040));
    assert_eq!(image.release().unwrap().as_deref(), Some("7.1.2-rc3"));
}

#[test]
fn wrong_files_are_refused_with_what_they_are() {
    for (name, content, word) in [
        ("empty", vec![], "is empty"),
        ("garbage", vec![0x99; 3000], "no kind known"),
        ("gzip", b"\x1f\x8b\x08aaaaaaaa".to_vec(), "a gzip file"),
        ("bz-cut-head", bzimage()[..0x240].to_vec(), "truncated bzImage"),
        ("bz-cut-body", bzimage()[..4000].to_vec(), "truncated bzImage: 5120 bytes are announced, 4000"),
        ("bz-32", with(bzimage(), 0x236, &[0]), "i386"),
        ("bz-old", with(bzimage(), 0x206, &[0x03, 0x02]), "protocol 2.03 is older"),
        ("bz-high", with(bzimage(), 0x258, &[0xff; 8]), "outside 1 MiB to 3 GiB"),
        ("bz-low", with(bzimage(), 0x258, &[0; 8]), "outside 1 MiB to 3 GiB"),
        ("bz-huge", with(bzimage(), 0x260, &[0xff; 4]), "outside 1 MiB to 3 GiB"),
        ("elf-arm", with(vmlinux(), 18, &[183, 0]), "64-bit ELF file for aarch64"),
        ("elf-32", with(vmlinux(), 4, &[1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0]), "32-bit ELF file for i386"),
        ("elf-module", with(vmlinux(), 16, &[1, 0]), "kernel module"),
        ("elf-cut", vmlinux()[..2000].to_vec(), "truncated vmlinux"),
        ("elf-table", with(vmlinux(), 32, &[0xff; 8]), "truncated vmlinux"),
        ("elf-head", vmlinux()[..40].to_vec(), "truncated ELF"),
        ("elf-program", with(vmlinux(), 64 + 16, &0x40_0000u64.to_le_bytes()), "an ordinary program"),
        ("elf-entry", with(vmlinux(), 24, &[0; 8]), "entry point 0x0 lies outside"),
        ("elf-size", with(vmlinux(), 64 + 40, &[0xff; 8]), "outside 1 MiB to 3 GiB"),
        ("elf-offset", with(vmlinux(), 64 + 8, &[0xff; 8]), "truncated vmlinux"),
        ("elf-none", with(vmlinux(), 64, &[4]), "nothing to load"),
        ("elf-many", with(vmlinux(), 56, &[0xff, 0xff]), "program headers"),
    ] {
        let text = refused(name, &content);
        assert!(text.contains(word), "{name}: {text}");
    }
}

#[test]
fn every_cut_and_flipped_header_byte_is_survived() {
    for (name, whole, header) in [("bz", bzimage(), 0x270), ("elf", vmlinux(), 120)] {
        let file = TempFile::new(&format!("fuzz-{name}"), &whole);
        let open = File::open(&file.0).unwrap();
        for at in 0..header {
            for value in [0, 0x7f, 0x80, 0xff] {
                let broken = with(whole.clone(), at, &[value]);
                let head = &broken[..SETUP_HEADER_END.min(broken.len())];
                if let Ok(image) = KernelImage::recognise(&file.0, head, broken.len() as u64, &open) {
                    assert!(image.start_gpa < image.end_gpa && image.end_gpa <= MMIO_HOLE_START);
                }
            }
        }
        for cut in 0..whole.len() {
            let head = &whole[..cut.min(SETUP_HEADER_END)];
            let cut_off = KernelImage::recognise(&file.0, head, cut as u64, &open);
            assert!(cut_off.is_err() || cut + 32 > whole.len() || cut >= 1024 + 2048, "{name} cut at {cut}");
        }
    }
}

#[test]
fn missing_file_and_directory_are_usage_errors() {
    let error = KernelImage::open(Path::new("/nowhere/vmlinuz")).unwrap_err();
    assert!(error.to_string().contains("cannot open kernel /nowhere/vmlinuz: no such file"), "{error}");
    assert_eq!(error.kind(), crate::error::Kind::Usage);
    let error = KernelImage::open(Path::new("/")).unwrap_err();
    assert!(error.to_string().contains("kernel / is a directory"), "{error}");
}

/// A kernel of one segment, 16 MiB in the file and in memory from 16 MiB on, with sections of these names and offsets.
fn with_sections(sections: &[(&str, u64)]) -> Vec<u8> {
    const TABLE: u64 = 0x100_1000;
    let mut names = vec![0];
    let mut table = vec![[0u8; 64]];
    for (name, offset) in sections.iter().chain(&[(".shstrtab", TABLE + 4096)]) {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&(names.len() as u32).to_le_bytes());
        header[24..32].copy_from_slice(&offset.to_le_bytes());
        table.push(header);
        names.extend(name.as_bytes());
        names.push(0);
    }
    let mut file = vmlinux();
    file.resize((TABLE + 4096) as usize + names.len(), 0);
    file[TABLE as usize..][..table.len() * 64].copy_from_slice(&table.concat());
    file[(TABLE + 4096) as usize..].copy_from_slice(&names);
    let count = table.len() as u16;
    let file = with(file, 40, &TABLE.to_le_bytes());
    with(file, 58, &[64u16, count, count - 1].map(u16::to_le_bytes).concat())
}

#[test]
fn part_that_is_only_read_is_in_whole_huge_pages() {
    const MIB: u64 = 1 << 20;
    let segments = [Segment { offset: 4096, gpa: 16 * MIB, bytes: 16 * MIB }];
    let at = |gpa: u64| gpa - 16 * MIB + 4096;
    let found = |sections: &[(&str, u64)]| KernelImage::read_only(&with_sections(sections), &segments);
    let text = (".text", at(16 * MIB));
    assert_eq!(found(&[text, (".rodata", at(20 * MIB)), (".data", at(26 * MIB))]), Some((20 * MIB, 26 * MIB)));
    assert_eq!(found(&[(".rodata", at(20 * MIB + 1)), (".data", at(28 * MIB - 1))]), Some((22 * MIB, 26 * MIB)));
    // Names that only begin alike are others.
    assert_eq!(found(&[(".rodata1", at(18 * MIB)), (".rodata", at(20 * MIB)), (".data..x", at(22 * MIB))]), None);
    for sections in [
        &[text][..],
        &[(".rodata", at(20 * MIB))],
        &[(".rodata", at(20 * MIB)), (".data", at(21 * MIB))],
        &[(".rodata", at(26 * MIB)), (".data", at(20 * MIB))],
        &[(".rodata", 0), (".data", at(20 * MIB))],
        &[(".rodata", at(20 * MIB)), (".data", u64::MAX)],
    ] {
        assert_eq!(found(sections), None, "{sections:?}");
    }
    // Whatever the numbers say, nothing outside of the file is looked at.
    let whole = with_sections(&[(".rodata", at(20 * MIB)), (".data", at(26 * MIB))]);
    for at in [40, 58, 60, 62, 0x100_1000 + 64 * 3 + 24] {
        for broken in [with(whole.clone(), at, &[0xff; 2]), with(whole.clone(), at + 6, &[0xff; 2])] {
            let part = KernelImage::read_only(&broken, &segments).unwrap_or((16 * MIB, 32 * MIB));
            assert!(16 * MIB <= part.0 && part.0 < part.1 && part.1 <= 32 * MIB, "{at}");
        }
    }
    assert_eq!(KernelImage::read_only(b"", &segments), None);
}
