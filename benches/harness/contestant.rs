//! Who is measured: the server with some settings, a peer, or a server elsewhere.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etherply::wire::auth::{Secret, mint};
use tempfile::TempDir;

use crate::house::House;
use crate::process::Process;
use etherply_bench::load::join::Door;
use etherply_bench::load::op::Order;
use etherply_bench::process::server_program;

/// Signs the tokens of every server that the harness starts.
const SECRET: &str = "a secret of the harness, long enough to be one";

/// Who takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contestant {
    /// As it stands in the tables.
    pub name: String,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Etherply {
        durability: String,
        shards: u32,
        /// Another build than that of this tree.
        program: Option<PathBuf>,
    },
    Peer(String),
    /// `--target`
    Elsewhere(SocketAddr),
}

/// A contestant that serves.
pub struct Server {
    /// `None`: it is elsewhere.
    pub process: Option<Process>,
    pub door: Door,
}

impl Server {
    /// The CPU time that it has used, where that can be read.
    pub fn cpu_s(&self) -> Option<f64> {
        Some(self.process.as_ref()?.cpu_s())
    }

    /// Its resident memory, where that can be read.
    pub fn resident_bytes(&self) -> Option<f64> {
        Some(self.process.as_ref()?.resident_bytes())
    }

    /// A failure, and what it has said last.
    pub fn blamed(&self, failure: impl std::fmt::Display) -> String {
        let words = self.process.as_ref().map(Process::last_words);
        format!("{failure}\n{}", words.unwrap_or_default())
    }
}

impl Contestant {
    /// The server with one shard.
    pub fn etherply(durability: &str) -> Self {
        Self {
            name: format!("etherply {durability}"),
            kind: Kind::Etherply {
                durability: durability.to_owned(),
                shards: 1,
                program: None,
            },
        }
    }

    /// The server with so many shards, which its name tells.
    pub fn sharded(durability: &str, shards: u32) -> Self {
        let unit = if shards == 1 { "shard" } else { "shards" };
        Self {
            name: format!("etherply {durability}, {shards} {unit}"),
            kind: Kind::Etherply {
                durability: durability.to_owned(),
                shards,
                program: None,
            },
        }
    }

    /// Another build of the server, with one shard.
    pub fn rival(program: &Path, durability: &str) -> Self {
        Self {
            name: format!("rival {durability}"),
            kind: Kind::Etherply {
                durability: durability.to_owned(),
                shards: 1,
                program: Some(program.to_owned()),
            },
        }
    }

    pub fn peer(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: Kind::Peer(name.to_owned()),
        }
    }

    pub fn elsewhere(address: SocketAddr) -> Self {
        Self {
            name: format!("target {address}"),
            kind: Kind::Elsewhere(address),
        }
    }

    pub fn is_peer(&self) -> bool {
        let is_rival = matches!(&self.kind, Kind::Etherply { program, .. } if program.is_some());
        is_rival || matches!(self.kind, Kind::Peer(_))
    }

    /// In which order it writes the fields of an op.
    pub fn order(&self) -> Order {
        match &self.kind {
            Kind::Peer(name) if name == "axum" => Order::ByName,
            _ => Order::AsSent,
        }
    }

    /// Whether it shows the state to who joins.
    pub fn has_state(&self) -> bool {
        match &self.kind {
            Kind::Peer(name) => name == "axum",
            Kind::Etherply { .. } | Kind::Elsewhere(_) => true,
        }
    }

    /// Starts it with an empty folder.
    pub fn start(&self, house: &House) -> io::Result<Server> {
        self.start_with(house, &[])
    }

    /// The same, with more flags.
    pub fn start_with(&self, house: &House, flags: &[String]) -> io::Result<Server> {
        let folder = tempfile::Builder::new()
            .prefix("etherply-harness-")
            .tempdir_in(&house.folder)?;
        self.start_in(folder, house, flags)
    }

    /// Kills it and starts it again with what it has on disk.
    pub fn restart(&self, server: Server, house: &House) -> io::Result<Server> {
        match server.process {
            Some(process) => self.start_in(process.stop(), house, &[]),
            None => Err(io::Error::other("a server elsewhere cannot be restarted")),
        }
    }

    fn start_in(&self, folder: TempDir, house: &House, flags: &[String]) -> io::Result<Server> {
        let Some(mut command) = self.command(folder.path())? else {
            let Kind::Elsewhere(address) = self.kind else {
                return Err(io::Error::other("it serves nobody"));
            };
            let token = house.token.clone().unwrap_or_else(token);
            return Ok(Server {
                process: None,
                door: Door {
                    address,
                    token,
                    prefix: format!("harness-{}-", unix().as_nanos()),
                },
            });
        };
        command.args(flags);
        let process = Process::start(command, folder, &house.cores)?;
        let door = Door {
            address: process.address,
            token: token(),
            prefix: String::new(),
        };
        Ok(Server {
            process: Some(process),
            door,
        })
    }

    /// What starts it; `None`: it runs elsewhere.
    fn command(&self, folder: &Path) -> io::Result<Option<Command>> {
        let command = match &self.kind {
            Kind::Elsewhere(_) => return Ok(None),
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
                command
            }
            Kind::Peer(name) => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["peer", name, "--port", "0"]);
                if name == "axum" {
                    command.arg("--log").arg(folder.join("log"));
                }
                command
            }
        };
        Ok(Some(command))
    }
}

fn token() -> String {
    let secret = Secret::new(SECRET.into()).expect("it is not empty");
    mint(&secret, "harness", unix().as_secs(), None)
}

fn unix() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("the clock is past 1970")
}
