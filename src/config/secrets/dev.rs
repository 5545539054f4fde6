//! The secret that `--dev` generates. It is kept in the data directory so that the tokens of open
//! pages stay valid after a restart.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{SecretError, Secrets, stripped};
use crate::log::directory::DEV_SECRET_FILE;
use crate::wire::auth::Secret;

const NEW_FILE: &str = "dev-secret.new";
/// The mode of the file: only its owner may read and write it.
const MODE: u32 = 0o600;

impl Secrets {
    /// Replaces a generated secret with the one in `folder`, or writes it there if there is none.
    ///
    /// Returns the file and whether other users can read it, or `None` if the secret was not
    /// generated. The folder must be locked; otherwise two servers could each write a secret.
    pub fn keep_in(&mut self, folder: &Path) -> Result<Option<(PathBuf, bool)>, SecretError> {
        if !self.is_generated {
            return Ok(None);
        }
        let path = folder.join(DEV_SECRET_FILE);
        let failed = |source| SecretError::Dev {
            path: path.clone(),
            source,
        };
        match fs::read(&path) {
            Ok(bytes) => {
                self.current = stripped(&bytes).ok_or(SecretError::EmptyDev(path.clone()))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write(folder, &self.current).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        let mode = fs::metadata(&path).map_err(failed)?.permissions().mode();
        Ok(Some((path, mode & 0o077 != 0)))
    }
}

/// Writes the secret to disk under another name first, so that a crash leaves either the complete
/// file or none.
fn write(folder: &Path, secret: &Secret) -> io::Result<()> {
    let new = folder.join(NEW_FILE);
    // A file left behind by a crash may be incomplete.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(&new)?;
    file.write_all(secret.bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&new, folder.join(DEV_SECRET_FILE))?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generated(secret: &str, is_generated: bool) -> Secrets {
        Secrets {
            current: Secret::new(secret.into()).unwrap(),
            previous: None,
            is_generated,
            with_line_breaks: Vec::new(),
        }
    }

    #[test]
    fn the_first_generated_secret_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DEV_SECRET_FILE);
        // A crash may leave this file behind.
        fs::write(folder.path().join(NEW_FILE), "torn").unwrap();
        let mut given = generated("given", false);
        assert_eq!(given.keep_in(folder.path()).unwrap(), None);
        assert!(!path.exists(), "a configured secret was copied");
        for new in ["first", "second"] {
            let mut secrets = generated(new, true);
            let kept = secrets.keep_in(folder.path()).unwrap();
            assert_eq!(kept, Some((path.clone(), false)));
            assert_eq!(secrets.current.bytes(), b"first");
        }
        assert_eq!(fs::read(&path).unwrap(), b"first\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_others_can_read_is_reported() {
        for (mode, is_public) in [
            (0o600, false),
            (0o400, false),
            (0o640, true),
            (0o604, true),
            (0o666, true),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(DEV_SECRET_FILE);
            fs::write(&path, "secret").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let kept = generated("new", true).keep_in(folder.path()).unwrap();
            assert_eq!(kept, Some((path, is_public)), "{mode:o}");
        }
    }

    #[test]
    fn errors_name_the_file_and_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DEV_SECRET_FILE);
        fs::write(&path, "\r\n").unwrap();
        let error = generated("new", true).keep_in(folder.path()).unwrap_err();
        assert!(error.to_string().contains("dev-secret is empty: remove it"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = generated("new", true).keep_in(folder.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("dev-secret, where --dev keeps its secret (Is a directory")
        );
        assert!(!error.to_string().contains("new"), "a secret is printed");
        let missing = folder.path().join("missing");
        assert!(generated("new", true).keep_in(&missing).is_err());
    }
}
