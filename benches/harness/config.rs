//! The settings of a run, and those that each measurement needs.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use etherply_bench::load::protocol::ClientProtocol;
use etherply_bench::machine::Machine;
use etherply_bench::process::raise_open_files;
use serde::Serialize;

use crate::cores::{Cores, Halves};
use crate::peers;

/// Measures the server and its peers
///
/// `cargo bench -p etherply-bench --bench harness -- [SCENARIO …] [flags]`, or `cargo harness …`
#[derive(Debug, Parser)]
#[command(name = "harness")]
pub struct Settings {
    /// The scenarios to run [default: all; see --list]
    pub scenarios: Vec<String>,
    /// Rounds; each measures every contestant once [default: 5; 1 with --quick]
    #[arg(long)]
    pub rounds: Option<u32>,
    /// Duration of each measurement in seconds, after its warm-up [default: 5; less with --quick]
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Run every scenario once, in about a minute in total
    #[arg(long)]
    pub quick: bool,
    /// Duration of the soak in minutes [default: 5; seconds with --quick]
    #[arg(long, value_name = "MINUTES")]
    pub soak_minutes: Option<f64>,
    /// Run only the loads whose title contains this text
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// The peers to measure along with the server; none: --peers ''
    #[arg(long, value_delimiter = ',', default_values_t = peers::NAMES.map(String::from))]
    pub peers: Vec<String>,
    /// Another build of the server, measured in the same rounds
    #[arg(long, value_name = "PROGRAM")]
    pub rival: Option<PathBuf>,
    /// The durability modes of the server
    #[arg(long, value_delimiter = ',', default_value = "none,always")]
    pub durability: Vec<String>,
    /// The versions of the protocol, measured in the same rounds if a scenario supports both
    #[arg(long, value_name = "VERSIONS", value_enum, value_delimiter = ',')]
    #[arg(default_value = "v1,v2-without-ids,v2")]
    pub protocol: Vec<ClientProtocol>,
    /// The cores of the server [default: the first half of those that this process may use]
    #[arg(long, value_name = "CORES")]
    pub server_cores: Option<Cores>,
    /// The cores of the load [default: the other half]
    #[arg(long, value_name = "CORES")]
    pub load_cores: Option<Cores>,
    /// Measure a running server instead: ws://HOST:PORT
    #[arg(long, value_name = "URL", value_parser = target)]
    pub target: Option<SocketAddr>,
    /// The token for --target
    #[arg(long, env = "HARNESS_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The folder for each server's own data directory, which is removed afterwards
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    pub folder: PathBuf,
    /// The folder for the figures and the pictures
    #[arg(long, default_value_os_t = output_folder())]
    pub output: PathBuf,
    /// List the scenarios and exit
    #[arg(long)]
    pub list: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// The settings of the run that each measurement needs.
#[derive(Debug, Clone)]
pub struct HarnessConfig {
    pub cores: Halves,
    pub folder: PathBuf,
    pub token: Option<String>,
    pub target: Option<SocketAddr>,
    pub rounds: u32,
    /// Less of everything (`--quick`).
    pub quick: bool,
    pub warm_up: Duration,
    pub measured: Duration,
    pub soak: Duration,
    pub durability: Vec<String>,
    pub protocols: Vec<ClientProtocol>,
    /// Another build of the server.
    pub rival: Option<PathBuf>,
    /// The peers that can be started on this machine.
    pub peers: Vec<String>,
}

/// A delivery that takes longer than this is a failure.
pub const LATE: Duration = Duration::from_secs(5);

impl HarnessConfig {
    /// Checks the settings, and moves this thread to the cores of the load.
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
        // A thousand receivers mean a thousand open files, both here and in the server, which
        // inherits the limit.
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
            protocols: settings.protocol.clone(),
            rival: settings.rival.clone(),
            peers: Vec::new(),
        })
    }
}

/// The machine and how it was used.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    #[serde(flatten)]
    pub machine: Machine,
    pub server_cores: String,
    pub load_cores: String,
    pub commit: String,
    /// The command line, without the token.
    pub flags: Vec<String>,
}

impl Environment {
    pub fn read(config: &HarnessConfig) -> Self {
        let Halves { server, load } = &config.cores;
        let mut machine = Machine::read();
        machine.cores = machine.cores.max(server.0.len() + load.0.len());
        let commit = Command::new("git")
            .args(["describe", "--always", "--dirty", "--abbrev=12"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output();
        let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        let token = config.token.as_deref();
        let flags = std::env::args().skip(1).map(|flag| match token {
            Some(token) => flag.replace(token, "…"),
            None => flag,
        });
        Self {
            machine,
            server_cores: server.to_string(),
            load_cores: load.to_string(),
            commit: commit.unwrap_or_default(),
            flags: flags.collect(),
        }
    }
}

impl std::fmt::Display for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}; server on cores {}, load on {}; commit {}",
            self.machine, self.server_cores, self.load_cores, self.commit
        )
    }
}

/// Returns `target/harness` if this runs as `target/release/deps/harness-…`.
fn output_folder() -> PathBuf {
    let binary = std::env::current_exe().unwrap_or_default();
    let target = binary.ancestors().nth(3);
    target.unwrap_or(Path::new("target")).join("harness")
}

fn target(text: &str) -> Result<SocketAddr, String> {
    let address = text.strip_prefix("ws://").unwrap_or(text);
    let address = address.split('/').next().unwrap_or_default();
    let mut found = address
        .to_socket_addrs()
        .map_err(|error| format!("it must be a URL such as ws://10.0.0.7:8080: {error}"))?;
    found
        .next()
        .ok_or_else(|| "the name has no address".to_owned())
}
