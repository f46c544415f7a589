//! Reads BTF, the kernel's description of its own types (Documentation/bpf/btf.rst), from untrusted bytes.
//!
//! Owns finding types and functions by name, members and sizes; leaves which are wanted to the caller.
//! Invariant: any bytes give an answer or an error, in one pass over the types; nothing is indexed unchecked.

/// First two bytes of BTF.
const MAGIC: u16 = 0xeb9f;
/// Shortest header: up to and including str_len.
const HEADER_BYTES: usize = 24;
/// struct btf_type: name_off, info, and size or type.
const TYPE_BYTES: usize = 12;
/// Types that only name another one are followed so many times before they are taken for a loop.
const MAX_CHAIN: u32 = 32;

/// BTF_KIND_* (include/uapi/linux/btf.h), those this reader looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Int,
    Pointer,
    Array,
    Struct,
    Union,
    Enum,
    /// A type that only gives another one a name or a quality.
    Alias,
    Func,
    Variable,
    Other,
}

/// Number, kind, bytes after the common part: fixed, and for each of vlen.
const KINDS: [(Kind, usize, usize); 20] = [
    (Kind::Other, 0, 0), // 0: void, never stored
    (Kind::Int, 4, 0),   // 1
    (Kind::Pointer, 0, 0),
    (Kind::Array, 12, 0),
    (Kind::Struct, 0, 12),
    (Kind::Union, 0, 12), // 5
    (Kind::Enum, 0, 8),
    (Kind::Other, 0, 0), // forward
    (Kind::Alias, 0, 0), // typedef
    (Kind::Alias, 0, 0), // volatile
    (Kind::Alias, 0, 0), // 10: const
    (Kind::Alias, 0, 0), // restrict
    (Kind::Func, 0, 0),
    (Kind::Other, 0, 8), // function prototype
    (Kind::Variable, 4, 0),
    (Kind::Other, 0, 12), // 15: data section
    (Kind::Other, 0, 0),  // float
    (Kind::Other, 4, 0),  // declaration tag
    (Kind::Alias, 0, 0),  // type tag
    (Kind::Enum, 0, 12),  // enum64
];

/// Why bytes are not BTF that can be read.
pub type Damage = String;

/// A member of a structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub offset_bytes: u32,
    pub type_id: u32,
}

/// Parsed BTF: the bytes, and where each type begins.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset of type `id` is `starts[id - 1]`; id 0 is void.
    starts: Vec<u32>,
}

/// The common part of a type.
#[derive(Clone, Copy, Debug)]
struct Header {
    name: u32,
    kind: Kind,
    count: usize,
    flag: bool,
    size_or_type: u32,
    /// What follows it in the types section.
    rest: usize,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let end = at.checked_add(4)?;
    bytes.get(at..end).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

impl<'a> Btf<'a> {
    /// Takes the sections apart and finds where each type begins.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Damage> {
        let short = || format!("{} bytes are no BTF header", bytes.len());
        let header: [u32; 6] = {
            let mut words = [0; 6];
            for (index, word) in words.iter_mut().enumerate() {
                *word = u32_at(bytes, index * 4).ok_or_else(short)?;
            }
            words
        };
        if header[0] as u16 != MAGIC {
            return Err(format!("BTF begins with {:#06x}, not {MAGIC:#06x}", header[0] as u16));
        }
        let base = header[1] as usize;
        if base < HEADER_BYTES {
            return Err(format!("BTF header length {base} is below {HEADER_BYTES}"));
        }
        let section = |what: &str, offset: u32, length: u32| {
            let start = base.checked_add(offset as usize);
            let range = start.and_then(|start| Some(start..start.checked_add(length as usize)?));
            range.and_then(|range| bytes.get(range)).ok_or_else(|| format!("BTF {what} lie outside the data"))
        };
        let types = section("types", header[2], header[3])?;
        let strings = section("strings", header[4], header[5])?;
        let mut btf = Self { types, strings, starts: Vec::with_capacity(types.len() / 24) };
        let mut at = 0;
        while at < types.len() {
            let id = btf.starts.len() + 1;
            let (_, end) = btf.header_at(at).ok_or_else(|| format!("BTF type {id} is cut or of an unknown kind"))?;
            btf.starts.push(at as u32);
            at = end;
        }
        Ok(btf)
    }

    /// The type that begins at `at`, and where the next one begins.
    fn header_at(&self, at: usize) -> Option<(Header, usize)> {
        let info = u32_at(self.types, at.checked_add(4)?)?;
        let count = (info & 0xffff) as usize;
        let (kind, fixed, each) = *KINDS.get((info >> 24 & 0x1f) as usize)?;
        let rest = at + TYPE_BYTES;
        let end = rest + fixed + each * count;
        if end > self.types.len() {
            return None;
        }
        let name = u32_at(self.types, at)?;
        let size_or_type = u32_at(self.types, at + 8)?;
        Some((Header { name, kind, count, flag: info >> 31 == 1, size_or_type, rest }, end))
    }

    fn header(&self, id: u32) -> Option<Header> {
        let start = *self.starts.get((id as usize).checked_sub(1)?)?;
        self.header_at(start as usize).map(|(header, _)| header)
    }

    /// The string at an offset, without its final zero; empty where there is none.
    fn string(&self, offset: u32) -> &'a [u8] {
        let tail = self.strings.get(offset as usize..).unwrap_or_default();
        tail.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// Number of types.
    pub fn len(&self) -> usize {
        self.starts.len()
    }
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Shows every named type of one of `kinds`: id, kind, name.
    pub fn visit(&self, kinds: &[Kind], seen: &mut dyn FnMut(u32, Kind, &'a [u8])) {
        for (index, start) in self.starts.iter().enumerate() {
            if let Some((header, _)) = self.header_at(*start as usize) {
                if header.name != 0 && kinds.contains(&header.kind) {
                    seen(index as u32 + 1, header.kind, self.string(header.name));
                }
            }
        }
    }

    /// The members of a structure or union, in order.
    pub fn members(&self, id: u32) -> Result<Vec<Member>, Damage> {
        let header = self.header(id).filter(|header| matches!(header.kind, Kind::Struct | Kind::Union));
        let header = header.ok_or_else(|| format!("BTF type {id} is no structure"))?;
        let word = |index: usize, field: usize| {
            u32_at(self.types, header.rest + index * 12 + field * 4).ok_or_else(|| format!("BTF type {id} is cut"))
        };
        let mut members = Vec::with_capacity(header.count);
        for index in 0..header.count {
            // With the flag set the upper 8 bits are the width of a bit field.
            let bits = if header.flag { word(index, 2)? & 0x00ff_ffff } else { word(index, 2)? };
            let name = String::from_utf8_lossy(self.string(word(index, 0)?)).into_owned();
            members.push(Member { name, offset_bytes: bits / 8, type_id: word(index, 1)? });
        }
        Ok(members)
    }

    /// Size in bytes of a value of this type.
    pub fn size_bytes(&self, id: u32) -> Result<u32, Damage> {
        let mut id = id;
        let mut elements: u32 = 1;
        for _ in 0..MAX_CHAIN {
            let header = self.header(id).ok_or_else(|| format!("BTF has no type {id}"))?;
            let one = match header.kind {
                Kind::Int | Kind::Enum | Kind::Struct | Kind::Union => header.size_or_type,
                // Both architectures that are supported have 8-byte pointers.
                Kind::Pointer => 8,
                Kind::Alias => {
                    id = header.size_or_type;
                    continue;
                }
                Kind::Array => {
                    // struct btf_array: type, index type, number of elements.
                    let field =
                        |at| u32_at(self.types, header.rest + at).ok_or_else(|| format!("BTF type {id} is cut"));
                    let count = field(8)?;
                    elements = elements.checked_mul(count).ok_or_else(|| format!("BTF array {id} is too large"))?;
                    id = field(0)?;
                    continue;
                }
                Kind::Func | Kind::Variable | Kind::Other => return Err(format!("BTF type {id} has no size")),
            };
            return one.checked_mul(elements).ok_or_else(|| format!("BTF type {id} is too large"));
        }
        Err(format!("BTF type {id} refers to itself"))
    }
}

/// The least BTF the kernel accepts: one `int`. Creating a struct_ops map takes a descriptor of some BTF.
pub fn one_int() -> Vec<u8> {
    const NAME: &[u8] = b"\0int\0";
    const KIND_INT: u32 = 1 << 24;
    /// BTF_INT_SIGNED in the encoding bits, and 32 bits.
    const SIGNED_32: u32 = 1 << 24 | 32;
    let types: [u32; 4] = [1, KIND_INT, 4, SIGNED_32];
    let types_bytes = size_of_val(&types) as u32;
    let header: [u32; 6] = [
        u32::from(MAGIC) | 1 << 16, // version 1, no flags
        HEADER_BYTES as u32,
        0,
        types_bytes,
        types_bytes,
        NAME.len() as u32,
    ];
    let words = header.iter().chain(&types).flat_map(|word| word.to_le_bytes());
    words.chain(NAME.iter().copied()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// BTF of these strings and type words.
    pub fn encode(strings: &[u8], types: &[u32]) -> Vec<u8> {
        let types_bytes = types.len() as u32 * 4;
        let header = [0x0001_eb9f, 24, 0, types_bytes, types_bytes, strings.len() as u32];
        let words = header.iter().chain(types).flat_map(|word: &u32| word.to_le_bytes());
        words.chain(strings.iter().copied()).collect()
    }

    /// Where a string begins.
    pub fn name_in(strings: &[u8], text: &str) -> u32 {
        let padded = [b"\0", text.as_bytes(), b"\0"].concat();
        strings.windows(padded.len()).position(|window| window == padded).unwrap() as u32 + 1
    }

    /// BTF of: 1 int, 2 typedef u32 -> 1, 3 char[16] of 1 (size 4 each), 4 struct task { int pid @8; char comm[16] @16 },
    /// 5 func prototype, 6 func scx_go, 7 typedef that names itself, 8 pointer, 9 struct with bit fields.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0u32\0task\0pid\0comm\0scx_go\0loop\0";
        let name = |text: &str| name_in(strings, text);
        let info = |kind: u32, count: u32, flag: u32| flag << 31 | kind << 24 | count;
        let types: Vec<u32> = [
            vec![name("int"), info(1, 0, 0), 4, 32],
            vec![name("u32"), info(8, 0, 0), 1],
            vec![0, info(3, 0, 0), 0, 2, 1, 16],
            vec![name("task"), info(4, 2, 0), 80, name("pid"), 2, 64, name("comm"), 3, 128],
            vec![0, info(13, 1, 0), 0, name("pid"), 1],
            vec![name("scx_go"), info(12, 1, 0), 5],
            vec![name("loop"), info(8, 0, 0), 7],
            vec![0, info(2, 0, 0), 4],
            vec![name("loop"), info(4, 1, 1), 4, name("pid"), 1, 3 << 24 | 24],
        ]
        .concat();
        encode(strings, &types)
    }

    #[test]
    fn names_members_and_sizes_are_found() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.len(), 9);
        let mut seen = Vec::new();
        btf.visit(&[Kind::Struct, Kind::Func], &mut |id, kind, name| {
            seen.push((id, kind, String::from_utf8_lossy(name).into_owned()));
        });
        assert_eq!(seen[0], (4, Kind::Struct, "task".into()));
        assert_eq!(seen[1], (6, Kind::Func, "scx_go".into()));
        let members = btf.members(4).unwrap();
        assert_eq!(members[0], Member { name: "pid".into(), offset_bytes: 8, type_id: 2 });
        assert_eq!(members[1], Member { name: "comm".into(), offset_bytes: 16, type_id: 3 });
        assert_eq!(btf.members(9).unwrap()[0].offset_bytes, 3);
        assert_eq!(btf.size_bytes(2).unwrap(), 4);
        assert_eq!(btf.size_bytes(3).unwrap(), 64);
        assert_eq!(btf.size_bytes(4).unwrap(), 80);
        assert_eq!(btf.size_bytes(8).unwrap(), 8);
    }

    #[test]
    fn wrong_questions_are_errors() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert!(btf.members(1).unwrap_err().contains("no structure"));
        assert!(btf.members(0).is_err());
        assert!(btf.members(u32::MAX).is_err());
        assert!(btf.size_bytes(6).unwrap_err().contains("no size"));
        assert!(btf.size_bytes(7).unwrap_err().contains("itself"));
        assert!(btf.size_bytes(99).unwrap_err().contains("no type 99"));
    }

    /// Asks everything, so that a panic anywhere is found.
    fn exhaust(bytes: &[u8]) {
        if let Ok(btf) = Btf::parse(bytes) {
            btf.visit(&[Kind::Struct, Kind::Func, Kind::Alias], &mut |_, _, name| assert!(name.len() <= bytes.len()));
            for id in 0..btf.len() as u32 + 2 {
                for member in btf.members(id).unwrap_or_default() {
                    assert!(
                        btf.size_bytes(member.type_id).is_ok()
                            || !member.name.is_empty()
                            || member.offset_bytes < u32::MAX
                    );
                }
                assert!(btf.size_bytes(id).is_ok_and(|_| true) || id <= btf.len() as u32 + 1);
            }
        }
    }

    #[test]
    fn cut_bytes_and_altered_bytes_never_panic() {
        let bytes = sample();
        for cut in 0..bytes.len() {
            assert!(Btf::parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut altered = bytes.clone();
                altered[at] = value;
                exhaust(&altered);
            }
        }
    }

    #[test]
    fn one_int_is_btf_of_one_int() {
        let bytes = one_int();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!((btf.len(), btf.size_bytes(1).unwrap()), (1, 4));
        btf.visit(&[Kind::Int], &mut |_, _, name| assert_eq!(name, b"int"));
        assert_eq!(bytes.len(), 24 + 16 + 5);
    }
}
