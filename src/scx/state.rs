//! What /sys/kernel/sched_ext says at one moment.
//!
//! Owns reading it; leaves what a change means to `watch`.
//! Invariant: what is not there is `None` or empty, never an error: the files come and go with the scheduler.

use std::path::{Path, PathBuf};

/// Where sched_ext shows itself, below the root directory.
pub fn sched_ext_dir(root: &Path) -> PathBuf {
    root.join("sys/kernel/sched_ext")
}

/// The state word while a scheduler runs (kernel/sched/ext.c, scx_enable_state_str).
pub const ENABLED: &str = "enabled";
/// The state word while none does.
pub const DISABLED: &str = "disabled";

/// One look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// `disabled`, `enabling`, `enabled`, `disabling`; empty where the kernel has no sched_ext.
    pub state: String,
    /// Name of the loaded scheduler; the file is there only while one is.
    pub ops: Option<String>,
    /// Grows by one with every successful enable.
    pub enable_seq: Option<u64>,
    pub nr_rejected: Option<u64>,
    /// Whether the loaded scheduler has all normal tasks, or only those at SCHED_EXT.
    pub switch_all: Option<bool>,
    /// Event counters of the loaded scheduler; empty on kernels that have none.
    pub events: Vec<(String, u64)>,
}

impl Snapshot {
    /// Reads `dir` (/sys/kernel/sched_ext).
    pub fn read(dir: &Path) -> Self {
        // An unreadable file is a missing one: it vanishes with the scheduler, also between open and read.
        let text = |name: &str| std::fs::read_to_string(dir.join(name)).map(|text| text.trim().to_string()).ok();
        let number = |name: &str| text(name).and_then(|text| text.parse().ok());
        Self {
            state: text("state").unwrap_or_default(),
            ops: text("root/ops").filter(|ops| !ops.is_empty()),
            enable_seq: number("enable_seq"),
            nr_rejected: number("nr_rejected"),
            switch_all: number("switch_all").map(|all| all != 0),
            events: text("root/events").map(|text| parse_events(&text)).unwrap_or_default(),
        }
    }

    /// Only the state word, for waiting: whether nothing is loaded. A kernel without sched_ext has nothing loaded.
    pub fn is_disabled(dir: &Path) -> bool {
        match std::fs::read_to_string(dir.join("state")) {
            Ok(text) => text.trim() == DISABLED,
            Err(cause) => cause.kind() == std::io::ErrorKind::NotFound,
        }
    }

    /// How the counters grew since `earlier`.
    pub fn events_since(&self, earlier: &Self) -> Vec<(String, i64)> {
        let before = |name: &str| earlier.events.iter().find(|(known, _)| known == name).map_or(0, |(_, value)| *value);
        self.events.iter().map(|(name, value)| (name.clone(), value.wrapping_sub(before(name)) as i64)).collect()
    }
}

/// Lines of `NAME value`; others are left out.
fn parse_events(text: &str) -> Vec<(String, u64)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, value, rest) = (words.next()?, words.next()?, words.next());
        let value = value.parse().ok()?;
        if rest.is_none() { Some((name.to_string(), value)) } else { None }
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A directory that stands for the root, removed when dropped.
    pub struct FakeRoot(pub PathBuf);

    impl FakeRoot {
        pub fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ktstr-scx-{name}-{}", std::process::id()));
            std::fs::create_dir_all(sched_ext_dir(&path)).unwrap();
            Self(path)
        }
        pub fn set(&self, name: &str, text: &str) {
            let path = sched_ext_dir(&self.0).join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        pub fn unload(&self) {
            std::fs::remove_dir_all(sched_ext_dir(&self.0).join("root")).unwrap();
            self.set("state", "disabled\n");
        }
        pub fn dir(&self) -> PathBuf {
            sched_ext_dir(&self.0)
        }
    }

    impl Drop for FakeRoot {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn loaded_scheduler_is_read_whole() {
        let root = FakeRoot::new("loaded");
        root.set("state", "enabled\n");
        root.set("enable_seq", "3\n");
        root.set("nr_rejected", "0\n");
        root.set("root/ops", "mini_fifo\n");
        root.set("root/events", "SCX_EV_SELECT_CPU_FALLBACK 4\nSCX_EV_BYPASS_DURATION 900\nbroken line here\n");
        let now = Snapshot::read(&root.dir());
        assert_eq!((now.state.as_str(), now.ops.as_deref()), ("enabled", Some("mini_fifo")));
        assert_eq!((now.enable_seq, now.nr_rejected), (Some(3), Some(0)));
        assert_eq!(now.events.len(), 2);
        assert!(!Snapshot::is_disabled(&root.dir()));
        let mut before = now.clone();
        before.events = vec![("SCX_EV_BYPASS_DURATION".into(), 1000)];
        assert_eq!(
            now.events_since(&before),
            [("SCX_EV_SELECT_CPU_FALLBACK".to_string(), 4), ("SCX_EV_BYPASS_DURATION".to_string(), -100)]
        );
    }

    #[test]
    fn kernel_without_sched_ext_is_an_empty_snapshot() {
        assert_eq!(Snapshot::read(Path::new("/nowhere")), Snapshot::default());
        assert!(Snapshot::is_disabled(Path::new("/nowhere")));
    }
}
