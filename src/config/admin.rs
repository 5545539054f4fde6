//! The addresses at which the server exposes its metrics, its health checks and its console.

use std::net::{IpAddr, SocketAddr};

use clap::{ArgAction, Args};

use super::value;

/// The settings of the admin port and of the metrics, as given.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// A separate port for /metrics, /healthz, /readyz and the console (--console); 0 picks a free
    /// one. --port then serves neither /metrics nor the console [default: none]
    #[arg(
        long,
        value_name = "PORT",
        env = "ETHERPLY_ADMIN_PORT",
        hide_env_values = true,
        value_parser = value::port
    )]
    pub admin_port: Option<u16>,

    /// The address to listen on for --admin-port: anyone who can reach it can read the metrics. If
    /// it is a loopback address, requests must also have a loopback Host, such as localhost
    /// [default: 127.0.0.1]
    #[arg(
        long,
        value_name = "IP",
        env = "ETHERPLY_ADMIN_HOST",
        hide_env_values = true,
        value_parser = value::ip,
        requires = "admin_port"
    )]
    pub admin_host: Option<IpAddr>,

    /// Without --admin-port: serve /metrics to everyone, not only to this machine
    #[arg(
        long,
        env = "ETHERPLY_METRICS_PUBLIC",
        hide_env_values = true,
        action = ArgAction::SetTrue,
        value_parser = value::boolean
    )]
    pub metrics_public: bool,
}

impl AdminArgs {
    /// Returns the address of the admin port, if there is one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        let host = self.admin_host;
        let host = host.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        self.admin_port.map(|port| SocketAddr::new(host, port))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::config::usage::summary;
    use crate::config::{Command, CommandLine};

    fn address(flags: &[&str]) -> Result<String, String> {
        let line = ["etherply", "serve"].iter().chain(flags);
        let line = CommandLine::try_parse_from(line).map_err(|error| summary(&error))?;
        let Command::Serve(serve) = line.command else {
            unreachable!("the command is serve");
        };
        let address = serve.admin_address().map_err(|error| error.to_string())?;
        Ok(address.map_or_else(String::new, |address| address.to_string()))
    }

    #[test]
    fn the_default_address_is_loopback() {
        let port = "--admin-port=9090";
        for (flags, expected) in [
            (&[][..], Ok("")),
            (&[port], Ok("127.0.0.1:9090")),
            (&[port, "--admin-host=::"], Ok("[::]:9090")),
            (&["--dev", port], Ok("127.0.0.1:9090")),
            (
                &["--dev", port, "--admin-host=::"],
                Err("--admin-host is ::"),
            ),
            (&["--admin-host=::1"], Err("--admin-port <PORT>")),
        ] {
            match (address(flags), expected) {
                (Ok(address), Ok(expected)) => assert_eq!(address, expected, "{flags:?}"),
                (Err(line), Err(words)) => assert!(line.contains(words), "{line}"),
                (outcome, _) => panic!("{flags:?}: {outcome:?}"),
            }
        }
    }
}
