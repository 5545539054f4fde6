//! The servers that are measured: the one built from this tree with some settings, another build, a
//! peer, or one that is already running elsewhere.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etherply::wire::auth::{Secret, mint};
use etherply_bench::load::endpoint::Endpoint;
use etherply_bench::load::op::FieldOrder;
use etherply_bench::load::protocol::ClientProtocol;
use etherply_bench::process::server_program;
use etherply_bench::process::usage::Reading;
use tempfile::TempDir;

use crate::config::HarnessConfig;
use crate::server_process::ServerProcess;

/// The secret that signs the tokens of every server that the harness starts.
const SECRET: &str = "a secret for the harness that is long enough";

/// A server that takes its turn in every round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contestant {
    /// Its name in the tables.
    pub name: String,
    pub kind: Kind,
    /// The protocol that its clients speak.
    pub protocol: ClientProtocol,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Etherply {
        durability: String,
        shards: u32,
        /// A build other than that of this tree.
        program: Option<PathBuf>,
    },
    Peer(String),
    /// A server that is already running elsewhere (`--target`).
    Elsewhere(SocketAddr),
}

/// A contestant that is running.
pub struct Server {
    /// `None` if it runs elsewhere.
    pub process: Option<ServerProcess>,
    pub endpoint: Endpoint,
}

impl Server {
    /// Returns the CPU time that it has used, unless it runs elsewhere.
    pub fn cpu_s(&self) -> Option<f64> {
        Some(self.usage()?.cpu_s())
    }

    /// Returns what it has used so far, unless it runs elsewhere.
    pub fn usage(&self) -> Option<Reading> {
        Some(self.process.as_ref()?.usage())
    }

    /// Returns its resident memory, unless it runs elsewhere.
    pub fn resident_bytes(&self) -> Option<f64> {
        Some(self.process.as_ref()?.resident_bytes())
    }

    /// Appends the last lines of the server's log to a failure.
    pub fn with_log(&self, failure: impl std::fmt::Display) -> String {
        let log = self.process.as_ref().map(ServerProcess::last_log_lines);
        format!("{failure}\n{}", log.unwrap_or_default())
    }
}

impl Contestant {
    /// Returns the server with one shard.
    pub fn etherply(durability: &str) -> Self {
        Self {
            name: format!("etherply {durability}"),
            kind: Kind::Etherply {
                durability: durability.to_owned(),
                shards: 1,
                program: None,
            },
            protocol: ClientProtocol::V1,
        }
    }

    /// Returns the server with `shards` shards; its name shows the number.
    pub fn sharded(durability: &str, shards: u32) -> Self {
        let unit = if shards == 1 { "shard" } else { "shards" };
        Self {
            name: format!("etherply {durability}, {shards} {unit}"),
            kind: Kind::Etherply {
                durability: durability.to_owned(),
                shards,
                program: None,
            },
            protocol: ClientProtocol::V1,
        }
    }

    /// Returns another build of the server, with one shard.
    pub fn rival(program: &Path, durability: &str) -> Self {
        Self {
            name: format!("rival {durability}"),
            kind: Kind::Etherply {
                durability: durability.to_owned(),
                shards: 1,
                program: Some(program.to_owned()),
            },
            protocol: ClientProtocol::V1,
        }
    }

    pub fn peer(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: Kind::Peer(name.to_owned()),
            protocol: ClientProtocol::V1,
        }
    }

    pub fn elsewhere(address: SocketAddr) -> Self {
        Self {
            name: format!("target {address}"),
            kind: Kind::Elsewhere(address),
            protocol: ClientProtocol::V1,
        }
    }

    /// Returns the same server with clients that speak this protocol, which its name shows unless
    /// it is version 1.
    #[must_use]
    pub fn speaking(mut self, protocol: ClientProtocol) -> Self {
        if protocol.is_v2() {
            self.name = format!("{}, {}", self.name, protocol.title());
        }
        Self { protocol, ..self }
    }

    /// Returns whether the server is compared with it; a rival is a peer in this sense.
    pub fn is_peer(&self) -> bool {
        let is_rival = matches!(&self.kind, Kind::Etherply { program, .. } if program.is_some());
        is_rival || matches!(self.kind, Kind::Peer(_))
    }

    /// Returns its durability mode, if it is a build of the server.
    pub fn durability(&self) -> Option<&str> {
        match &self.kind {
            Kind::Etherply { durability, .. } => Some(durability),
            Kind::Peer(_) | Kind::Elsewhere(_) => None,
        }
    }

    /// Returns whether both are the same build and speak the same protocol, and of the two only
    /// the other has the mode `none`.
    pub fn is_safer_than(&self, other: &Self) -> bool {
        let without_mode = |contestant: &Self| match &contestant.kind {
            Kind::Etherply {
                shards, program, ..
            } => Some((*shards, program.clone(), contestant.protocol)),
            Kind::Peer(_) | Kind::Elsewhere(_) => None,
        };
        let is_same = without_mode(self).is_some() && without_mode(self) == without_mode(other);
        is_same && self.durability() != Some("none") && other.durability() == Some("none")
    }

    /// Returns the order in which it writes the fields of an op.
    pub fn field_order(&self) -> FieldOrder {
        match &self.kind {
            Kind::Peer(name) if name == "axum" => FieldOrder::ByName,
            _ => FieldOrder::AsSent,
        }
    }

    /// Returns whether a client that joins receives the state of its workspace.
    pub fn has_state(&self) -> bool {
        match &self.kind {
            Kind::Peer(name) => name == "axum",
            Kind::Etherply { .. } | Kind::Elsewhere(_) => true,
        }
    }

    /// Starts it with an empty folder.
    pub fn start(&self, config: &HarnessConfig) -> io::Result<Server> {
        self.start_with(config, &[])
    }

    /// Starts it with an empty folder and additional flags.
    pub fn start_with(&self, config: &HarnessConfig, flags: &[String]) -> io::Result<Server> {
        let folder = tempfile::Builder::new()
            .prefix("etherply-harness-")
            .tempdir_in(&config.folder)?;
        self.start_in(folder, config, flags)
    }

    /// Kills it and starts it again on the data that it has on disk.
    pub fn restart(&self, server: Server, config: &HarnessConfig) -> io::Result<Server> {
        match server.process {
            Some(process) => self.start_in(process.stop(), config, &[]),
            None => Err(io::Error::other("a server elsewhere cannot be restarted")),
        }
    }

    fn start_in(
        &self,
        folder: TempDir,
        config: &HarnessConfig,
        flags: &[String],
    ) -> io::Result<Server> {
        let mut command = match self.kind {
            Kind::Elsewhere(address) => {
                let token = config.token.clone().unwrap_or_else(token);
                let prefix = format!("harness-{}-", unix_time().as_nanos());
                return Ok(Server {
                    process: None,
                    endpoint: Endpoint::plain(address, token)
                        .with_prefix(prefix)
                        .with_protocol(self.protocol),
                });
            }
            Kind::Etherply { .. } | Kind::Peer(_) => self.command(folder.path())?,
        };
        command.args(flags);
        let process = ServerProcess::start(command, folder, &config.cores)?;
        Ok(Server {
            endpoint: Endpoint::plain(process.address, token()).with_protocol(self.protocol),
            process: Some(process),
        })
    }

    /// Returns the command that starts it.
    fn command(&self, folder: &Path) -> io::Result<Command> {
        match &self.kind {
            Kind::Elsewhere(_) => Err(io::Error::other("it runs elsewhere")),
            Kind::Etherply {
                durability,
                shards,
                program,
            } => {
                let mut command = match program {
                    Some(program) => Command::new(program),
                    None => Command::new(server_program()?),
                };
                command
                    .args(["serve", "--host", "127.0.0.1", "--port", "0"])
                    .args(["--log-level", "warn", "--durability", durability])
                    .args(["--shards", &shards.to_string()])
                    .arg("--data-dir")
                    .arg(folder.join("data"))
                    .env("ETHERPLY_JWT_SECRET", SECRET);
                Ok(command)
            }
            Kind::Peer(name) => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["peer", name, "--port", "0"]);
                if name == "axum" {
                    command.arg("--log").arg(folder.join("log"));
                }
                Ok(command)
            }
        }
    }
}

/// Starts each peer once and adds it to the run; one that does not start is omitted, and its name
/// is printed.
pub fn find_peers(config: &mut HarnessConfig, names: &[String]) {
    if config.target.is_some() {
        return;
    }
    for name in names.iter().filter(|name| !name.is_empty()) {
        match Contestant::peer(name).start(config) {
            Ok(_) => config.peers.push(name.clone()),
            Err(error) => println!("left out: {name}: {error}"),
        }
    }
}

/// Returns the server in each durability mode, its rival, and all peers; with `--target`, only the
/// server elsewhere.
pub fn all(config: &HarnessConfig) -> Vec<Contestant> {
    all_speaking(config, &[ClientProtocol::V1])
}

/// Returns the same contestants, with each protocol in the settings; peers speak only version 1.
pub fn all_speaking(config: &HarnessConfig, protocols: &[ClientProtocol]) -> Vec<Contestant> {
    let chosen = |protocol: &&ClientProtocol| config.protocols.contains(protocol);
    let protocols: Vec<ClientProtocol> = protocols.iter().filter(chosen).copied().collect();
    let speaking_each = |contestant: Contestant| {
        let contestants = protocols
            .iter()
            .map(|protocol| contestant.clone().speaking(*protocol));
        contestants.collect::<Vec<_>>()
    };
    if let Some(address) = config.target {
        return speaking_each(Contestant::elsewhere(address));
    }
    let modes = || config.durability.iter();
    let own = modes().map(|mode| Contestant::etherply(mode));
    let rivals = config
        .rival
        .iter()
        .flat_map(|program| modes().map(|mode| Contestant::rival(program, mode)));
    let peers = config.peers.iter().map(|name| Contestant::peer(name));
    own.chain(rivals)
        .flat_map(speaking_each)
        .chain(peers)
        .collect()
}

fn token() -> String {
    let secret = Secret::new(SECRET.into()).expect("the secret is not empty");
    mint(&secret, "harness", unix_time().as_secs(), None)
}

fn unix_time() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("the clock is after 1970")
}
