//! The server process: startup order, threads, signals and shutdown.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::admin::Pages;
use crate::config::{SecretError, Secrets, ServeArgs};
use crate::core::shard::contract::{LoggedGenerations, ShardConfig};
use crate::core::shard::log_space::LogSize;
use crate::core::state::workspace::Workspace;
use crate::generation::Generation;
use crate::io::compactor::{Compactor, CompactorEvent};
use crate::io::listener::{AddressNames, ListenError, Listener};
use crate::io::mailbox::{RecoveredShard, ShardMessage, ShardSender, mailbox};
use crate::io::random::random_u64;
use crate::io::recovery::{self, Display};
use crate::io::ring::{self, RingKind};
use crate::io::secrets::SecretStore;
use crate::io::shard_thread::{self, RingReport, Start};
use crate::io::threads::{self, ThreadError};
use crate::io::worker::WorkerContext;
use crate::limits::{
    BATCH_BYTES_MAX, CONFLATED_BYTES_MAX, DESCRIPTORS_PER_SHARD, DESCRIPTORS_RESERVED,
    LOG_SPARE_BYTES, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENT_FILL_BYTES, SHARD_BYTES,
    SHARDS_PER_CORE_MAX, SNAPSHOT_BYTES_MAX, SNAPSHOT_PART_BYTES, session_budget_bytes,
};
use crate::log::commit::Durability;
use crate::log::directory::{DataDirectory, DirectoryError};
use crate::log::disk::{Disk, HostDisk};
use crate::log::log_files::LogFiles;
use crate::log::recovery::{RecoveryError, RecoveryReport, previous_generation};
use crate::log::remedy::WithRemedy;
use crate::log::reserve::Reserve;
use crate::log::schedule::{DiskRoom, LowMarks};
use crate::status::Status;
use crate::wire::auth::{Verifier, mint};

/// Errors that prevent the server from starting or make it stop. Each message is one line that says
/// what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no usable secret for signing tokens.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The kernel or the container does not let this process use `io_uring`.
    #[error("io_uring is not available: {0}")]
    Ring(String),
    /// The kernel does not support the ring that `--ring native` demands.
    #[error(
        "--ring native needs operations that this kernel or container does not support: use Linux \
         6.1 or later, or --ring auto"
    )]
    NoNativeRing,
    /// The system could not start a thread.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// There is no socket to listen on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The process is not allowed to open enough files.
    #[error(
        "the limit on open files is {limit}, but a server with {shards} shards needs {needed}: \
         raise it (ulimit -n), or lower --shards"
    )]
    FilesLimit {
        /// The limit on open files.
        limit: u64,
        /// The number of shards that were requested.
        shards: u32,
        /// The lowest limit that allows one client to connect.
        needed: u64,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The log cannot be read.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The first segments cannot be created.
    #[error("cannot create a log segment in {path}: {}", WithRemedy(.source))]
    Segment {
        /// The data directory.
        path: PathBuf,
        /// The underlying I/O error.
        source: io::Error,
    },
    /// The system could not provide a descriptor or a random number.
    #[error("the server cannot start: {}", WithRemedy(.0))]
    System(#[from] io::Error),
    /// A shard's thread has ended because of a bug in this server.
    #[error(
        "shard {0} stopped because of a bug in this server, please report it; restart the server \
         to continue with the state in its log"
    )]
    Shard(u32),
}

/// The interval at which the recovery display is updated.
const PROGRESS_STEP_MS: u64 = 200;

/// An event that wakes the main thread.
enum ServerEvent {
    Signal(i32),
    Stopped { shard: u32, ok: bool },
    Recovered(Box<Result<RecoveredLog, RecoveryError>>),
}

/// The recovery report and the workspaces of each shard.
type RecoveredLog = (RecoveryReport, Vec<Vec<Workspace>>);

/// Runs the server until it is asked to stop.
pub fn serve(settings: &ServeArgs) -> Result<(), ServeError> {
    let mut secrets = SecretStore::new(settings.secret_sources())?;
    let admin_address = settings.admin_address().map_err(ListenError::from)?;
    let cores = thread::available_parallelism().ok();
    let shards = settings.shards(cores);
    let ring = ring_kind(settings, shards)?;
    // The port comes first: if another server is using it, this one must not touch anything else.
    let listener = Arc::new(Listener::open(settings)?);
    let admin_listener = admin_address.map(|address| {
        let names = AddressNames {
            host: &settings.given.name("--admin-host"),
            port: &settings.given.name("--admin-port"),
        };
        Listener::bind(address, names).map(Arc::new)
    });
    let admin_listener = admin_listener.transpose()?;
    let connections_max = connections_max(settings, shards)?;
    let directory = Arc::new(DataDirectory::open(&settings.data_dir)?);
    warn_of_public_directory(&directory);
    report_upgrade(&directory);
    secrets.keep_in(directory.path())?;

    let (events, inbox) = channel();
    watch_signals(events.clone())?;
    let hash_seed = random_u64()?;
    let token = settings.dev.then(|| dev_token(secrets.secrets()));
    let status = Arc::new(Status::new(shards, connections_max));
    let compactor = Compactor::start(Arc::clone(&directory), shards as usize, Arc::clone(&status))?;
    let common = Common {
        settings,
        shards,
        hash_seed,
        verifier: Arc::new(secrets.secrets().verifier()),
        origins: settings.allow_origins.clone().into(),
        pages: Arc::new(pages(settings, token)),
        status: Arc::clone(&status),
        listener: Arc::clone(&listener),
        admin_listener: admin_listener.clone(),
        ring,
        started: Instant::now(),
    };
    let senders = spawn_shards(&common, &compactor.events(), &events)?;
    spawn_recovery(Arc::clone(&directory), &common, events)?;
    let Some((report, partitions)) = wait_for_recovery(&inbox, &common, &senders, &mut secrets)?
    else {
        return Ok(());
    };
    // The secret may have changed while the log was being read.
    let token = settings.dev.then(|| dev_token(secrets.secrets()));
    common.pages.renew_token(|| dev_token(secrets.secrets()));
    // Only this mode makes clients wait for the disk.
    let fill_bytes =
        (Durability::from(settings.durability) == Durability::Always).then_some(SEGMENT_FILL_BYTES);
    begin_to_serve(&senders, &directory, &report, partitions, fill_bytes)?;
    warn_of_shards(shards, cores);
    let (address, inherited) = (listener.address(), listener.is_inherited());
    tracing::info!(%address, inherited, shards, %ring, connections_max, "listening");
    let admin_address = admin_listener.map(|listener| listener.address());
    let has_console = settings.console || settings.dev;
    if let Err(error) = announce(token.as_deref(), address, admin_address, has_console) {
        // The log has the same information, except for the token of --dev.
        tracing::warn!("cannot write to stdout ({error}): continuing without it");
    }
    notify_manager(&NotifyState::Ready);
    run_until_stopped(&senders, &inbox, &mut secrets, &common.pages)?;
    compactor.stop();
    tracing::info!("stopped");
    Ok(())
}

/// Returns the ring that the shards run on.
fn ring_kind(settings: &ServeArgs, shards: u32) -> Result<RingKind, ServeError> {
    ring::probe().map_err(|error| ServeError::Ring(ring::advice(&error, shards)))?;
    RingKind::choose(settings.ring).ok_or(ServeError::NoNativeRing)
}

/// Sends each shard its log and its recovered state, and waits until all of them serve.
fn begin_to_serve(
    senders: &[ShardSender],
    directory: &Arc<DataDirectory>,
    report: &RecoveryReport,
    partitions: Vec<Vec<Workspace>>,
    fill_bytes: Option<u64>,
) -> Result<(), ServeError> {
    let (serves, serving) = channel();
    // All shards begin the same generation, so that a later start with a different number of shards
    // can still identify it.
    let generation = Generation::new(random_u64()?);
    let shards = u32::try_from(senders.len()).expect("SHARDS_MAX fits in 32 bits");
    let mut room = DiskRoom::new(LowMarks::default(), senders.len() as u64);
    for (number, (sender, workspaces)) in (0..).zip(senders.iter().zip(partitions)) {
        let open = || LogFiles::open(Arc::clone(directory), number, report, fill_bytes);
        let log = open().or_else(|error| {
            let is_full = error.kind() == io::ErrorKind::StorageFull;
            if is_full && Reserve::new(Arc::clone(directory)).give_up() {
                return open();
            }
            Err(error)
        });
        let log = log.map_err(|source| ServeError::Segment {
            path: directory.path().to_owned(),
            source,
        })?;
        // A shard writes as soon as it serves, which may be before the compactor first checks the
        // disk.
        room.looked(HostDisk.space(directory.path()).ok(), false, &[]);
        let room_end = room.end(log.open_segment().first_position);
        sender.send(ShardMessage::LogSize(LogSize::unmeasured(room_end)));
        let serves = serves.clone();
        sender.send(ShardMessage::Recovered(Box::new(RecoveredShard {
            log,
            workspaces,
            generation,
            logged: LoggedGenerations {
                last_number: report.next_generation_number() - 1,
                previous: previous_generation(&report.generations, number, shards),
            },
            serves,
        })));
    }
    let noted = directory.note_shards(shards);
    noted.map_err(|source| ServeError::Segment {
        path: directory.path().to_owned(),
        source,
    })?;
    drop(serves);
    // This ends once every shard has either sent its message or stopped; a stop is reported as an
    // event.
    serving.iter().for_each(drop);
    // This is for an inherited socket, on which connections have been waiting. If the server opened
    // its own socket, the shards are already accepting.
    for sender in senders {
        sender.send(ShardMessage::Accept);
    }
    Ok(())
}

fn warn_of_public_directory(directory: &DataDirectory) {
    let path = directory.path().display();
    if let Some(mode) = directory.public_mode() {
        tracing::warn!(
            "other users of this machine can read the data directory {path} (mode {mode:04o}): \
             run chmod -R o-rwx {path}"
        );
    }
}

fn report_upgrade(directory: &DataDirectory) {
    if let Some(before) = directory.upgraded_from() {
        let (path, now) = (
            directory.path().display(),
            directory.identity().format_version,
        );
        tracing::info!(
            "the data directory {path} was upgraded from format {before} to format {now}: older \
             servers refuse it"
        );
    }
}

fn pages(settings: &ServeArgs, dev_token: Option<String>) -> Pages {
    Pages::new(settings.console || settings.dev, dev_token)
        .with_admin_host(settings.admin.address().map(|address| address.ip()))
        .with_public_metrics(settings.admin.metrics_public)
}

fn run_until_stopped(
    senders: &[ShardSender],
    inbox: &Receiver<ServerEvent>,
    secrets: &mut SecretStore<'_>,
    pages: &Pages,
) -> Result<(), ServeError> {
    let mut running = senders.len();
    while running > 0 {
        match inbox.recv().expect("a thread that sends events is running") {
            ServerEvent::Signal(SIGHUP) => {
                secrets.read_again(senders);
                pages.renew_token(|| dev_token(secrets.secrets()));
            }
            ServerEvent::Signal(signal) => {
                tracing::info!(
                    signal,
                    "stopping: closing connections and finishing the log"
                );
                notify_manager(&NotifyState::Stopping);
                for sender in senders {
                    sender.send(ShardMessage::Drain);
                }
            }
            ServerEvent::Stopped { shard, ok: false } => return Err(ServeError::Shard(shard)),
            ServerEvent::Stopped { ok: true, .. } => running -= 1,
            // The server was stopped before recovery ended, so the result is no longer needed.
            ServerEvent::Recovered(_) => {}
        }
    }
    Ok(())
}

fn spawn_recovery(
    directory: Arc<DataDirectory>,
    common: &Common<'_>,
    events: Sender<ServerEvent>,
) -> Result<(), ThreadError> {
    let (shards, hash_seed) = (common.shards, common.hash_seed);
    let status = Arc::clone(&common.status);
    threads::start("etherply-log".to_owned(), move || {
        let recovered = recovery::recover(&directory, shards, hash_seed, &status.recovery);
        // The main thread may have been asked to stop in the meantime.
        let _ = events.send(ServerEvent::Recovered(Box::new(recovered)));
    })?;
    Ok(())
}

/// Waits until the log has been read. Returns `None` if a signal to stop arrived first; by then,
/// all shards have stopped and there is nothing left to do.
fn wait_for_recovery(
    inbox: &Receiver<ServerEvent>,
    common: &Common<'_>,
    senders: &[ShardSender],
    secrets: &mut SecretStore<'_>,
) -> Result<Option<RecoveredLog>, ServeError> {
    let status = &common.status;
    let begun = Instant::now();
    let mut display = Display::new();
    let recovered = loop {
        match inbox.recv_timeout(Duration::from_millis(PROGRESS_STEP_MS)) {
            Err(RecvTimeoutError::Timeout) => display.show(&status.recovery),
            Err(RecvTimeoutError::Disconnected) => {
                unreachable!("a thread that sends events is running")
            }
            Ok(ServerEvent::Signal(SIGHUP)) => secrets.read_again(senders),
            Ok(ServerEvent::Signal(signal)) => {
                display.end();
                notify_manager(&NotifyState::Stopping);
                // Draining also answers the clients that are waiting for recovery.
                for sender in senders {
                    sender.send(ShardMessage::Drain);
                }
                run_until_stopped(senders, inbox, secrets, &common.pages)?;
                tracing::info!(signal, "stopped while reading the log");
                return Ok(None);
            }
            Ok(ServerEvent::Stopped { shard, .. }) => return Err(ServeError::Shard(shard)),
            Ok(ServerEvent::Recovered(recovered)) => break *recovered,
        }
    };
    display.end();
    let (report, partitions) = recovered?;
    for torn in &report.torn {
        tracing::warn!(
            path = %torn.path.display(), offset = torn.offset, bytes = torn.bytes,
            "cut off a torn tail of {} bytes, left by an interrupted write: with --durability \
             always, no client received any of it, unless the disk lost data that it had \
             confirmed",
            torn.bytes,
        );
    }
    let workspaces: usize = partitions.iter().map(Vec::len).sum();
    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    status.log.update(|log| {
        log.recovered_ops = report.ops;
        log.torn_bytes = report.torn.iter().map(|torn| torn.bytes).sum();
        log.recovery_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    });
    tracing::info!(
        ops = report.ops,
        bytes = report.bytes,
        workspaces,
        took_ms,
        "read the log"
    );
    Ok(Some((report, partitions)))
}

/// The arguments that all shards share.
struct Common<'a> {
    settings: &'a ServeArgs,
    shards: u32,
    hash_seed: u64,
    verifier: Arc<Verifier>,
    origins: Arc<[String]>,
    pages: Arc<Pages>,
    status: Arc<Status>,
    listener: Arc<Listener>,
    admin_listener: Option<Arc<Listener>>,
    ring: RingKind,
    started: Instant,
}

/// Starts the shards' threads, and starts listening once every shard has its ring. Until the log
/// has been read, clients receive the answer that recovery is in progress.
fn spawn_shards(
    common: &Common<'_>,
    compactor: &Sender<CompactorEvent>,
    events: &Sender<ServerEvent>,
) -> Result<Vec<ShardSender>, ServeError> {
    let (senders, mailboxes): (Vec<_>, Vec<_>) = (0..common.shards)
        .map(|_| mailbox())
        .collect::<io::Result<Vec<_>>>()?
        .into_iter()
        .unzip();
    let (rings, set_up) = channel();
    let mut go = Vec::new();
    for (number, mailbox) in (0..).zip(mailboxes) {
        let (sender, receiver) = channel();
        go.push(sender);
        let start = Start {
            config: shard_config(common, number),
            context: WorkerContext {
                status: Arc::clone(&common.status),
                listener: Arc::clone(&common.listener),
                admin_listener: common.admin_listener.clone(),
                mailbox,
                senders: senders.clone(),
                compactor: compactor.clone(),
                hash_seed: common.hash_seed,
                pages: Arc::clone(&common.pages),
            },
            started: common.started,
            is_pinned: !common.settings.no_pin,
            ring_kind: common.ring,
            ring: RingReport::new(rings.clone()),
            go: receiver,
        };
        let events = events.clone();
        shard_thread::spawn(start, move |ok| {
            let shard = number;
            // The main thread may have ended.
            let _ = events.send(ServerEvent::Stopped { shard, ok });
        })?;
    }
    for outcome in set_up.iter().take(go.len()) {
        let no_ring = |error: io::Error| ServeError::Ring(ring::advice(&error, common.shards));
        outcome.map_err(no_ring)?;
    }
    common.listener.listen()?;
    if let Some(listener) = &common.admin_listener {
        listener.listen()?;
    }
    for shard in go {
        // A shard that has stopped is reported by its event.
        let _ = shard.send(());
    }
    Ok(senders)
}

/// Warns if there are many more shards than cores.
fn warn_of_shards(shards: u32, cores: Option<NonZeroUsize>) {
    let Some(cores) = cores.filter(|cores| shards as usize > SHARDS_PER_CORE_MAX * cores.get())
    else {
        return;
    };
    let (mib, each_mib) = (u64::from(shards) * (SHARD_BYTES >> 20), SHARD_BYTES >> 20);
    tracing::warn!(
        "{shards} shards on {cores} cores delay each other and, under load, use up to {mib} MiB \
         of memory ({each_mib} MiB each) in addition to the state: use --shards {cores}"
    );
}

fn shard_config(common: &Common<'_>, shard: u32) -> ShardConfig {
    let settings = common.settings;
    let fault_panic_key = cfg!(debug_assertions)
        .then(|| std::env::var("ETHERPLY_FAULT_PANIC_KEY").ok())
        .flatten();
    ShardConfig {
        shard,
        shards: common.shards,
        durability: settings.durability.into(),
        sync_interval_us: settings.sync_interval_ms * 1000,
        ping_interval_us: settings.ping_interval_ms * 1000,
        outbox_bytes_max: settings.outbox_max_bytes,
        message_bytes_max: settings.max_message_bytes,
        session_bytes_max: session_budget_bytes(settings.max_message_bytes),
        snapshot_bytes_max: SNAPSHOT_BYTES_MAX,
        snapshot_part_bytes: SNAPSHOT_PART_BYTES,
        state_part_bytes: CONFLATED_BYTES_MAX,
        future_skew_us: micros(settings.max_future_skew),
        tombstone_retention_us: micros(settings.tombstone_retention),
        drain_us: settings.drain_ms * 1000,
        batch_bytes_max: BATCH_BYTES_MAX,
        segment_bytes_min: SEGMENT_BYTES_MIN,
        segment_bytes_max: SEGMENT_BYTES_MAX,
        log_spare_bytes: LOG_SPARE_BYTES,
        hash_seed: common.hash_seed,
        verifier: Arc::clone(&common.verifier),
        origins: Arc::clone(&common.origins),
        limits: (&settings.limits).into(),
        presence: (&settings.presence).into(),
        has_journal: tracing::enabled!(tracing::Level::DEBUG),
        fault_panic_key,
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn watch_signals(events: Sender<ServerEvent>) -> Result<(), ServeError> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    threads::start("etherply-signals".to_owned(), move || {
        for signal in signals.forever() {
            if events.send(ServerEvent::Signal(signal)).is_err() {
                break;
            }
        }
    })?;
    Ok(())
}

/// Returns the maximum number of connections: the configured number, capped by the limit on open
/// files, which is raised as far as the system allows.
fn connections_max(settings: &ServeArgs, shards: u32) -> Result<usize, ServeError> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let allowed = connections_allowed(files.unwrap_or(u64::MAX), shards)?;
    let wanted = settings.max_connections;
    if let Some(wanted) = wanted.filter(|wanted| *wanted > allowed) {
        let name = settings.given.name("--max-connections");
        tracing::warn!(
            wanted,
            allowed,
            "{name} exceeds what the limit on open files allows: raise the limit (ulimit -n)"
        );
    }
    Ok(wanted.unwrap_or(allowed).min(allowed))
}

/// Returns the number of client connections that an open-file limit of `files` allows.
pub fn connections_allowed(files: u64, shards: u32) -> Result<usize, ServeError> {
    let reserved = DESCRIPTORS_RESERVED + DESCRIPTORS_PER_SHARD * u64::from(shards);
    if files <= reserved {
        return Err(ServeError::FilesLimit {
            limit: files,
            shards,
            needed: reserved + 1,
        });
    }
    Ok(usize::try_from(files - reserved).unwrap_or(usize::MAX / 2))
}

/// Returns a token for trying out the server.
fn dev_token(secrets: &Secrets) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    mint(&secrets.current, "dev", now.as_secs(), None)
}

/// Notifies the service manager if there is one (`sd_notify(3)`).
fn notify_manager(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::warn!("cannot notify the service manager of {state} (NOTIFY_SOCKET): {error}");
    }
}

/// Prints the lines that the user or a script is waiting for.
fn announce(
    dev_token: Option<&str>,
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    has_console: bool,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "listening on {address}")?;
    if let Some(address) = admin_address {
        let pages = if has_console {
            "metrics and console"
        } else {
            "metrics"
        };
        writeln!(out, "{pages} on {address}")?;
    }
    if let Some(token) = dev_token {
        let url = format!("ws://{address}/v1/sync/demo?token={token}");
        writeln!(out, "\n  {url}\n")?;
        writeln!(
            out,
            "Open http://{}/ in two browser windows side by side.\n",
            admin_address.unwrap_or(address)
        )?;
        writeln!(out, "Or run this in a second terminal, or in two:\n")?;
        writeln!(out, "  cargo run --release --example client -- '{url}'\n")?;
    }
    out.flush()
}
