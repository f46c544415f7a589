//! How the guest ends: orderly, or after a panic of PID 1.
//!
//! Owns the panic hook and the restart; leaves what is said before it to the agent.
//! Invariant: PID 1 never returns and never exits, because that panics the kernel.

use crate::channel::guest::GuestSession;
use crate::proto::message::Msg;
use crate::sys::{mount, time};
use std::fs;
use std::io::Write;

/// Before this text on the console stands what PID 1 could not say through the channel.
pub const CONSOLE_MARK: &str = "ktstr: PID 1:";

/// From now on a panic is told to the host, and the machine restarts.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| die(&format!("panic: {info}"))));
}

/// Tells the host why PID 1 cannot go on, by every way there is, and restarts.
pub fn die(why: &str) -> ! {
    let told = fs::read_to_string("/proc/cmdline")
        .map_err(|error| error.to_string())
        .and_then(|cmdline| GuestSession::open(&cmdline).map_err(|error| error.to_string()))
        .and_then(|mut session| session.send(&Msg::Crash { text: why.into() }).map_err(|error| error.to_string()));
    match told {
        Ok(()) => say_on_console(why),
        Err(error) => say_on_console(&format!("{why} (and no channel: {error})")),
    }
    restart()
}

/// One line on the console, which is there when nothing else is.
pub fn say_on_console(text: &str) {
    let console = fs::OpenOptions::new().write(true).open("/dev/console");
    if let Ok(mut console) = console {
        // The last resort: where the console fails too, there is nobody left to tell.
        if writeln!(console, "{CONSOLE_MARK} {text}").is_err() {
            restart();
        }
    }
}

/// Restarts the machine, which ends the VM.
pub fn restart() -> ! {
    loop {
        let error = mount::restart();
        say_on_console(&format!("cannot restart: {error}"));
        if time::sleep_ns(1_000_000_000).is_err() {
            continue;
        }
    }
}
