//! The secrets that sign and verify tokens, read from the environment or from files. On SIGHUP the
//! files are read again.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::environment::{self, SECRET, SECRET_PREVIOUS};
use super::given::Given;
use crate::wire::auth::{Secret, Verifier};

mod dev;

const SECRET_FILE: &str = "--jwt-secret-file";
const SECRET_PREVIOUS_FILE: &str = "--jwt-secret-previous-file";

/// An error while loading the secrets.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No secret was given.
    #[error(
        "no secret to sign tokens with: set ETHERPLY_JWT_SECRET (for example to the output of \
         `openssl rand -hex 32`) or --jwt-secret-file, or try out the server with --dev"
    )]
    None,
    /// A secret was given both in a variable and in a file.
    #[error("both {variable} and {file} are set: set only one of them")]
    Twice {
        /// The environment variable.
        variable: &'static str,
        /// The flag that names the file, or the variable that sets it.
        file: String,
    },
    /// The secret is blank, so anyone could guess it.
    #[error("{name} is empty or contains only white space: {remedy}")]
    Blank {
        /// The variable, or the flag and the path of the file.
        name: String,
        /// The advice to the user.
        remedy: &'static str,
    },
    /// A secret file cannot be read.
    #[error("{name} {path} cannot be read ({source}): {}", file_remedy(.source))]
    File {
        /// The flag that names the file, or the variable that sets it.
        name: String,
        /// The path of the file.
        path: PathBuf,
        /// The underlying I/O error.
        source: io::Error,
    },
    /// The secret file that `--dev` keeps is empty.
    #[error("{} is empty: remove it, and --dev will create a new one", .0.display())]
    EmptyDev(PathBuf),
    /// The secret file that `--dev` keeps cannot be read or written.
    #[error(
        "cannot use {path}, where --dev keeps its secret ({source}): set ETHERPLY_JWT_SECRET \
         instead"
    )]
    Dev {
        /// The path of the file.
        path: PathBuf,
        /// The underlying I/O error.
        source: io::Error,
    },
    /// The system cannot provide random bytes.
    #[error("cannot get random bytes for a secret from the system: {0}")]
    Random(getrandom::Error),
}

/// The secrets of a server.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// The secret that signs tokens.
    pub current: Secret,
    /// The previous secret, whose tokens are still accepted.
    pub previous: Option<Secret>,
    /// Whether the current secret was generated for `--dev`.
    pub is_generated: bool,
    /// The variables whose values end in a line break, with those values. The line break is not
    /// part of the secret, but tokens signed with it are accepted too.
    pub with_line_breaks: Vec<(&'static str, Secret)>,
}

impl Secrets {
    /// Creates a verifier for tokens signed with these secrets.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        let verifier = Verifier::new(&self.current, self.previous.as_ref());
        let others = self.with_line_breaks.iter();
        others.fold(verifier, |verifier, (_, secret)| verifier.accepting(secret))
    }

    /// Returns whether tokens signed with this secret are accepted.
    #[must_use]
    pub fn accept(&self, secret: &Secret) -> bool {
        [Some(&self.current), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .any(|accepted| accepted.bytes() == secret.bytes())
    }
}

/// The sources of the secrets. A secret for which no file is set comes from the environment.
#[derive(Debug, Clone, Copy)]
pub struct SecretSources<'a> {
    /// The file of the current secret.
    pub current: Option<&'a Path>,
    /// The file of the previous secret.
    pub previous: Option<&'a Path>,
    /// Whether a secret is generated if there is none.
    pub may_be_generated: bool,
    /// How the files were specified, for error messages.
    pub given: &'a Given,
}

impl SecretSources<'_> {
    /// Reads the secrets at server startup.
    pub fn read(&self) -> Result<Secrets, SecretError> {
        let previous = match (variable(&PREVIOUS)?, self.previous) {
            (Some(_), Some(_)) => return Err(PREVIOUS.twice(self.given)),
            (Some(secret), None) => Some(secret),
            (None, Some(path)) => previous_in(path, self.given)?.map(FoundSecret::from),
            (None, None) => None,
        };
        let current = current(self.current, self.given)?;
        let is_generated = current.is_none() && self.may_be_generated;
        let current = if is_generated {
            Some(FoundSecret::from(random_secret()?))
        } else {
            current
        };
        let current = current.ok_or(SecretError::None)?;
        let all = [Some(&current), previous.as_ref()].into_iter().flatten();
        let with_line_breaks = all.filter_map(|read| read.with_line_break.clone());
        Ok(Secrets {
            with_line_breaks: with_line_breaks.collect(),
            current: current.secret,
            previous: previous.map(|read| read.secret),
            is_generated,
        })
    }

    /// Returns whether a secret comes from a file and may therefore change.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.current.is_some() || self.previous.is_some()
    }

    /// Reads the files again. Secrets that came from the environment are kept.
    pub fn read_again(&self, before: &Secrets) -> Result<Secrets, SecretError> {
        let current = match self.current {
            Some(path) => secret_in(&CURRENT, path, self.given)?,
            None => before.current.clone(),
        };
        let previous = match self.previous {
            Some(path) => previous_in(path, self.given)?,
            None => before.previous.clone(),
        };
        Ok(Secrets {
            current,
            previous,
            is_generated: before.is_generated,
            with_line_breaks: before.with_line_breaks.clone(),
        })
    }

    /// Returns the files that are accessible to all users of this machine, with their modes.
    ///
    /// A file that only its group can read is not included, because service managers and
    /// orchestrators provide secrets this way.
    #[must_use]
    pub fn exposed(&self) -> Vec<(PathBuf, u32)> {
        let mode = |path: &Path| {
            let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
            (mode & 0o007 != 0).then(|| (path.to_owned(), mode))
        };
        let files = [self.current, self.previous].into_iter().flatten();
        files.filter_map(mode).collect()
    }
}

/// The current or the previous secret: where it may come from, and the advice to show if it is
/// unusable.
struct SecretKind {
    variable: &'static str,
    file: &'static str,
    variable_remedy: &'static str,
    file_remedy: &'static str,
}

const CURRENT: SecretKind = SecretKind {
    variable: SECRET,
    file: SECRET_FILE,
    variable_remedy: "set it to at least 32 random bytes (for example the output of \
                      `openssl rand -hex 32`)",
    file_remedy: "put at least 32 random bytes into it (for example the output of \
                  `openssl rand -hex 32`)",
};
const PREVIOUS: SecretKind = SecretKind {
    variable: SECRET_PREVIOUS,
    file: SECRET_PREVIOUS_FILE,
    variable_remedy: "set it to the previous secret, or unset it",
    file_remedy: "put the previous secret into it, or remove it",
};

impl SecretKind {
    fn twice(&self, given: &Given) -> SecretError {
        SecretError::Twice {
            variable: self.variable,
            file: given.name(self.file),
        }
    }
}

/// A secret, together with the full value of its variable if that value ends in a line break.
struct FoundSecret {
    secret: Secret,
    with_line_break: Option<(&'static str, Secret)>,
}

impl From<Secret> for FoundSecret {
    fn from(secret: Secret) -> Self {
        Self {
            secret,
            with_line_break: None,
        }
    }
}

/// Reads a secret from its variable.
fn variable(kind: &SecretKind) -> Result<Option<FoundSecret>, SecretError> {
    let Some(value) = environment::value(kind.variable) else {
        return Ok(None);
    };
    let bytes = value.into_vec();
    let secret = stripped(&bytes).ok_or_else(|| SecretError::Blank {
        name: kind.variable.to_owned(),
        remedy: kind.variable_remedy,
    })?;
    let whole = Secret::new(bytes).filter(|whole| whole.bytes() != secret.bytes());
    Ok(Some(FoundSecret {
        secret,
        with_line_break: whole.map(|whole| (kind.variable, whole)),
    }))
}

/// Reads the current secret from the file if one is given, otherwise from the environment.
fn current(file: Option<&Path>, given: &Given) -> Result<Option<FoundSecret>, SecretError> {
    match (variable(&CURRENT)?, file) {
        (Some(_), Some(_)) => Err(CURRENT.twice(given)),
        (Some(secret), None) => Ok(Some(secret)),
        (None, Some(path)) => secret_in(&CURRENT, path, given).map(|secret| Some(secret.into())),
        (None, None) => Ok(None),
    }
}

/// Reads the secret for a command that signs a token, from the file if one is given, otherwise from
/// the environment.
pub(super) fn signing(file: Option<&Path>, given: &Given) -> Result<Secret, SecretError> {
    let current = current(file, given)?.ok_or(SecretError::None)?;
    Ok(current.secret)
}

fn secret_in(kind: &SecretKind, path: &Path, given: &Given) -> Result<Secret, SecretError> {
    let name = || given.name(kind.file);
    let bytes = std::fs::read(path).map_err(|source| SecretError::File {
        name: name(),
        path: PathBuf::from(path),
        source,
    })?;
    stripped(&bytes).ok_or_else(|| SecretError::Blank {
        name: format!("{} {}", name(), path.display()),
        remedy: kind.file_remedy,
    })
}

fn file_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "create it, or pick another file",
        io::ErrorKind::PermissionDenied => "give this user read access, or pick another file",
        _ => "pick another file",
    }
}

/// Returns the secret in the bytes of a variable or a file, or `None` if it is blank, because
/// anyone could guess a blank secret.
///
/// Editors and `echo` add a line break at the end, which is not part of the secret.
fn stripped(bytes: &[u8]) -> Option<Secret> {
    let is_break = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let end = bytes.iter().rposition(|byte| !is_break(byte))? + 1;
    let secret = &bytes[..end];
    let is_blank = secret.iter().all(u8::is_ascii_whitespace);
    Secret::new(secret.to_vec()).filter(|_| !is_blank)
}

/// Reads the previous secret from its file. A missing file means that no rotation is in progress,
/// so the flag can stay set. A blank file is an error: it is a mistake or still being written.
fn previous_in(path: &Path, given: &Given) -> Result<Option<Secret>, SecretError> {
    match secret_in(&PREVIOUS, path, given) {
        Ok(secret) => Ok(Some(secret)),
        Err(SecretError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Returns 32 random bytes in hex, so that the file can also be used with `--jwt-secret-file`.
fn random_secret() -> Result<Secret, SecretError> {
    let mut halves = [[0; 16]; 2];
    getrandom::fill(halves.as_flattened_mut()).map_err(SecretError::Random)?;
    let [high, low] = halves.map(u128::from_be_bytes);
    let digits = format!("{high:032x}{low:032x}");
    Ok(Secret::new(digits.into_bytes()).expect("64 digits are not an empty secret"))
}
