//! The data directory: which process may use it, and which log it holds.
//!
//! | file | |
//! | --- | --- |
//! | `LOCK` | locked with flock by the server, as is the directory; holds its process id |
//! | `meta.json` | format version; epoch, a random id in every segment's header; shards begun |
//! | `dev-secret` | the secret of `--dev`, which this module leaves alone (`config::secrets`) |
//! | `RESERVE` | optional; empty, with disk claimed for compaction ([`super::reserve`]) |
//! | `shard-NN/NNNNNNNNNN.aof` | the segments of each shard ([`super::segment`]) |
//!
//! Every folder is synced after something in it was created or renamed: a file whose name is lost
//! is lost with its bytes. A sync is done again when the thing is found to be there, since the
//! process that created it may have been killed before its sync.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::disk::{Disk, DiskFile, HostDisk};
use super::record::FORMAT_VERSION;
use super::remedy::{WithRemedy, remedy};
use crate::limits::SHARDS_MAX;

#[cfg(test)]
mod tests;

const LOCK: &str = "LOCK";
pub(super) const META: &str = "meta.json";
const META_NEW: &str = "meta.json.new";
/// See [`super::reserve`].
pub(super) const RESERVE: &str = "RESERVE";
const PROBE: &str = "LOCK.probe";
const UNKNOWN_PID: &str = "unknown";
/// The file of the secret that `--dev` generates.
pub const DEV_SECRET_FILE: &str = "dev-secret";
const SHARD_PREFIX: &str = "shard-";
/// Files that a repair sets aside are in folders named with this and a number.
pub(super) const ASIDE_PREFIX: &str = "damaged-";

/// A data directory that is locked for this process, as long as the value lives.
#[derive(Debug)]
pub struct DataDirectory<D: Disk = HostDisk> {
    disk: D,
    path: PathBuf,
    identity: Identity,
    /// Taken to read closed segments, and to replace them.
    changes: RwLock<()>,
    lock: Lock<D::File>,
}

/// The content of `meta.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The random id.
    pub epoch: [u8; 16],
    /// Each shard below this number has had a segment, and no server removes the last one of a
    /// folder. Servers before this one did not write it; 0 is what they leave.
    pub shards_begun: u32,
}

/// The locks of a data directory. They are held until the files are closed, which a crash does too.
#[derive(Debug)]
pub struct Lock<F> {
    /// `LOCK` alone does not do: it can be deleted under a server, and the next one locks a new
    /// file of that name. The folder alone does not do either: servers before this one did not lock
    /// it, and some file systems cannot.
    _folder: F,
    file: F,
    path: PathBuf,
}

/// Why a data directory cannot be used. Each error is one line that says what to do.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// The folder or a parent of it cannot be created.
    #[error(
        "data directory {path} cannot be created ({source}): {}, or pick another with --data-dir",
        remedy(.source).unwrap_or("create it")
    )]
    CannotCreate {
        /// The data directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The folder is there, and no file can be written in it.
    #[error(
        "data directory {path} is not writable ({source}): {}, or pick another with --data-dir",
        remedy(.source).unwrap_or("make it writable")
    )]
    NotWritable {
        /// The data directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// There is a file where the folder, or one above it, is to be.
    #[error(
        "data directory {path}{} is not a folder: pick another with --data-dir",
        if file == path { String::new() } else { format!(": {}", file.display()) }
    )]
    NotAFolder {
        /// The data directory.
        path: PathBuf,
        /// The file.
        file: PathBuf,
    },
    /// It has no log, and files that are none of a server's.
    #[error(
        "data directory {path} contains other files (such as {name}) but no log: \
         point --data-dir at an empty folder, or at a new one inside it"
    )]
    OtherFiles {
        /// The data directory.
        path: PathBuf,
        /// One of the files.
        name: String,
    },
    /// A server is running on it.
    #[error(
        "data directory {path} is in use by another server (pid {pid}): \
         stop it, or pick another with --data-dir"
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// The other server's process id as it wrote it into `LOCK`, or `unknown`.
        pid: String,
    },
    /// There is no log.
    #[error("{path} is not a data directory of a server: name one with --data-dir")]
    Missing {
        /// The path as it was given.
        path: PathBuf,
    },
    /// A newer server wrote it.
    #[error(
        "data directory {path} is from a newer format ({found}; this server reads \
         {FORMAT_VERSION}): start the newer server"
    )]
    Newer {
        /// The data directory.
        path: PathBuf,
        /// The format version in `meta.json`.
        found: u64,
    },
    /// `meta.json` cannot be understood, or is missing beside a log.
    #[error(
        "{path} is damaged ({what}); put it back from a backup, or run: \
         etherply log repair --data-dir {}",
        parent(.path).display()
    )]
    Meta {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Any other failure.
    #[error("{path}: {}", WithRemedy(.source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl DataDirectory {
    /// [`DataDirectory::open_on`] of this machine's disks, with a random epoch.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DirectoryError> {
        let path = path.into();
        let mut epoch = [0; 16];
        getrandom::fill(&mut epoch).map_err(|error| DirectoryError::Io {
            path: path.clone(),
            source: error.into(),
        })?;
        Self::open_on(HostDisk, path, epoch)
    }

    /// Returns the mode of the directory, if users who are neither its owner nor in its group may
    /// read or enter it. A directory that was there keeps the mode that it had; while it is closed
    /// to them, they cannot get to the files in it either.
    #[must_use]
    pub fn public_mode(&self) -> Option<u32> {
        let mode = HostDisk.mode(&self.path).ok()?;
        (mode & 0o007 != 0).then_some(mode)
    }
}

impl<D: Disk> DataDirectory<D> {
    /// Creates the directory if it is missing, locks it and reads which log it holds; an empty one
    /// gets `new_epoch`. The lock comes before every other change, so that a directory in use is
    /// left as it is.
    pub fn open_on(disk: D, path: PathBuf, new_epoch: [u8; 16]) -> Result<Self, DirectoryError> {
        create_folders(&disk, &path).map_err(|source| not_created(&disk, &path, source))?;
        if let Some(name) = other_file(&disk, &path) {
            return Err(DirectoryError::OtherFiles { path, name });
        }
        let lock = lock(&disk, &path)?;
        let identity = if let Some(identity) = read_meta(&disk, &path)? {
            identity
        } else {
            let new = Identity {
                epoch: new_epoch,
                shards_begun: 0,
            };
            write_meta(&disk, &path, new).map_err(at(&path.join(META)))?;
            new
        };
        Self::locked(disk, path, identity, lock)
    }

    /// Locks a directory that holds a log already.
    pub fn open_existing(disk: D, path: PathBuf) -> Result<Self, DirectoryError> {
        // A folder that is not a data directory is left as it is, without a lock file in it.
        let identity = identity(&disk, &path)?;
        let lock = lock(&disk, &path)?;
        Self::locked(disk, path, identity, lock)
    }

    fn locked(
        disk: D,
        path: PathBuf,
        identity: Identity,
        lock: Lock<D::File>,
    ) -> Result<Self, DirectoryError> {
        disk.sync_folder(&path).map_err(at(&path))?;
        Ok(Self {
            disk,
            path,
            identity,
            changes: RwLock::new(()),
            lock,
        })
    }

    /// The path of `LOCK`.
    #[must_use]
    pub fn lock_path(&self) -> &Path {
        &self.lock.path
    }

    /// Returns whether the locked `LOCK` still has a name. Cheap enough for every commit.
    pub fn is_lock_linked(&self) -> io::Result<bool> {
        self.lock.file.is_linked()
    }

    /// Returns whether the locked file is at the path of `LOCK`. If not, it or the whole directory
    /// was deleted, moved or replaced.
    pub fn is_lock_in_place(&self) -> io::Result<bool> {
        self.disk.is_at(&self.lock.path, &self.lock.file)
    }

    /// The disk that it is on.
    #[must_use]
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Returns the directory's path, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The random id of this log.
    #[must_use]
    pub fn epoch(&self) -> [u8; 16] {
        self.identity.epoch
    }

    /// Returns the content of `meta.json` when the directory was opened.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Notes in `meta.json` which shards have begun a log, so that a folder that is emptied or
    /// removed is missed. To be called when the first `shards` have a segment that is on disk.
    pub fn note_shards(&self, shards: u32) -> io::Result<()> {
        if shards <= self.identity.shards_begun {
            return Ok(());
        }
        let identity = Identity {
            shards_begun: shards,
            ..self.identity
        };
        write_meta(&self.disk, &self.path, identity)
    }

    /// Keeps closed segments from being replaced for as long as the guard lives. Nothing on the
    /// path of an op waits here.
    pub fn reading(&self) -> RwLockReadGuard<'_, ()> {
        // The lock guards no memory that a panicking thread could have left in a bad state.
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps closed segments from being read while they are replaced.
    pub fn replacing(&self) -> RwLockWriteGuard<'_, ()> {
        self.changes.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder of a shard's segments. It is created with the first segment in it.
    #[must_use]
    pub fn shard_path(&self, shard: u32) -> PathBuf {
        self.path.join(shard_folder(shard))
    }

    /// The shards that have a folder, in order. There may be more of them than this server runs.
    pub fn shards(&self) -> io::Result<Vec<u32>> {
        shards(&self.disk, &self.path)
    }
}

/// The name of a shard's folder: at least two digits.
#[must_use]
pub fn shard_folder(shard: u32) -> String {
    format!("{SHARD_PREFIX}{shard:02}")
}

/// The shard whose folder has this name. Any other name, also one that [`shard_folder`] would write
/// in another way, is none.
#[must_use]
pub fn shard_of_folder(name: &str) -> Option<u32> {
    let shard = name.strip_prefix(SHARD_PREFIX)?.parse().ok()?;
    (shard_folder(shard) == name).then_some(shard)
}

/// The shards that have a folder in a data directory, in order.
pub fn shards<D: Disk>(disk: &D, path: &Path) -> io::Result<Vec<u32>> {
    let mut shards = Vec::new();
    for name in disk.names(path)? {
        if let Some(shard) = name.to_str().and_then(shard_of_folder)
            && disk.is_folder(&path.join(&name))
        {
            shards.push(shard);
        }
    }
    shards.sort_unstable();
    Ok(shards)
}

/// The epoch of a data directory, which may be in use by a server.
pub fn epoch<D: Disk>(disk: &D, path: &Path) -> Result<[u8; 16], DirectoryError> {
    identity(disk, path).map(|identity| identity.epoch)
}

/// Reads `meta.json` of a data directory, which may be in use by a server.
pub fn identity<D: Disk>(disk: &D, path: &Path) -> Result<Identity, DirectoryError> {
    let missing = || DirectoryError::Missing {
        path: path.to_path_buf(),
    };
    if !disk.is_folder(path) {
        return Err(missing());
    }
    read_meta(disk, path)?.ok_or_else(missing)
}

/// Locks a directory whose log may be damaged, and reads what `meta.json` says; None where that is
/// damaged, too. The lock is held as long as the file is open.
pub fn lock_damaged<D: Disk>(
    disk: &D,
    path: &Path,
) -> Result<(Lock<D::File>, Option<Identity>), DirectoryError> {
    let known = match identity(disk, path) {
        Ok(known) => Some(known),
        Err(DirectoryError::Meta { .. }) => None,
        Err(error) => return Err(error),
    };
    Ok((lock(disk, path)?, known))
}

fn create_folders<D: Disk>(disk: &D, path: &Path) -> io::Result<()> {
    let parent = parent(path);
    if disk.is_folder(path) {
        use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem};
        return match disk.sync_folder(parent) {
            // Somebody else made the folder for this process, which may not even open its parent.
            Err(error)
                if matches!(
                    error.kind(),
                    PermissionDenied | ReadOnlyFilesystem | InvalidInput
                ) =>
            {
                Ok(())
            }
            outcome => outcome,
        };
    }
    // The parent's name, too, may be the work of a process that was killed before its sync.
    create_folders(disk, parent)?;
    disk.create_folder(path)?;
    disk.sync_folder(parent)
}

fn not_created<D: Disk>(disk: &D, path: &Path, source: io::Error) -> DirectoryError {
    let is_file = |path: &&Path| disk.exists(path).unwrap_or(false) && !disk.is_folder(path);
    let kinds = [io::ErrorKind::AlreadyExists, io::ErrorKind::NotADirectory];
    let file = path.ancestors().find(is_file);
    let path = path.to_path_buf();
    match file.filter(|_| kinds.contains(&source.kind())) {
        Some(file) => DirectoryError::NotAFolder {
            file: file.to_path_buf(),
            path,
        },
        None => DirectoryError::CannotCreate { path, source },
    }
}

/// Returns the name of an entry in a folder without a log that no server has created. Hidden names
/// are ignored, and so is that of the folder that a new file system contains.
#[must_use]
pub fn other_file<D: Disk>(disk: &D, path: &Path) -> Option<String> {
    // If the folder cannot be listed, the next step reports it.
    if disk.exists(&path.join(META)).unwrap_or(true) {
        return None;
    }
    let names = disk.names(path).ok()?;
    let names = names.iter().map(|name| name.to_string_lossy());
    let is_ours = |name: &str| {
        let is_known = [LOCK, PROBE, META_NEW, "lost+found"].contains(&name);
        is_known
            || name.starts_with(DEV_SECRET_FILE)
            || name.starts_with(['.'])
            || name.starts_with(ASIDE_PREFIX)
    };
    let names: Vec<_> = names.collect();
    // A log without its `meta.json` is damaged, and reported as such.
    let has_log = names.iter().any(|name| shard_of_folder(name).is_some());
    let other = names.iter().filter(|name| !has_log && !is_ours(name)).min();
    other.map(|name| name.escape_debug().to_string())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

fn lock<D: Disk>(disk: &D, path: &Path) -> Result<Lock<D::File>, DirectoryError> {
    let not_writable = |source| DirectoryError::NotWritable {
        path: path.to_path_buf(),
        source,
    };
    let in_use = |pid| DirectoryError::InUse {
        path: path.to_path_buf(),
        pid,
    };
    let lock_path = path.join(LOCK);
    let Some(folder) = disk.lock_folder(path).map_err(not_writable)? else {
        let pid = disk.open(&lock_path).map(|file| lock_holder(&file));
        return Err(in_use(pid.unwrap_or_else(|_| UNKNOWN_PID.to_owned())));
    };
    let file = match disk.lock(&lock_path).map_err(not_writable)? {
        Ok(file) => file,
        Err(other) => return Err(in_use(lock_holder(&other))),
    };
    let pid = format!("{}\n", std::process::id());
    file.set_bytes(0)
        .and_then(|()| file.write_all_at(pid.as_bytes(), 0))
        .and_then(|()| probe(disk, path))
        .map_err(not_writable)?;
    Ok(Lock {
        _folder: folder,
        file,
        path: lock_path,
    })
}

/// The process id in a `LOCK` that another process holds; `unknown` where it has not written it
/// yet.
pub fn lock_holder(file: &impl DiskFile) -> String {
    let mut text = [0; 16];
    let count = file.read_full_at(&mut text, 0).unwrap_or(0);
    let pid = str::from_utf8(&text[..count]).unwrap_or_default().trim();
    if !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()) {
        pid.to_owned()
    } else {
        UNKNOWN_PID.to_owned()
    }
}

/// Creates and removes a file: `LOCK` may be writable where its folder is not.
fn probe<D: Disk>(disk: &D, path: &Path) -> io::Result<()> {
    let path = path.join(PROBE);
    drop(disk.create(&path)?);
    disk.remove(&path)
}

#[derive(Deserialize)]
struct Version {
    format_version: u64,
}

#[derive(Serialize, Deserialize)]
struct Meta {
    format_version: u64,
    epoch: String,
    #[serde(default)]
    shards_begun: u32,
}

fn read_meta<D: Disk>(disk: &D, path: &Path) -> Result<Option<Identity>, DirectoryError> {
    let file = path.join(META);
    let damaged = |what: String| DirectoryError::Meta {
        path: file.clone(),
        what,
    };
    let mut text = Vec::new();
    match disk.open(&file).and_then(|meta| meta.read_whole(&mut text)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A new epoch would turn every segment there is into one of another directory.
            let shards = shards(disk, path).map_err(|source| DirectoryError::Io {
                path: path.to_path_buf(),
                source,
            })?;
            return match shards.first() {
                None => Ok(None),
                Some(&shard) => Err(damaged(format!(
                    "it is missing, and {} is there",
                    shard_folder(shard)
                ))),
            };
        }
        Err(source) => return Err(DirectoryError::Io { path: file, source }),
    }
    // Only the version's name is the same in every format, so it is read first and alone.
    let version: Version =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if version.format_version > u64::from(FORMAT_VERSION) {
        return Err(DirectoryError::Newer {
            path: path.to_path_buf(),
            found: version.format_version,
        });
    }
    if version.format_version != u64::from(FORMAT_VERSION) {
        return Err(damaged(format!(
            "there is no format {}",
            version.format_version
        )));
    }
    let meta: Meta = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    let epoch = parse_epoch(&meta.epoch)
        .ok_or_else(|| damaged("the epoch is not 32 hexadecimal digits".to_owned()))?;
    if meta.shards_begun > SHARDS_MAX {
        return Err(damaged(format!(
            "there are no {} shards",
            meta.shards_begun
        )));
    }
    Ok(Some(Identity {
        epoch,
        shards_begun: meta.shards_begun,
    }))
}

fn parse_epoch(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

pub(super) fn write_meta<D: Disk>(disk: &D, path: &Path, identity: Identity) -> io::Result<()> {
    let meta = Meta {
        format_version: FORMAT_VERSION.into(),
        epoch: format!("{:032x}", u128::from_be_bytes(identity.epoch)),
        shards_begun: identity.shards_begun,
    };
    let mut text = serde_json::to_vec(&meta)?;
    text.push(b'\n');
    let path_new = path.join(META_NEW);
    let file = disk.create(&path_new)?;
    file.write_all_at(&text, 0)?;
    file.sync()?;
    disk.rename(&path_new, &path.join(META))?;
    disk.sync_folder(path)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_path_buf();
    move |source| DirectoryError::Io { path, source }
}
