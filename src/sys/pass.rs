//! Open files from one process to another, over a socket between them.
//!
//! Owns the form: a byte, and with it one descriptor; leaves what the files are to the two processes.
//! Invariant: what was received is open in this process, under a number of its own.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Sends one. The sender keeps its own.
pub fn send(socket: &UnixStream, fd: RawFd) -> io::Result<()> {
    retried(|| socket.send_with_fd(&[0u8][..], fd)).map(drop)
}

/// Waits for the next one; none where the other end is closed.
pub fn receive(socket: &UnixStream) -> io::Result<Option<File>> {
    match retried(|| socket.recv_with_fd(&mut [0]))? {
        (0, _) => Ok(None),
        (_, Some(file)) => Ok(Some(file)),
        (_, None) => Err(io::Error::new(io::ErrorKind::InvalidData, "a byte came without a descriptor")),
    }
}

fn retried<T>(mut call: impl FnMut() -> vmm_sys_util::errno::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fd;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsRawFd;

    #[test]
    fn files_come_in_order_and_the_end_is_seen() {
        let (mut near, far) = UnixStream::pair().unwrap();
        for text in ["first", "second"] {
            let mut file = fd::memfd(text, 0).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            send(&near, file.as_raw_fd()).unwrap();
        }
        for text in ["first", "second"] {
            let mut file = receive(&far).unwrap().unwrap();
            file.rewind().unwrap();
            let mut content = String::new();
            file.read_to_string(&mut content).unwrap();
            assert_eq!(content, text);
        }
        assert_eq!(send(&near, -1).unwrap_err().raw_os_error(), Some(libc::EBADF));
        near.write_all(b"x").unwrap();
        assert_eq!(receive(&far).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(near);
        assert!(receive(&far).unwrap().is_none());
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        assert_eq!(send(&near, near.as_raw_fd()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
