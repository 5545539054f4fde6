//! The secrets of the tokens: from the environment or from files, and from the files again.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::wire::auth::{Secret, Verifier};

mod dev;

const SECRET: &str = "ETHERPLY_JWT_SECRET";
const SECRET_FILE: &str = "--jwt-secret-file";
const SECRET_PREVIOUS: &str = "ETHERPLY_JWT_SECRET_PREVIOUS";
const SECRET_PREVIOUS_FILE: &str = "--jwt-secret-previous-file";

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No secret was given.
    #[error(
        "no secret for the tokens: set ETHERPLY_JWT_SECRET or --jwt-secret-file (for example to what `openssl rand -hex 32` prints), or try the server with --dev"
    )]
    None,
    /// A secret was given in two ways.
    #[error("both {variable} and {flag} are set: give one of them")]
    Twice {
        /// The environment variable.
        variable: &'static str,
        /// The flag.
        flag: &'static str,
    },
    /// A secret is empty.
    #[error(
        "{0} is empty: set ETHERPLY_JWT_SECRET or --jwt-secret-file to 32 random bytes or more (for example what `openssl rand -hex 32` prints)"
    )]
    Empty(String),
    /// The file of the secret before is empty.
    #[error(
        "{SECRET_PREVIOUS_FILE} {} is empty: put the secret before into it, or remove it", .0.display()
    )]
    EmptyPrevious(PathBuf),
    /// A file of a secret cannot be read.
    #[error("{flag} {path}: {source}")]
    File {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The secret that `--dev` keeps is empty.
    #[error("{} is empty: remove it, and --dev makes a new one", .0.display())]
    EmptyDev(PathBuf),
    /// The secret that `--dev` keeps cannot be read or written.
    #[error(
        "{path}: {source}: --dev keeps its secret there; set ETHERPLY_JWT_SECRET to use another"
    )]
    Dev {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// The secrets of a server.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// Signs tokens.
    pub current: Secret,
    /// Still accepted.
    pub previous: Option<Secret>,
    /// Made up, for a server that is tried out with `--dev`.
    pub is_made_up: bool,
}

impl Secrets {
    /// Checks the tokens of these secrets.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        Verifier::new(&self.current, self.previous.as_ref())
    }

    /// Whether tokens of this secret are accepted.
    #[must_use]
    pub fn accept(&self, secret: &Secret) -> bool {
        [Some(&self.current), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .any(|accepted| accepted.bytes() == secret.bytes())
    }
}

/// Where the secrets come from; a file that is not named stands in the environment.
#[derive(Debug, Clone, Copy)]
pub struct SecretSources<'a> {
    /// The file of the secret.
    pub current: Option<&'a Path>,
    /// The file of the secret before.
    pub previous: Option<&'a Path>,
    /// Whether one is made up where there is none.
    pub may_be_made_up: bool,
}

impl SecretSources<'_> {
    /// The secrets, for the first time.
    pub fn read(&self) -> Result<Secrets, SecretError> {
        let previous = match chosen(SECRET_PREVIOUS, SECRET_PREVIOUS_FILE, self.previous)? {
            Some(Source::File(path)) => previous_in(path)?,
            Some(Source::Variable(secret)) => Some(secret),
            None => None,
        };
        let current = current(self.current)?;
        let is_made_up = current.is_none() && self.may_be_made_up;
        let current = if is_made_up {
            Some(random_secret()?)
        } else {
            current
        };
        Ok(Secrets {
            current: current.ok_or(SecretError::None)?,
            previous,
            is_made_up,
        })
    }

    /// Whether a secret stands in a file, which may change.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.current.is_some() || self.previous.is_some()
    }

    /// The secrets as their files hold them now; one that came another way stays.
    pub fn read_again(&self, before: &Secrets) -> Result<Secrets, SecretError> {
        let current = match self.current {
            Some(path) => secret_in(SECRET_FILE, path)?,
            None => before.current.clone(),
        };
        let previous = match self.previous {
            Some(path) => previous_in(path)?,
            None => before.previous.clone(),
        };
        Ok(Secrets {
            current,
            previous,
            is_made_up: before.is_made_up,
        })
    }
}

/// Where a secret comes from.
enum Source<'a> {
    Variable(Secret),
    File(&'a Path),
}

fn chosen<'a>(
    variable: &'static str,
    flag: &'static str,
    file: Option<&'a Path>,
) -> Result<Option<Source<'a>>, SecretError> {
    match (std::env::var_os(variable), file) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(SecretError::Twice { variable, flag }),
        (Some(value), None) => Secret::new(value.into_vec())
            .map(|secret| Some(Source::Variable(secret)))
            .ok_or_else(|| SecretError::Empty(variable.to_owned())),
        (None, Some(path)) => Ok(Some(Source::File(path))),
    }
}

/// The secret that signs tokens, from this file or from the environment.
pub(super) fn current(file: Option<&Path>) -> Result<Option<Secret>, SecretError> {
    match chosen(SECRET, SECRET_FILE, file)? {
        Some(Source::File(path)) => secret_in(SECRET_FILE, path).map(Some),
        Some(Source::Variable(secret)) => Ok(Some(secret)),
        None => Ok(None),
    }
}

fn secret_in(flag: &'static str, path: &Path) -> Result<Secret, SecretError> {
    let bytes = std::fs::read(path).map_err(|source| SecretError::File {
        flag,
        path: PathBuf::from(path),
        source,
    })?;
    from_file(&bytes).ok_or_else(|| SecretError::Empty(format!("{flag} {}", path.display())))
}

/// The secret in the content of a file. Editors and `echo` end a file with a newline; no secret
/// does.
fn from_file(bytes: &[u8]) -> Option<Secret> {
    let end = bytes
        .iter()
        .rposition(|byte| !matches!(byte, b'\r' | b'\n'))
        .map_or(0, |last| last + 1);
    Secret::new(bytes[..end].to_vec())
}

/// A file that is not there means that no secret is being rotated, so that the flag can stay. One that is empty is a mistake, or
/// is just being written.
fn previous_in(path: &Path) -> Result<Option<Secret>, SecretError> {
    match secret_in(SECRET_PREVIOUS_FILE, path) {
        Ok(secret) => Ok(Some(secret)),
        Err(SecretError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(SecretError::Empty(_)) => Err(SecretError::EmptyPrevious(path.to_owned())),
        Err(error) => Err(error),
    }
}

/// 32 random bytes in hex: text, so that a file of it is one for `--jwt-secret-file`.
fn random_secret() -> Result<Secret, SecretError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(SecretError::Random)?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Secret::new(digits.into_bytes()).expect("64 digits are not empty"))
}
