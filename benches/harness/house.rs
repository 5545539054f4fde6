//! What all measurements share: settings, cores, the machine.

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::contestant::Contestant;
use crate::cores::{Cores, Halves};
use crate::peers;

/// Measures the server beside its peers: `cargo bench --bench harness -- [SCENARIO …] [flags]`
#[derive(Debug, Parser)]
#[command(name = "harness")]
pub struct Settings {
    /// What to measure; all scenarios, where none is named (see --list)
    pub scenarios: Vec<String>,
    /// Rounds, in each of which every contestant is measured once [default: 5; 1 with --quick]
    #[arg(long)]
    pub rounds: Option<u32>,
    /// Seconds that each measurement lasts, after its warm-up [default: 5; less with --quick]
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Every scenario once, in about a minute in all
    #[arg(long)]
    pub quick: bool,
    /// How long the soak lasts [default: 5; seconds with --quick]
    #[arg(long, value_name = "MINUTES")]
    pub soak_minutes: Option<f64>,
    /// Only the loads whose title has this in it
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// The peers beside the server; none: --peers ''
    #[arg(long, value_delimiter = ',', default_values_t = peers::NAMES.map(String::from))]
    pub peers: Vec<String>,
    /// Another build of the server, which is measured in the same rounds
    #[arg(long, value_name = "PROGRAM")]
    pub rival: Option<PathBuf>,
    /// The durability modes of the server
    #[arg(long, value_delimiter = ',', default_value = "none,always")]
    pub durability: Vec<String>,
    /// The cores of the server [default: the first half of those that this process may use]
    #[arg(long, value_name = "CORES")]
    pub server_cores: Option<Cores>,
    /// The cores of the load [default: the other half]
    #[arg(long, value_name = "CORES")]
    pub load_cores: Option<Cores>,
    /// Measures a server elsewhere instead: ws://HOST:PORT
    #[arg(long, value_name = "URL", value_parser = target)]
    pub target: Option<SocketAddr>,
    /// The token for --target
    #[arg(long, env = "HARNESS_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Where the servers have their data, each in a folder of its own, which is removed
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    pub folder: PathBuf,
    /// Where the figures and the pictures go
    #[arg(long, default_value_os_t = output_folder())]
    pub output: PathBuf,
    /// Tells the scenarios and ends
    #[arg(long)]
    pub list: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// What a measurement needs to know of the house that it is in.
#[derive(Debug, Clone)]
pub struct House {
    pub cores: Halves,
    pub folder: PathBuf,
    pub token: Option<String>,
    pub target: Option<SocketAddr>,
    pub rounds: u32,
    /// `--quick`: less of everything.
    pub quick: bool,
    pub warm_up: Duration,
    pub measured: Duration,
    /// How long the soak lasts.
    pub soak: Duration,
    pub durability: Vec<String>,
    /// Another build of the server.
    pub rival: Option<PathBuf>,
    /// The peers that start here.
    pub peers: Vec<String>,
}

/// A delivery that takes longer is a failure.
pub const LATE: Duration = Duration::from_secs(5);

impl House {
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let allowed = Cores::allowed().map_err(|error| error.to_string())?;
        let halves = allowed.halves();
        let cores = Halves {
            server: settings.server_cores.clone().unwrap_or(halves.server),
            load: settings.load_cores.clone().unwrap_or(halves.load),
        };
        for (flag, chosen) in [
            ("--server-cores", &cores.server),
            ("--load-cores", &cores.load),
        ] {
            if !chosen.0.iter().all(|core| allowed.0.contains(core)) {
                return Err(format!("{flag} {chosen}: this process may use {allowed}"));
            }
        }
        cores.load.take().map_err(|error| error.to_string())?;
        raise_open_files();
        let quick = settings.quick;
        let seconds = settings.seconds.unwrap_or(if quick { 0.4 } else { 5.0 });
        let measured =
            Duration::try_from_secs_f64(seconds).map_err(|error| format!("--seconds: {error}"))?;
        let soak_minutes = settings
            .soak_minutes
            .unwrap_or(if quick { 0.05 } else { 5.0 });
        let soak = Duration::try_from_secs_f64(soak_minutes * 60.0)
            .map_err(|error| format!("--soak-minutes: {error}"))?;
        let warm_up = Duration::from_millis(if quick { 100 } else { 1000 });
        Ok(Self {
            cores,
            folder: settings.folder.clone(),
            token: settings.token.clone(),
            target: settings.target,
            quick,
            rounds: settings.rounds.unwrap_or(if quick { 1 } else { 5 }).max(1),
            warm_up,
            measured,
            soak,
            durability: settings.durability.clone(),
            rival: settings.rival.clone(),
            peers: Vec::new(),
        })
    }

    /// Starts each peer once; who does not start is left out, by name.
    pub fn ask_peers(&mut self, names: &[String]) {
        if self.target.is_some() {
            return;
        }
        for name in names.iter().filter(|name| !name.is_empty()) {
            match Contestant::peer(name).start(self) {
                Ok(_) => self.peers.push(name.clone()),
                Err(error) => println!("left out: {name}: {error}"),
            }
        }
    }

    /// The server in each durability mode, and all peers; or the server elsewhere, alone.
    pub fn contestants(&self) -> Vec<Contestant> {
        if let Some(address) = self.target {
            return vec![Contestant::elsewhere(address)];
        }
        let modes = self
            .durability
            .iter()
            .map(|mode| Contestant::etherply(mode));
        let rivals = self.rival.iter().flat_map(|program| {
            let modes = self.durability.iter();
            modes.map(|mode| Contestant::rival(program, mode))
        });
        let peers = self.peers.iter().map(|name| Contestant::peer(name));
        modes.chain(rivals).chain(peers).collect()
    }
}

/// The machine, as a reader of the figures has to know it.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub server_cores: String,
    pub load_cores: String,
    pub memory_gib: u64,
    pub kernel: String,
    pub commit: String,
    pub flags: Vec<String>,
    pub load_average: String,
}

impl Machine {
    pub fn new(house: &House) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("an unknown CPU", |(_, name)| name);
        let memory = read("/proc/meminfo");
        let memory_kib = memory.split_whitespace().nth(1);
        let memory_kib: u64 = memory_kib.and_then(|kib| kib.parse().ok()).unwrap_or(0);
        let commit = Command::new("git")
            .args(["describe", "--always", "--dirty", "--abbrev=12"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output();
        let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        Self {
            cpu: cpu.to_owned(),
            cores: std::thread::available_parallelism()
                .map_or(0, usize::from)
                .max(house.cores.server.0.len() + house.cores.load.0.len()),
            server_cores: house.cores.server.to_string(),
            load_cores: house.cores.load.to_string(),
            memory_gib: memory_kib / (1024 * 1024),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            commit: commit.unwrap_or_default(),
            flags: std::env::args().skip(1).collect(),
            load_average: read("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, {} cores (server on {}, load on {}), {} GiB, Linux {}, commit {}, load average {}",
            self.cpu,
            self.cores,
            self.server_cores,
            self.load_cores,
            self.memory_gib,
            self.kernel,
            self.commit,
            self.load_average
        )
    }
}

fn output_folder() -> PathBuf {
    // The build's own folder, which this runs from: target/release/deps/harness-…
    let binary = std::env::current_exe().unwrap_or_default();
    let target = binary.ancestors().nth(3);
    target
        .map_or_else(|| PathBuf::from("target"), PathBuf::from)
        .join("harness")
}

fn target(text: &str) -> Result<SocketAddr, String> {
    let address = text.strip_prefix("ws://").unwrap_or(text);
    let address = address.split('/').next().unwrap_or_default();
    let mut found = address
        .to_socket_addrs()
        .map_err(|error| format!("it takes a URL such as ws://10.0.0.7:8080: {error}"))?;
    found
        .next()
        .ok_or_else(|| "the name has no address".to_owned())
}

/// A thousand receivers are a thousand open files, here and in the server, which inherits the limit.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // It stays as it is where that is not allowed, and a run that needs more fails and says so.
    let _ = setrlimit(Resource::Nofile, raised);
}
