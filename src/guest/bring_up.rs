//! Brings the CPUs up that the kernel was asked to leave for later.
//!
//! Owns how; leaves deciding that it is worth it to run/cmdline, and whether all are there to topology.
//! Invariant: a guest whose command line does not ask for it keeps the CPUs that its kernel brought up.

use super::topology::list;
use crate::error::{Error, Result};
use crate::proto::seen::LATE_CPUS_VARIABLE;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

/// Whether the command line asks for it.
pub fn is_asked() -> bool {
    std::env::var_os(LATE_CPUS_VARIABLE).is_some()
}

/// All CPUs that are present, in order, below a root directory that has `sys`, up to the first that does not come.
pub fn late_cpus(root: &Path) -> Result<()> {
    let cpus = root.join("sys/devices/system/cpu");
    let online = list(&cpus.join("online"));
    // A CPU that is not even present is told by the comparison with what was asked for.
    for cpu in list(&cpus.join("present")).iter().filter(|cpu| !online.contains(*cpu)) {
        let file = format!("/sys/devices/system/cpu/cpu{cpu}/online");
        let opened = OpenOptions::new().write(true).open(root.join(file.trim_start_matches('/')));
        opened.and_then(|mut file| file.write_all(b"1")).map_err(|error| {
            Error::cannot_judge(format!("CPU {cpu} does not come up: write 1 to {file}: {error}")).hint(
                "so many emulated CPUs are brought up by PID 1, which needs CONFIG_HOTPLUG_CPU; \
                 with maxcpus=N in --cmdline the kernel brings up N itself",
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn cpus_that_are_present_come_up_where_the_command_line_asks() {
        let root = std::env::temp_dir().join(format!("ktstr-bring-up-{}", std::process::id()));
        let cpus = root.join("sys/devices/system/cpu");
        for cpu in 0..4 {
            fs::create_dir_all(cpus.join(format!("cpu{cpu}"))).unwrap();
        }
        // CPU 3 is possible only; CPU 0 is up and has no such file.
        let put = |file: &str, content: &str| fs::write(cpus.join(file), content).unwrap();
        for (file, content) in [("online", "0\n"), ("present", "0-2\n"), ("possible", "0-3\n")] {
            put(file, content);
        }
        let files = ["cpu1/online", "cpu2/online", "cpu3/online"];
        files.iter().for_each(|file| put(file, "0"));
        let up = || files.map(|file| fs::read_to_string(cpus.join(file)).unwrap());
        late_cpus(&root).unwrap();
        assert_eq!(up(), ["1", "1", "0"]);
        assert!(!cpus.join("cpu0/online").exists());
        fs::remove_file(cpus.join("cpu2/online")).unwrap();
        let error = late_cpus(&root).unwrap_err().to_string();
        assert!(error.contains("CPU 2 does not come up: write 1 to /sys/devices/system/cpu/cpu2/online"), "{error}");
        assert!(!cpus.join("cpu2/online").exists(), "a file that the kernel lacks is not made");
        fs::remove_dir_all(root).unwrap();
    }
}
