//! The process: start-up in its order, the threads, the signals, the stop.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::ops::ControlFlow;
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
use crate::config::{SecretError, Secrets, Serve};
use crate::core::contract::ShardConfig;
use crate::core::shard::Shard;
use crate::core::workspace::Workspace;
use crate::io::compactor::{Compactor, News};
use crate::io::listener::{ListenError, Listener};
use crate::io::post::{self, Letter, Post, Status, mailbox};
use crate::io::recovery::{self, Display};
use crate::io::ring;
use crate::io::secrets::Keeper;
use crate::io::worker::{Ties, Worker, clock};
use crate::limits::{
    DESCRIPTORS_PER_SHARD, DESCRIPTORS_RESERVED, LOG_SPARE_BYTES, SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN, SEGMENT_FILL_BYTES, SNAPSHOT_BYTES_MAX, SNAPSHOT_PART_BYTES,
};
use crate::log::commit::Durability;
use crate::log::directory::{DataDirectory, DirectoryError};
use crate::log::keeper::LogKeeper;
use crate::log::recovery::{RecoveryError, Report};
use crate::log::reserve::Reserve;
use crate::wire::auth::{Verifier, mint};

/// Why the server did not start, or stopped. Each is one line that names what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is no secret for the tokens.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The kernel or the container does not let this process use `io_uring`.
    #[error("io_uring is not available: {0}")]
    Ring(String),
    /// There is no socket to listen on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The port for the metrics and the console cannot be had.
    #[error("--admin-port: {0}; choose another with --admin-port, or another --admin-host")]
    Admin(ListenError),
    /// The process may not open enough files.
    #[error(
        "the limit of open files is {limit}, and a server of {shards} shards needs {needed}: raise it (ulimit -n), or lower --shards"
    )]
    FilesLimit {
        /// What the process may open.
        limit: u64,
        /// The shards that were asked for.
        shards: u32,
        /// The least limit with which one client can connect.
        needed: u64,
    },
    /// The data directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The log cannot be read.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The first segments cannot be created.
    #[error("cannot create a log segment in {path}: {source}")]
    Segment {
        /// The data directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no thread, descriptor or random number for the server.
    #[error("the system is short of something: {0}")]
    System(#[from] io::Error),
    /// A shard's thread has ended by a fault of this server.
    #[error(
        "shard {0} has stopped by a fault of this server; start it again: nothing that was shown is lost"
    )]
    Shard(u32),
}

/// How often the display of the recovery is brought up to date.
const PROGRESS_STEP_MS: u64 = 200;

/// What wakes the main thread.
enum Event {
    Signal(i32),
    Stopped { shard: u32, ok: bool },
    Recovered(Box<Result<Recovered, RecoveryError>>),
}

type Recovered = (Report, Vec<Vec<Workspace>>);

/// Runs the server until it is told to stop.
pub fn serve(settings: &Serve) -> Result<(), ServeError> {
    let mut secrets = Keeper::new(settings.secret_sources())?;
    let admin_address = settings.admin_address().map_err(ListenError::from)?;
    ring::probe().map_err(|error| ServeError::Ring(ring_advice(&error)))?;
    // The port first: a second server on it must not touch anything else.
    let listener = Arc::new(Listener::open(settings)?);
    let admin_listener = admin_address.map(Listener::bind).transpose();
    let admin_listener = admin_listener.map_err(ServeError::Admin)?.map(Arc::new);
    let shards = settings.shards(thread::available_parallelism().ok());
    let connections_max = connections_max(settings.max_connections, shards)?;
    let directory = Arc::new(DataDirectory::open(&settings.data_dir)?);

    let (events, inbox) = channel();
    watch_signals(events.clone())?;
    let hash_seed = random_u64()?;
    let dev_token = settings.dev.then(|| dev_token(secrets.secrets()));
    let status = Arc::new(Status::new(shards, connections_max));
    let compactor = Compactor::start(Arc::clone(&directory), shards as usize, Arc::clone(&status))?;
    let common = Common {
        settings,
        shards,
        hash_seed,
        verifier: Arc::new(secrets.secrets().verifier()),
        origins: settings.allow_origins.clone().into(),
        pages: Arc::new(pages(settings, dev_token.clone())),
        status: Arc::clone(&status),
        listener: Arc::clone(&listener),
        admin_listener: admin_listener.clone(),
        started: Instant::now(),
    };
    // They answer from now on: that the log is being read.
    let posts = spawn_shards(&common, &compactor.news(), &events)?;
    spawn_recovery(Arc::clone(&directory), &common, events)?;
    let Some((report, dealt)) = wait_for_recovery(&inbox, &status, &posts, &mut secrets)? else {
        return Ok(());
    };
    // Only this mode waits for the disk.
    let fill_bytes =
        (Durability::from(settings.durability) == Durability::Always).then_some(SEGMENT_FILL_BYTES);
    begin_to_serve(&posts, &directory, &report, dealt, fill_bytes)?;
    let (address, inherited) = (listener.address(), listener.is_inherited());
    tracing::info!(%address, inherited, shards, connections_max, "listening");
    let admin_address = admin_listener.map(|listener| listener.address());
    announce(dev_token.as_deref(), address, admin_address)?;
    tell_manager(&NotifyState::Ready);
    run_until_stopped(&posts, &inbox, &mut secrets)?;
    compactor.stop();
    tracing::info!("stopped");
    Ok(())
}

/// Gives the shards their logs and what was read of them, and waits until all serve.
fn begin_to_serve(
    posts: &[Post],
    directory: &Arc<DataDirectory>,
    report: &Report,
    dealt: Vec<Vec<Workspace>>,
    fill_bytes: Option<u64>,
) -> Result<(), ServeError> {
    let (serves, serving) = channel();
    for (number, (post, workspaces)) in (0..).zip(posts.iter().zip(dealt)) {
        let open = || LogKeeper::open(Arc::clone(directory), number, report, fill_bytes);
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
        let serves = serves.clone();
        post.send(Letter::Recovered(Box::new(post::Recovered {
            log,
            workspaces,
            serves,
        })));
    }
    drop(serves);
    // Ends when each has told it, or has ended: then that is told next.
    serving.iter().for_each(drop);
    // For an inherited socket, on which connections have waited; with one of its own they do so already.
    for post in posts {
        post.send(Letter::Accept);
    }
    Ok(())
}

fn pages(settings: &Serve, dev_token: Option<String>) -> Pages {
    Pages::new(settings.console || settings.dev, dev_token)
        .with_admin_port(settings.admin.admin_port.is_some())
        .with_public_metrics(settings.admin.metrics_public)
}

fn run_until_stopped(
    posts: &[Post],
    inbox: &Receiver<Event>,
    secrets: &mut Keeper<'_>,
) -> Result<(), ServeError> {
    let mut running = posts.len();
    while running > 0 {
        match inbox
            .recv()
            .expect("a thread that sends events runs as long as this one")
        {
            Event::Signal(SIGHUP) => secrets.read_again(posts),
            Event::Signal(signal) => {
                tracing::info!(
                    signal,
                    "stopping: connections are closed, the log is finished"
                );
                tell_manager(&NotifyState::Stopping);
                for post in posts {
                    post.send(Letter::Drain);
                }
            }
            Event::Stopped { shard, ok: false } => return Err(ServeError::Shard(shard)),
            Event::Stopped { ok: true, .. } => running -= 1,
            Event::Recovered(_) => unreachable!("the log is read once"),
        }
    }
    Ok(())
}

fn spawn_recovery(
    directory: Arc<DataDirectory>,
    common: &Common<'_>,
    events: Sender<Event>,
) -> io::Result<()> {
    let (shards, hash_seed) = (common.shards, common.hash_seed);
    let status = Arc::clone(&common.status);
    thread::Builder::new()
        .name("etherply-log".to_owned())
        .spawn(move || {
            let recovered = recovery::recover(&directory, shards, hash_seed, &status.recovery);
            // The main thread may have been told to stop meanwhile.
            let _ = events.send(Event::Recovered(Box::new(recovered)));
        })?;
    Ok(())
}

/// Waits until the log is read. None: a signal came before; nothing was changed that must be finished.
fn wait_for_recovery(
    inbox: &Receiver<Event>,
    status: &Status,
    posts: &[Post],
    secrets: &mut Keeper<'_>,
) -> Result<Option<Recovered>, ServeError> {
    let begun = Instant::now();
    let mut display = Display::new();
    let recovered = loop {
        match inbox.recv_timeout(Duration::from_millis(PROGRESS_STEP_MS)) {
            Err(RecvTimeoutError::Timeout) => display.show(&status.recovery),
            Err(RecvTimeoutError::Disconnected) => {
                unreachable!("a thread that sends events runs as long as this one")
            }
            Ok(Event::Signal(SIGHUP)) => secrets.read_again(posts),
            Ok(Event::Signal(signal)) => {
                display.end();
                tracing::info!(signal, "stopped while the log was read");
                return Ok(None);
            }
            Ok(Event::Stopped { shard, .. }) => return Err(ServeError::Shard(shard)),
            Ok(Event::Recovered(recovered)) => break *recovered,
        }
    };
    display.end();
    let (report, dealt) = recovered?;
    for torn in &report.torn {
        tracing::warn!(
            path = %torn.path.display(), offset = torn.offset, bytes = torn.bytes,
            "cut off a torn tail of {} bytes: writes that a crash had interrupted and nobody was shown", torn.bytes,
        );
    }
    let workspaces: usize = dealt.iter().map(Vec::len).sum();
    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    status.log.tell(|log| {
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
    Ok(Some((report, dealt)))
}

/// What all shards are started with.
struct Common<'a> {
    settings: &'a Serve,
    shards: u32,
    hash_seed: u64,
    verifier: Arc<Verifier>,
    origins: Arc<[String]>,
    pages: Arc<Pages>,
    status: Arc<Status>,
    listener: Arc<Listener>,
    admin_listener: Option<Arc<Listener>>,
    started: Instant,
}

fn spawn_shards(
    common: &Common<'_>,
    news: &Sender<News>,
    events: &Sender<Event>,
) -> io::Result<Vec<Post>> {
    let (posts, mailboxes): (Vec<_>, Vec<_>) = (0..common.shards)
        .map(|_| mailbox())
        .collect::<io::Result<Vec<_>>>()?
        .into_iter()
        .unzip();
    for (number, mailbox) in (0..).zip(mailboxes) {
        let start = Start {
            config: shard_config(common, number),
            ties: Ties {
                status: Arc::clone(&common.status),
                listener: Arc::clone(&common.listener),
                admin_listener: common.admin_listener.clone(),
                mailbox,
                posts: posts.clone(),
                news: news.clone(),
                hash_seed: common.hash_seed,
                pages: Arc::clone(&common.pages),
            },
            started: common.started,
            is_pinned: !common.settings.no_pin,
        };
        spawn_shard(start, events.clone())?;
    }
    Ok(posts)
}

/// What a shard's thread is started with.
struct Start {
    config: ShardConfig,
    ties: Ties,
    started: Instant,
    is_pinned: bool,
}

fn spawn_shard(start: Start, events: Sender<Event>) -> io::Result<()> {
    let number = start.config.shard;
    thread::Builder::new()
        .name(format!("etherply-{number}"))
        .spawn(move || {
            // Told on every way out, by a panic too: a server with a dead shard must not live on.
            struct Tell(Sender<Event>, u32, bool);
            impl Drop for Tell {
                fn drop(&mut self) {
                    let _ = self.0.send(Event::Stopped {
                        shard: self.1,
                        ok: self.2,
                    });
                }
            }
            let mut tell = Tell(events, number, false);
            match run_shard(start) {
                Ok(()) => tell.2 = true,
                Err(error) => {
                    tracing::error!(shard = number, "the ring of a shard failed: {error}");
                }
            }
        })?;
    Ok(())
}

fn run_shard(start: Start) -> io::Result<()> {
    let Start {
        config,
        ties,
        started,
        is_pinned,
    } = start;
    let number = config.shard;
    if is_pinned {
        pin(number);
    }
    let shard = Shard::recovering(config, clock(started));
    let mut worker = Worker::new(shard, number, ties, started);
    let mut is_started = false;
    // Lets the tests take the way of kernels before 5.19.
    let waits_before_receive =
        cfg!(debug_assertions) && std::env::var_os("ETHERPLY_FAULT_OLD_KERNEL").is_some();
    ring::run(waits_before_receive, |ring| {
        if !is_started {
            is_started = true;
            worker.start(ring);
            return ControlFlow::Continue(());
        }
        worker.turn(ring)
    })
}

fn pin(number: u32) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let core = cores.get(number as usize % cores.len().max(1)).copied();
    if !core.is_some_and(core_affinity::set_for_current) {
        tracing::warn!(shard = number, "cannot pin a shard to its core");
    }
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
        snapshot_bytes_max: SNAPSHOT_BYTES_MAX,
        snapshot_part_bytes: SNAPSHOT_PART_BYTES,
        future_skew_us: u64::try_from(settings.max_future_skew.as_micros()).unwrap_or(u64::MAX),
        drain_us: settings.drain_ms * 1000,
        segment_bytes_min: SEGMENT_BYTES_MIN,
        segment_bytes_max: SEGMENT_BYTES_MAX,
        log_spare_bytes: LOG_SPARE_BYTES,
        hash_seed: common.hash_seed,
        verifier: Arc::clone(&common.verifier),
        origins: Arc::clone(&common.origins),
        limits: (&settings.limits).into(),
        fault_panic_key,
    }
}

fn watch_signals(events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    thread::Builder::new()
        .name("etherply-signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                if events.send(Event::Signal(signal)).is_err() {
                    break;
                }
            }
        })?;
    Ok(())
}

/// The most connections: what was asked for, within the limit of open files, which is raised as far
/// as the system lets it.
fn connections_max(wanted: Option<usize>, shards: u32) -> Result<usize, ServeError> {
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
    if let Some(wanted) = wanted.filter(|wanted| *wanted > allowed) {
        tracing::warn!(
            wanted,
            allowed,
            "--max-connections is over the limit of open files (ulimit -n)"
        );
    }
    Ok(wanted.unwrap_or(allowed).min(allowed))
}

/// How many connections a process can have that may open so many files.
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

fn ring_advice(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel has none, or a seccomp filter hides it: use Linux 5.10 or later, and in a container a profile that allows io_uring_setup, io_uring_enter and io_uring_register".to_owned(),
        Some(libc::EPERM | libc::EACCES) => "it is forbidden: set the sysctl kernel.io_uring_disabled to 0, and in a container use a seccomp profile that allows io_uring_setup, io_uring_enter and io_uring_register".to_owned(),
        Some(libc::ENOMEM) => "no memory may be locked for it: raise the limit of locked memory (ulimit -l)".to_owned(),
        Some(libc::EMFILE | libc::ENFILE) => "no file may be opened for it: raise the limit of open files (ulimit -n)".to_owned(),
        _ if error.kind() == io::ErrorKind::Unsupported => "the kernel lacks operations that the server needs: use Linux 5.10 or later".to_owned(),
        _ => error.to_string(),
    }
}

fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::from)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// A token for who tries the server out.
fn dev_token(secrets: &Secrets) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    mint(&secrets.current, "dev", now.as_secs(), None)
}

/// Tells the service manager, where one asks for it (`sd_notify(3)`).
fn tell_manager(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::warn!("the service manager cannot be told {state} (NOTIFY_SOCKET): {error}");
    }
}

/// What a person or a script at the terminal waits for.
fn announce(
    dev_token: Option<&str>,
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "listening on {address}")?;
    if let Some(address) = admin_address {
        writeln!(out, "metrics and console on {address}")?;
    }
    if let Some(token) = dev_token {
        let url = format!("ws://{address}/v1/sync/demo?token={token}");
        writeln!(out, "\n  {url}\n")?;
        writeln!(
            out,
            "Open http://{}/ in a browser, in two windows side by side.\n",
            admin_address.unwrap_or(address)
        )?;
        writeln!(out, "Or try it in a second terminal, or in two:\n")?;
        writeln!(out, "  cargo run --release --example client -- '{url}'\n")?;
    }
    out.flush()
}
