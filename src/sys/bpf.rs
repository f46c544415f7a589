//! The bpf(2) system call: just what it takes to load a struct_ops scheduler, to look into its memory, and
//! to run a program once.
//!
//! Owns the attribute layouts and the calls; leaves programs, types and their meaning to scx/.
//! Invariant: every descriptor made here is close-on-exec (the kernel sees to it) and closed when dropped.

use super::{c_string, check_long};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// enum bpf_cmd (include/uapi/linux/bpf.h).
const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
/// Also called BPF_PROG_TEST_RUN.
const PROG_RUN: libc::c_int = 10;
const BTF_LOAD: libc::c_int = 18;
const LINK_CREATE: libc::c_int = 28;

/// BPF_MAP_TYPE_ARRAY (enum bpf_map_type).
const MAP_TYPE_ARRAY: u32 = 2;
/// BPF_MAP_TYPE_STRUCT_OPS.
const MAP_TYPE_STRUCT_OPS: u32 = 26;
/// BPF_F_LINK: the map is attached by a link, so that closing the link detaches it.
const F_LINK: u32 = 1 << 13;
/// BPF_PROG_TYPE_STRUCT_OPS (enum bpf_prog_type).
const PROG_TYPE_STRUCT_OPS: u32 = 27;
/// BPF_PROG_TYPE_SYSCALL: runs when it is told to, with a buffer of ours as its context.
const PROG_TYPE_SYSCALL: u32 = 31;
/// BPF_F_SLEEPABLE (program flag).
const F_SLEEPABLE: u32 = 1 << 4;
/// BPF_STRUCT_OPS (enum bpf_attach_type).
const ATTACH_STRUCT_OPS: u32 = 44;
/// BPF_OBJ_NAME_LEN.
const NAME_BYTES: usize = 16;
/// One encoded instruction (struct bpf_insn).
pub const INSN_BYTES: usize = 8;
/// Room for the verifier's log; what does not fit is cut by the kernel.
const LOG_BYTES: usize = 1 << 20;
/// The verifier gives up with EAGAIN where a signal is pending; libbpf also tries five times.
const LOAD_ATTEMPTS: u32 = 5;
/// Value of the one element of a `state_map`.
const STATE_BYTES: u32 = 8;

/// The part of union bpf_attr for BPF_MAP_CREATE.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; NAME_BYTES],
    map_ifindex: u32,
    btf_fd: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
    btf_vmlinux_value_type_id: u32,
}

/// The same for BPF_MAP_LOOKUP_ELEM and BPF_MAP_UPDATE_ELEM.
#[repr(C)]
#[derive(Default)]
struct MapElement {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same for BPF_PROG_LOAD, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME_BYTES],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// The same for BPF_PROG_RUN.
#[repr(C)]
#[derive(Default)]
struct ProgRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

/// The same for BPF_BTF_LOAD.
#[repr(C)]
#[derive(Default)]
struct BtfLoad {
    btf: u64,
    btf_log_buf: u64,
    btf_size: u32,
    btf_log_size: u32,
    btf_log_level: u32,
    padding: u32,
}

/// The same for BPF_LINK_CREATE.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    map_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// # Safety
/// Every address in `attr` is valid for the length that `attr` states, for the time of the call.
unsafe fn call<T>(command: libc::c_int, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is valid for its size; the caller vouches for the addresses in it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    Ok(check_long(result)? as i32)
}

fn owned(raw: i32) -> OwnedFd {
    // SAFETY: every caller passes a descriptor that a successful call has just returned, owned by nobody else.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

fn object_name(name: &str) -> [u8; NAME_BYTES] {
    let mut field = [0; NAME_BYTES];
    // The last byte stays 0: the kernel wants a terminated name.
    for (to, from) in field.iter_mut().take(NAME_BYTES - 1).zip(name.bytes()) {
        *to = from;
    }
    field
}

/// Hands type information to the kernel.
pub fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = BtfLoad { btf: btf.as_ptr() as u64, btf_size: btf.len() as u32, ..BtfLoad::default() };
    // SAFETY: `btf` is valid for its length and only read.
    unsafe { call(BTF_LOAD, &mut attr) }.map(owned)
}

/// A map that holds one operations table of the kernel's type `value_type_id`. The kernel asks for some BTF beside it.
pub fn struct_ops_map(name: &str, btf: BorrowedFd<'_>, value_type_id: u32, value_bytes: u32) -> io::Result<OwnedFd> {
    let mut attr = MapCreate {
        map_type: MAP_TYPE_STRUCT_OPS,
        key_size: 4,
        value_size: value_bytes,
        max_entries: 1,
        map_flags: F_LINK,
        map_name: object_name(name),
        btf_fd: btf.as_raw_fd() as u32,
        btf_vmlinux_value_type_id: value_type_id,
        ..MapCreate::default()
    };
    // SAFETY: the attribute holds no address.
    unsafe { call(MAP_CREATE, &mut attr) }.map(owned)
}

/// An array of one zeroed 64-bit word, shared between a program and us.
pub fn state_map(name: &str) -> io::Result<OwnedFd> {
    let mut attr = MapCreate {
        map_type: MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: STATE_BYTES,
        max_entries: 1,
        map_name: object_name(name),
        ..MapCreate::default()
    };
    // SAFETY: the attribute holds no address.
    unsafe { call(MAP_CREATE, &mut attr) }.map(owned)
}

/// The word of a `state_map`.
pub fn state(map: BorrowedFd<'_>) -> io::Result<u64> {
    let (key, mut value) = (0u32, 0u64);
    let mut attr = MapElement {
        map_fd: map.as_raw_fd() as u32,
        key: &raw const key as u64,
        value: &raw mut value as u64,
        ..MapElement::default()
    };
    // SAFETY: key and value outlive the call and have the sizes a `state_map` was made with.
    unsafe { call(MAP_LOOKUP_ELEM, &mut attr) }?;
    Ok(value)
}

/// Fills the one element of a `struct_ops_map`. `value` has the length the map was made with.
pub fn set_struct_ops(map: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    let key = 0u32;
    let mut attr = MapElement {
        map_fd: map.as_raw_fd() as u32,
        key: &raw const key as u64,
        value: value.as_ptr() as u64,
        ..MapElement::default()
    };
    // SAFETY: key and value outlive the call; the caller made the map with the length of `value`.
    unsafe { call(MAP_UPDATE_ELEM, &mut attr) }?;
    Ok(())
}

/// Attaches a filled `struct_ops_map`. Closing the link detaches it.
pub fn link_struct_ops(map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr =
        LinkCreate { map_fd: map.as_raw_fd() as u32, attach_type: ATTACH_STRUCT_OPS, ..LinkCreate::default() };
    // SAFETY: the attribute holds no address.
    unsafe { call(LINK_CREATE, &mut attr) }.map(owned)
}

/// A program to be loaded.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    pub name: &'a str,
    pub license: &'a CStr,
    pub code: &'a [[u8; INSN_BYTES]],
    pub sleepable: bool,
    /// The kernel's type id of an operations table, and the index of the member in it that this is; none: it is run by `run`.
    pub place: Option<(u32, u32)>,
}

/// A program that the kernel refused.
#[derive(Debug)]
pub struct Refused {
    pub cause: io::Error,
    /// What the verifier said; empty where it did not come to that.
    pub log: String,
}

/// Loads one program; where it is refused, loads it again for the verifier's log.
pub fn load(program: &Program<'_>) -> Result<OwnedFd, Refused> {
    let first = match load_retrying(program, None) {
        Ok(fd) => return Ok(fd),
        Err(cause) => cause,
    };
    let mut log = vec![0u8; LOG_BYTES];
    if let Ok(fd) = load_retrying(program, Some(&mut log)) {
        return Ok(fd);
    }
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    Err(Refused { cause: first, log: String::from_utf8_lossy(&log[..end]).into_owned() })
}

fn load_retrying(program: &Program<'_>, mut log: Option<&mut Vec<u8>>) -> io::Result<OwnedFd> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match load_once(program, log.as_deref_mut()) {
            Err(cause) if cause.raw_os_error() == Some(libc::EAGAIN) && attempt < LOAD_ATTEMPTS => {}
            other => return other,
        }
    }
}

fn load_once(program: &Program<'_>, log: Option<&mut Vec<u8>>) -> io::Result<OwnedFd> {
    let (attach_btf_id, expected_attach_type) = program.place.unwrap_or_default();
    let mut attr = ProgLoad {
        prog_type: if program.place.is_some() { PROG_TYPE_STRUCT_OPS } else { PROG_TYPE_SYSCALL },
        insn_cnt: program.code.len() as u32,
        insns: program.code.as_ptr() as u64,
        license: program.license.as_ptr() as u64,
        prog_flags: if program.sleepable { F_SLEEPABLE } else { 0 },
        prog_name: object_name(program.name),
        expected_attach_type,
        attach_btf_id,
        ..ProgLoad::default()
    };
    if let Some(log) = log {
        (attr.log_level, attr.log_size, attr.log_buf) = (1, log.len() as u32, log.as_mut_ptr() as u64);
    }
    // SAFETY: code and license are valid and only read; the log is valid for its length and borrowed for the call.
    unsafe { call(PROG_LOAD, &mut attr) }.map(owned)
}

/// Runs a program that has no place in a table. It reads and writes `context`. Returns what the program returned.
pub fn run(program: BorrowedFd<'_>, context: &mut [u8]) -> io::Result<u32> {
    let mut attr = ProgRun {
        prog_fd: program.as_raw_fd() as u32,
        ctx_size_in: context.len() as u32,
        ctx_in: context.as_mut_ptr() as u64,
        ..ProgRun::default()
    };
    // SAFETY: the context is valid for its length and borrowed mutably for the call, which writes it back there.
    unsafe { call(PROG_RUN, &mut attr) }?;
    Ok(attr.retval)
}

/// Whether `name` may be the name of a program, a map or an operations table (kernel/bpf/syscall.c, bpf_obj_name_cpy).
pub fn is_object_name(name: &str) -> bool {
    c_string(name).is_ok() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn attributes_have_the_kernels_layout() {
        // Offsets in union bpf_attr, include/uapi/linux/bpf.h.
        assert_eq!(offset_of!(MapCreate, map_name), 28);
        assert_eq!(offset_of!(MapCreate, btf_vmlinux_value_type_id), 60);
        assert_eq!(offset_of!(MapElement, value), 16);
        assert_eq!(offset_of!(ProgLoad, prog_name), 48);
        assert_eq!(offset_of!(ProgLoad, expected_attach_type), 68);
        assert_eq!(offset_of!(ProgLoad, attach_btf_id), 108);
        assert_eq!(offset_of!(ProgRun, ctx_size_in), 40);
        assert_eq!(offset_of!(ProgRun, ctx_in), 48);
        assert_eq!(offset_of!(BtfLoad, btf_size), 16);
        assert_eq!(size_of::<LinkCreate>(), 16);
    }

    #[test]
    fn long_names_are_cut_and_stay_terminated() {
        assert_eq!(&object_name("ktstr"), b"ktstr\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(&object_name("a_name_of_more_than_16"), b"a_name_of_more_\0");
    }

    #[test]
    fn names_the_kernel_would_refuse_are_known() {
        assert!(is_object_name("ktstr_fifo.1"));
        assert!(!is_object_name("ktstr-fifo"));
        assert!(!is_object_name("a\0b"));
    }

    #[test]
    fn a_descriptor_that_is_no_map_is_refused() {
        let file = super::super::fd::memfd("test", 0).unwrap();
        use std::os::fd::AsFd;
        assert!(state(file.as_fd()).is_err());
        assert!(link_struct_ops(file.as_fd()).is_err());
        assert!(run(file.as_fd(), &mut [0; 8]).is_err());
    }
}
