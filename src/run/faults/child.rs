//! One run of this program, as a child process.
//!
//! Owns its start and its end; leaves what it is to do, and for how long, to those who play faults.
//! Invariant: it never outlives who started it, whatever becomes of that one, and a request to end goes before its result.

use super::LOOK;
use crate::error::{Context, Error, Result};
use crate::sys::process::{self, End};
use crate::sys::spawn::Spawn;
use crate::sys::{signal, time};
use crate::units::NS_PER_SEC;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

/// How long a run may take to end once it is asked to: it ends its VM and removes its files.
const ENDS_NS: u64 = 10 * NS_PER_SEC;

pub(super) struct Run {
    pub pid: i32,
    end: Option<End>,
}

impl Run {
    /// Starts it with these words; what it prints goes to these files.
    pub fn start(words: Vec<String>, out: &Path, err: &Path) -> Result<Self> {
        let create = |path: &Path| File::create(path).context(|| format!("create {}", path.display()));
        let (out, err) = (create(out)?, create(err)?);
        let argv: Vec<String> = std::iter::once("/proc/self/exe".to_owned()).chain(words).collect();
        let environment: Vec<(String, String)> =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
        let stdio = [None, Some(out.as_fd()), Some(err.as_fd())];
        let spawn = Spawn { argv: &argv, environment: &environment, stdio, keep: &[], die_with_parent: true };
        let pid = spawn.start().context(|| "start this program again")?;
        Ok(Self { pid, end: None })
    }

    /// How it ended, where it did. Where this process was asked to end, the run is ended first, and that is an error: a
    /// signal to a whole group, or a run that somebody else ended with it, must not pass for what the run has to say.
    pub fn look(&mut self) -> Result<Option<End>> {
        let end = self.reap()?;
        if signal::noted().is_none() {
            return Ok(end);
        }
        if end.is_none() {
            self.ask_to_end()?;
        }
        Err(Error::interrupted())
    }

    fn ask_to_end(&mut self) -> Result<()> {
        process::kill(self.pid, libc::SIGTERM).context(|| format!("end process {}", self.pid))?;
        let deadline = time::monotonic_ns() + ENDS_NS;
        while self.reap()?.is_none() {
            if time::monotonic_ns() > deadline {
                return self.kill();
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<Option<End>> {
        if self.end.is_none() {
            let reaped = process::wait(self.pid, false).context(|| format!("wait for process {}", self.pid))?;
            self.end = reaped.map(|(_, end)| end);
        }
        Ok(self.end)
    }

    /// Its VM goes with it.
    pub fn kill(&mut self) -> Result<()> {
        if self.reap()?.is_none() {
            process::kill(self.pid, libc::SIGKILL).context(|| format!("kill process {}", self.pid))?;
            let reaped = process::wait(self.pid, true).context(|| format!("wait for process {}", self.pid))?;
            self.end = reaped.map(|(_, end)| end);
        }
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It dies with this process at the latest; whoever drops it has an error of his own to tell.
        drop(self.kill());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_run_is_killed_and_reaped() {
        // Not this program: the tests' own binary would run the tests again.
        let spawn = Spawn {
            argv: &["/bin/sleep".into(), "60".into()],
            environment: &[],
            stdio: [None; 3],
            keep: &[],
            die_with_parent: true,
        };
        let pid = spawn.start().unwrap();
        drop(Run { pid, end: None });
        assert_eq!(process::wait(pid, false).unwrap_err().raw_os_error(), Some(libc::ECHILD));
        let mut ended = Run { pid: spawn.start().unwrap(), end: None };
        ended.kill().unwrap();
        assert_eq!(ended.reap().unwrap(), Some(End::Signaled(libc::SIGKILL)));
    }
}
