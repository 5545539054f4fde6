//! Parses the command line and the environment into validated settings.
//!
//! Every flag of `serve` can also be set by an environment variable: `ETHERPLY_` and the flag's
//! name. Secrets come from the environment or from a file, never from a flag, because the command
//! line of a process is public.
//!
//! The doc comments on settings are also their help texts, so they do not end with a full stop.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::limits::{
    DRAIN_MS_DEFAULT, MESSAGE_BYTES_DEFAULT, OUTBOX_BYTES_DEFAULT, PING_INTERVAL_MS_DEFAULT,
    SHARDS_MAX,
};
use crate::log::commit::Durability;
use crate::wire::auth::Secret;

pub mod admin;
pub mod cli_docs;
pub mod doctor;
pub mod environment;
mod given;
pub mod limits;
pub mod log;
mod origin;
pub mod presence;
mod secrets;
pub mod usage;
mod value;

pub use given::Given;
pub use secrets::{SecretError, SecretSources, Secrets};

/// A sync server: each workspace is a small shared state, and its clients see every change live.
#[derive(Debug, Parser)]
#[command(name = "etherply", version, hide_possible_values = false)]
pub struct CommandLine {
    #[expect(missing_docs, reason = "a doc comment would show up in the help")]
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of the program, with their settings.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server
    Serve(Box<ServeArgs>),
    /// Print a token that lets its bearer read and write every workspace
    Token(TokenArgs),
    /// Inspect, check and repair the log
    Log(log::LogArgs),
    /// Check this host and print what to change; exit 1 if the server would not work here
    Doctor(doctor::DoctorArgs),
    /// Print shell completions
    Completions(cli_docs::CompletionsArgs),
    /// Write the manual pages, one for each command
    Manual(cli_docs::ManualArgs),
}

/// The settings of the server, as given.
#[derive(Debug, Args)]
#[command(after_help = SERVE_HELP)]
pub struct ServeArgs {
    /// The address to listen on [default: 0.0.0.0, or 127.0.0.1 with --dev]
    #[arg(
        long,
        value_name = "IP",
        env = "ETHERPLY_HOST",
        hide_env_values = true,
        value_parser = value::ip
    )]
    pub host: Option<IpAddr>,

    /// The port to listen on; 0 picks a free one. Falls back to the variable PORT [default: 8080]
    #[arg(
        long,
        value_name = "PORT",
        env = "ETHERPLY_PORT",
        hide_env_values = true,
        value_parser = value::port
    )]
    pub port: Option<u16>,

    /// The number of event loops; each serves a share of the workspaces [default: one per core]
    #[arg(
        long,
        value_name = "N",
        env = "ETHERPLY_SHARDS",
        hide_env_values = true,
        value_parser = value::shards
    )]
    pub shards: Option<u32>,

    /// Do not pin each event loop to a core
    #[arg(
        long,
        env = "ETHERPLY_NO_PIN",
        hide_env_values = true,
        action = ArgAction::SetTrue,
        value_parser = value::boolean
    )]
    pub no_pin: bool,

    /// The ring that each event loop runs on
    #[arg(
        long,
        value_name = "KIND",
        env = "ETHERPLY_RING",
        hide_env_values = true,
        value_enum,
        default_value = "auto"
    )]
    pub ring: RingChoice,

    /// The folder for the log; created if missing
    #[arg(
        long,
        value_name = "DIR",
        env = "ETHERPLY_DATA_DIR",
        hide_env_values = true,
        default_value = "./etherply-data"
    )]
    pub data_dir: PathBuf,

    /// When ops are written to disk: `always` before any other client receives them, `interval` on
    /// a timer, `none` whenever the kernel decides
    #[arg(
        long,
        value_name = "MODE",
        env = "ETHERPLY_DURABILITY",
        hide_env_values = true,
        value_enum,
        default_value = "always"
    )]
    pub durability: DurabilityMode,

    /// Milliseconds between syncs with `--durability interval`
    #[arg(
        long,
        value_name = "MS",
        env = "ETHERPLY_SYNC_INTERVAL_MS",
        hide_env_values = true,
        default_value = "1000",
        value_parser = value::interval_ms
    )]
    pub sync_interval_ms: u64,

    /// Milliseconds between pings; a client that sends nothing for two and a half intervals is
    /// disconnected
    #[arg(
        long,
        value_name = "MS",
        env = "ETHERPLY_PING_INTERVAL_MS",
        hide_env_values = true,
        default_value_t = PING_INTERVAL_MS_DEFAULT,
        value_parser = value::interval_ms
    )]
    pub ping_interval_ms: u64,

    /// The number of bytes that may be queued for a client; beyond that, it receives only the
    /// latest op of each key
    #[arg(
        long,
        value_name = "BYTES",
        env = "ETHERPLY_OUTBOX_MAX_BYTES",
        hide_env_values = true,
        default_value_t = OUTBOX_BYTES_DEFAULT,
        value_parser = value::outbox_bytes
    )]
    pub outbox_max_bytes: usize,

    /// The maximum size of a message; a larger one closes the connection with 1009
    #[arg(
        long,
        value_name = "BYTES",
        env = "ETHERPLY_MAX_MESSAGE_BYTES",
        hide_env_values = true,
        default_value_t = MESSAGE_BYTES_DEFAULT,
        value_parser = value::message_bytes
    )]
    pub max_message_bytes: usize,

    /// The maximum number of connections; any more are refused with 503 [default: as many as the
    /// limit on open files allows]
    #[arg(
        long,
        value_name = "N",
        env = "ETHERPLY_MAX_CONNECTIONS",
        hide_env_values = true,
        value_parser = value::connections
    )]
    pub max_connections: Option<usize>,

    #[expect(missing_docs, reason = "a doc comment would show up in the help")]
    #[command(flatten)]
    pub limits: limits::LimitArgs,

    #[expect(missing_docs, reason = "a doc comment would show up in the help")]
    #[command(flatten)]
    pub presence: presence::PresenceArgs,

    /// How far ahead of the server's clock an op's timestamp may be
    #[arg(
        long,
        value_name = "TIME",
        env = "ETHERPLY_MAX_FUTURE_SKEW",
        hide_env_values = true,
        default_value = "24h",
        value_parser = value::duration,
        allow_hyphen_values = true
    )]
    pub max_future_skew: Duration,

    /// How long a deleted key is remembered; within this time, a client that was away can resume
    /// and is sent the deletes that it missed
    #[arg(
        long,
        value_name = "TIME",
        env = "ETHERPLY_TOMBSTONE_RETENTION",
        hide_env_values = true,
        default_value = "7d",
        value_parser = value::retention,
        allow_hyphen_values = true
    )]
    pub tombstone_retention: Duration,

    /// Milliseconds over which connections are closed on SIGTERM or SIGINT
    #[arg(
        long,
        value_name = "MS",
        env = "ETHERPLY_DRAIN_MS",
        hide_env_values = true,
        default_value_t = DRAIN_MS_DEFAULT,
        value_parser = value::drain_ms
    )]
    pub drain_ms: u64,

    /// A file with the secret that signs tokens
    #[arg(
        long,
        value_name = "FILE",
        env = "ETHERPLY_JWT_SECRET_FILE",
        hide_env_values = true
    )]
    pub jwt_secret_file: Option<PathBuf>,

    /// A file with the previous secret, which is still accepted; the file may be missing
    #[arg(
        long,
        value_name = "FILE",
        env = "ETHERPLY_JWT_SECRET_PREVIOUS_FILE",
        hide_env_values = true
    )]
    pub jwt_secret_previous_file: Option<PathBuf>,

    /// An origin whose pages may connect and read, such as <https://app.example>; may be repeated
    /// [default: all]
    #[arg(
        long = "allow-origin",
        value_name = "ORIGIN",
        env = "ETHERPLY_ALLOW_ORIGIN",
        hide_env_values = true,
        value_delimiter = ',',
        value_parser = origin::origin
    )]
    pub allow_origins: Vec<String>,

    /// Serve the console, a page that shows workspaces and server statistics, at /; only to this
    /// machine unless it is on --admin-port
    #[arg(
        long,
        env = "ETHERPLY_CONSOLE",
        hide_env_values = true,
        action = ArgAction::SetTrue,
        value_parser = value::boolean
    )]
    pub console: bool,

    #[expect(missing_docs, reason = "a doc comment would show up in the help")]
    #[command(flatten)]
    pub admin: admin::AdminArgs,

    /// The level of the log messages on stderr; debug adds a line for each connection opened or
    /// closed, trace one for each batch written to the log
    #[arg(
        long,
        value_name = "LEVEL",
        env = "ETHERPLY_LOG_LEVEL",
        hide_env_values = true,
        value_enum,
        default_value = "info"
    )]
    pub log_level: LogLevel,

    /// The format of the log messages on stderr; json prints one flat object per line
    #[arg(
        long,
        value_name = "FORMAT",
        env = "ETHERPLY_LOG_FORMAT",
        hide_env_values = true,
        value_enum,
        default_value = "text"
    )]
    pub log_format: LogFormat,

    /// Try out the server: listen on loopback only, serve the console, print a ready-to-use URL
    /// and, unless a secret is set, generate one and keep it in the data directory (dev-secret)
    #[arg(
        long,
        env = "ETHERPLY_DEV",
        hide_env_values = true,
        action = ArgAction::SetTrue,
        value_parser = value::boolean
    )]
    pub dev: bool,

    /// A record of the settings that came from variables.
    #[arg(skip)]
    pub given: Given,
}

const SERVE_HELP: &str = "Secrets:
  ETHERPLY_JWT_SECRET           signs tokens (HS256); or --jwt-secret-file
  ETHERPLY_JWT_SECRET_PREVIOUS  the previous secret, still accepted; or --jwt-secret-previous-file
A secret should have at least 32 random bytes, for example: openssl rand -hex 32
A line break at the end is not part of the secret. On SIGHUP, the server rereads the files.

Variables:
  An empty variable counts as unset. For a flag without a value, set the variable to 1, true or yes,
  or to 0, false or no. Unknown variables that begin with ETHERPLY_ cause a warning; those that
  Kubernetes sets for a Service (ETHERPLY_PORT=tcp://...) are ignored.

Sockets:
  If a service manager passes a listening socket (LISTEN_FDS and LISTEN_PID, as a systemd .socket
  unit does), the server uses it; leave out --host and --port in that case.";

/// The settings of `etherply token`.
#[derive(Debug, Args)]
#[command(after_help = "\
The secret comes from ETHERPLY_JWT_SECRET or --jwt-secret-file, as for `etherply serve`.")]
pub struct TokenArgs {
    /// The user that the token is for
    #[arg(long, value_name = "NAME")]
    pub sub: String,

    /// How long the token is valid
    #[arg(
        long,
        value_name = "TIME",
        default_value = "24h",
        value_parser = value::ttl,
        allow_hyphen_values = true
    )]
    pub ttl: Duration,

    /// A file with the secret that signs tokens
    #[arg(
        long,
        value_name = "FILE",
        env = "ETHERPLY_JWT_SECRET_FILE",
        hide_env_values = true
    )]
    pub jwt_secret_file: Option<PathBuf>,

    /// A record of the settings that came from variables.
    #[arg(skip)]
    pub given: Given,
}

/// When an op is written to disk, and when other clients may receive it.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DurabilityMode {
    /// Other clients receive ops once they are on disk.
    Always,
    /// Other clients receive ops at once; the log is synced on a timer.
    Interval,
    /// Other clients receive ops at once; the kernel decides when to write them to disk.
    None,
}

/// The ring that an event loop runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RingChoice {
    /// The native ring if the kernel supports it.
    Auto,
    /// The ring that takes the least CPU time; needs Linux 6.1.
    Native,
    /// The ring for older kernels.
    Compat,
}

/// The level of the messages on stderr.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[expect(missing_docs, reason = "the names are self-explanatory")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// The format of the messages on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text per message.
    Text,
    /// One JSON object per message.
    Json,
}

/// Errors in the settings that prevent the server from starting.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no usable secret for signing tokens.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// `--dev` was used with an address that other machines can reach.
    #[error("--dev listens on loopback only, but {0} is {1}: leave out one of them")]
    DevHost(String, IpAddr),
    /// The variable PORT does not hold a port number.
    #[error("invalid value '{0}' for the variable PORT: must be a whole number from 0 to 65535")]
    Port(String),
}

/// Returns the variables of this process that look like settings but are not, sorted by name.
#[must_use]
pub fn other_variables() -> environment::Others {
    environment::others(&CommandLine::command())
}

impl Command {
    /// Records which settings came from variables.
    fn set_given(&mut self, given: &Given) {
        match self {
            Self::Serve(serve) => serve.given.clone_from(given),
            Self::Token(token) => token.given.clone_from(given),
            Self::Log(_) | Self::Doctor(_) | Self::Completions(_) | Self::Manual(_) => {}
        }
    }
}

impl ServeArgs {
    /// Returns the address to listen on.
    pub fn host(&self) -> Result<IpAddr, ConfigError> {
        match (self.dev, self.host) {
            (true, Some(host)) if !host.is_loopback() => {
                Err(ConfigError::DevHost(self.given.name("--host"), host))
            }
            (_, Some(host)) => Ok(host),
            (true, None) => Ok(IpAddr::from([127, 0, 0, 1])),
            (false, None) => Ok(IpAddr::from([0, 0, 0, 0])),
        }
    }

    /// Returns the address of the admin port, if there is one.
    pub fn admin_address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        match self.admin.address() {
            Some(address) if self.dev && !address.ip().is_loopback() => {
                let name = self.given.name("--admin-host");
                Err(ConfigError::DevHost(name, address.ip()))
            }
            address => Ok(address),
        }
    }

    /// Returns the port to listen on. `fallback` is the value of the variable `PORT`.
    pub fn port(&self, fallback: Option<OsString>) -> Result<u16, ConfigError> {
        chosen_port(self.port, fallback)
    }

    /// Returns the name of the setting that the port came from, for use in messages. `fallback` is
    /// the value of the variable `PORT`.
    #[must_use]
    pub fn port_name(&self, fallback: Option<&OsStr>) -> String {
        match (self.port, fallback) {
            (None, Some(_)) => "PORT".to_owned(),
            (Some(_), _) | (None, None) => self.given.name("--port"),
        }
    }

    /// Returns the number of shards, by default one per core.
    #[must_use]
    pub fn shards(&self, cores: Option<NonZeroUsize>) -> u32 {
        chosen_shards(self.shards, cores)
    }

    /// Returns the sources of the secrets. With `--dev`, a secret is generated if there is none.
    #[must_use]
    pub fn secret_sources(&self) -> SecretSources<'_> {
        SecretSources {
            current: self.jwt_secret_file.as_deref(),
            previous: self.jwt_secret_previous_file.as_deref(),
            may_be_generated: self.dev,
            given: &self.given,
        }
    }
}

impl doctor::DoctorArgs {
    /// Returns the address that the server would listen on. `fallback` is the value of the variable
    /// `PORT`.
    pub fn address(&self, fallback: Option<OsString>) -> Result<SocketAddr, ConfigError> {
        let host = self.host.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        Ok(SocketAddr::new(host, chosen_port(self.port, fallback)?))
    }

    /// Returns the number of shards that the server would use, by default one per core.
    #[must_use]
    pub fn shards(&self, cores: Option<NonZeroUsize>) -> u32 {
        chosen_shards(self.shards, cores)
    }
}

impl TokenArgs {
    /// Returns the secret that signs the token.
    pub fn secret(&self) -> Result<Secret, SecretError> {
        secrets::signing(self.jwt_secret_file.as_deref(), &self.given)
    }
}

impl From<DurabilityMode> for Durability {
    fn from(mode: DurabilityMode) -> Self {
        match mode {
            DurabilityMode::Always => Self::Always,
            DurabilityMode::Interval => Self::Interval,
            DurabilityMode::None => Self::None,
        }
    }
}

fn chosen_port(port: Option<u16>, fallback: Option<OsString>) -> Result<u16, ConfigError> {
    match (port, fallback) {
        (Some(port), _) => Ok(port),
        (None, None) => Ok(8080),
        (None, Some(text)) => {
            let text = text.to_string_lossy();
            text.parse()
                .map_err(|_| ConfigError::Port(text.into_owned()))
        }
    }
}

fn chosen_shards(shards: Option<u32>, cores: Option<NonZeroUsize>) -> u32 {
    let cores = cores.map_or(1, NonZeroUsize::get);
    shards.unwrap_or_else(|| u32::try_from(cores).unwrap_or(SHARDS_MAX).min(SHARDS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(arguments: &[&str]) -> Result<ServeArgs, String> {
        let line = ["etherply", "serve"].iter().chain(arguments);
        match CommandLine::try_parse_from(line)
            .map_err(|error| usage::summary(&error))?
            .command
        {
            Command::Serve(serve) => Ok(*serve),
            _ => unreachable!("the command is serve"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_wrong_value_is_reported_in_one_line_that_names_the_flag() {
        for (flag, value, expected) in [
            ("--port", "70000", "must be a whole number from 0 to 65535"),
            ("--shards", "0", "must be a whole number from 1 to"),
            ("--host", "example", "must be an IP address"),
            (
                "--durability",
                "never",
                "possible values: always, interval, none",
            ),
            (
                "--max-message-bytes",
                "1MiB",
                "must be a whole number from 64",
            ),
            (
                "--outbox-max-bytes",
                "1",
                "must be a whole number from 4096",
            ),
            ("--max-future-skew", "soon", "must be a duration such as"),
            (
                "--tombstone-retention",
                "0s",
                "must be a duration from 1s to",
            ),
            ("--ping-interval-ms", "-5", "must be a whole number from 10"),
            ("--log-level", "loud", "possible values: error"),
        ] {
            let error = serve(&[&format!("{flag}={value}")]).unwrap_err();
            assert!(!error.contains('\n'), "{error}");
            for part in [flag, value, expected] {
                assert!(
                    error.contains(part),
                    "the error does not name {part}: {error}"
                );
            }
        }
    }

    #[test]
    fn origins() {
        let several = serve(&[
            "--allow-origin",
            "http://a,http://b",
            "--allow-origin",
            "http://c",
        ]);
        assert_eq!(
            several.unwrap().allow_origins,
            ["http://a", "http://b", "http://c"]
        );
    }

    #[test]
    fn dev_listens_on_loopback() {
        assert_eq!(serve(&[]).unwrap().host().unwrap().to_string(), "0.0.0.0");
        assert_eq!(
            serve(&["--dev"]).unwrap().host().unwrap().to_string(),
            "127.0.0.1"
        );
        assert_eq!(
            serve(&["--dev", "--host", "::1"])
                .unwrap()
                .host()
                .unwrap()
                .to_string(),
            "::1"
        );
        assert!(
            serve(&["--dev", "--host", "0.0.0.0"])
                .unwrap()
                .host()
                .is_err()
        );
    }

    #[test]
    fn the_port_comes_from_the_flag_then_from_the_platform() {
        assert_eq!(serve(&[]).unwrap().port(None).unwrap(), 8080);
        assert_eq!(serve(&[]).unwrap().port(Some("9000".into())).unwrap(), 9000);
        assert_eq!(
            serve(&["--port", "1"])
                .unwrap()
                .port(Some("9000".into()))
                .unwrap(),
            1
        );
        assert!(serve(&[]).unwrap().port(Some("http".into())).is_err());
    }
}
