//! Advice on how to fix a disk error, by error number. All messages that contain such advice obtain
//! it from this module.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// A system error, displayed together with advice on how to fix it, if any is known.
#[derive(Debug, Clone, Copy)]
pub struct WithRemedy<'a>(pub &'a io::Error);

impl fmt::Display for WithRemedy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match remedy(self.0) {
            Some(remedy) => write!(f, "{}: {remedy}", self.0),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Returns advice on how to fix an error with a file or a folder of the log.
#[must_use]
pub fn remedy(error: &io::Error) -> Option<&'static str> {
    Some(match Errno::from_io_error(error)? {
        // Running out of space and running out of inodes have the same error number.
        Errno::NOSPC => "free space (df -h) or inodes (df -i) on its file system",
        Errno::DQUOT => "raise the disk quota of this user",
        Errno::FBIG => "raise the limit on file sizes (ulimit -f)",
        Errno::ROFS => "remount its file system read-write",
        Errno::ACCESS | Errno::PERM => "grant this user read and write access to it",
        Errno::IO => "its disk failed to read or write; see the kernel's log (dmesg)",
        Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS => {
            "its file system cannot lock files; use one on a local disk"
        }
        Errno::MFILE | Errno::NFILE => "raise the limit on open files (ulimit -n)",
        Errno::NOMEM => "free memory, or raise the memory limit of this process",
        Errno::STALE | Errno::NOTCONN | Errno::TIMEDOUT => {
            "its network file system failed; use a local disk"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_disk_error_has_its_own_remedy() {
        for (errno, words) in [
            (Errno::NOSPC, &["space (df -h)", "inodes (df -i)"][..]),
            (Errno::DQUOT, &["quota"]),
            (Errno::FBIG, &["ulimit -f"]),
            (Errno::ROFS, &["mount"]),
            (Errno::ACCESS, &["read and write access"]),
            (Errno::PERM, &["write access"]),
            (Errno::IO, &["dmesg"]),
            (Errno::NOLCK, &["cannot lock", "local disk"]),
            (Errno::OPNOTSUPP, &["cannot lock"]),
            (Errno::MFILE, &["ulimit -n"]),
            (Errno::NFILE, &["ulimit -n"]),
        ] {
            let error = io::Error::from(errno);
            let text = WithRemedy(&error).to_string();
            assert!(text.starts_with(&format!("{error}: ")), "{text}");
            for word in words {
                assert!(text.contains(word), "{text}");
            }
            let is_about_access = matches!(errno, Errno::ACCESS | Errno::PERM);
            assert_eq!(text.contains("access"), is_about_access, "{text}");
        }
        for error in [
            io::Error::from(Errno::NOTEMPTY),
            io::Error::other("no number"),
        ] {
            assert_eq!(WithRemedy(&error).to_string(), error.to_string());
        }
    }
}
