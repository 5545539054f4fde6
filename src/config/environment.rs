//! Distinguishes variables that are settings from those that merely look like settings.
//!
//! Kubernetes describes every Service in a namespace to every pod there through variables that
//! begin with the Service's name (`enableServiceLinks`, on by default). For a Service named
//! `etherply` or `etherply-admin`, these have the same prefix as the server's own variables, and
//! `ETHERPLY_PORT` is then a URL.

use std::ffi::{OsStr, OsString};

use clap::builder::Resettable;
use clap::{Arg, Command};

/// The variable that holds the secret. It has no flag, because the command line of a process is
/// public.
pub(super) const SECRET: &str = "ETHERPLY_JWT_SECRET";
/// The variable that holds the previous secret. It has no flag either.
pub(super) const SECRET_PREVIOUS: &str = "ETHERPLY_JWT_SECRET_PREVIOUS";
const PREFIX: &str = "ETHERPLY_";
/// The prefix of variables with which tests inject faults. Only debug builds read them.
const FAULT_PREFIX: &str = "ETHERPLY_FAULT_";
/// The minimum similarity at which a name is suggested.
const SIMILARITY_MIN: f64 = 0.6;

/// A variable that has the server's prefix but is not one of its variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The name of the variable.
    pub name: String,
    /// The most similar name among the server's variables.
    pub nearest: Option<String>,
}

/// The variables of this process that have the prefix of the settings but are not settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Others {
    /// Variables that are not read.
    pub unknown: Vec<Unknown>,
    /// Variables that describe a Kubernetes Service.
    pub service_links: Vec<String>,
}

/// Returns the value of a variable of this process. An empty variable counts as unset, and so does
/// a service link.
#[must_use]
pub fn value(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty() && !is_service_link(name, value))
}

/// Returns the value of `PORT`, the variable in which hosting platforms pass the port to listen on.
#[must_use]
pub fn platform_port() -> Option<OsString> {
    value("PORT")
}

/// Returns the variables that look like settings of `command` or its subcommands but are not,
/// sorted by name.
pub(super) fn others(command: &Command) -> Others {
    others_of(&known(command), std::env::vars_os())
}

/// Removes variables that count as unset from a command and its subcommands.
pub(super) fn readable(command: Command) -> Command {
    let readable_arg = |arg: Arg| match variable(&arg) {
        Some(name) if value(&name).is_none() => arg.env(Resettable::Reset),
        _ => arg,
    };
    command.mut_args(readable_arg).mut_subcommands(readable)
}

/// Returns the name of an argument's variable.
pub(super) fn variable(arg: &Arg) -> Option<String> {
    arg.get_env()
        .map(|name| name.to_string_lossy().into_owned())
}

fn others_of(known: &[String], variables: impl Iterator<Item = (OsString, OsString)>) -> Others {
    let mut others = Others::default();
    let mut found: Vec<(String, OsString)> = variables
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    found.sort();
    for (name, value) in found {
        let is_fault = cfg!(debug_assertions) && name.starts_with(FAULT_PREFIX);
        if is_service_link(&name, &value) {
            others.service_links.push(name);
        } else if !is_fault && !known.contains(&name) {
            let nearest = nearest(&name, known);
            others.unknown.push(Unknown { name, nearest });
        }
    }
    others
}

/// Returns the names of all variables of a command and its subcommands.
fn known(command: &Command) -> Vec<String> {
    let mut names = [SECRET, SECRET_PREVIOUS].map(str::to_owned).to_vec();
    let mut commands = vec![command];
    while let Some(command) = commands.pop() {
        names.extend(command.get_arguments().filter_map(variable));
        commands.extend(command.get_subcommands());
    }
    names
}

fn nearest(name: &str, known: &[String]) -> Option<String> {
    let without_prefix = |name: &str| name[PREFIX.len()..].to_ascii_uppercase();
    let wanted = without_prefix(name);
    let rated = known.iter().map(|known| {
        let similarity = strsim::normalized_damerau_levenshtein(&wanted, &without_prefix(known));
        (similarity, known)
    });
    let best = rated.max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .map(|(_, known)| known.clone())
}

/// Returns whether this variable was set by Kubernetes, or by a Docker link, to describe a Service.
///
/// The names are `…_SERVICE_HOST`, `…_SERVICE_PORT`, `…_SERVICE_PORT_NAME`,
/// `…_PORT=tcp://10.0.0.1:8080`, `…_PORT_8080_TCP`, and the last of these followed by `_ADDR`,
/// `_PORT` or `_PROTO`.
fn is_service_link(name: &str, value: &OsStr) -> bool {
    const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
    let is_url = || {
        let value = value.as_encoded_bytes();
        PROTOCOLS.iter().any(|protocol| {
            let scheme = format!("{}://", protocol.to_ascii_lowercase());
            value.starts_with(scheme.as_bytes())
        })
    };
    let is_of_port = |rest: &str| {
        let mut words = rest.split('_');
        let number = words.next().unwrap_or_default();
        let protocol = words.next().unwrap_or_default();
        let is_part = |word| ["ADDR", "PORT", "PROTO"].contains(&word);
        number.parse::<u16>().is_ok()
            && PROTOCOLS.contains(&protocol)
            && words.next().is_none_or(is_part)
            && words.next().is_none()
    };
    let Some(rest) = name.strip_prefix("ETHERPLY") else {
        return false;
    };
    rest.ends_with("_SERVICE_HOST")
        || rest.ends_with("_SERVICE_PORT")
        || rest.contains("_SERVICE_PORT_")
        || rest.ends_with("_PORT") && is_url()
        || rest
            .rmatch_indices("_PORT_")
            .any(|(at, found)| is_of_port(&rest[at + found.len()..]))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::CommandLine;

    fn known() -> Vec<String> {
        super::known(&CommandLine::command())
    }

    #[test]
    fn service_links_are_distinguished_from_settings() {
        for (name, value, expected) in [
            ("ETHERPLY_PORT", "tcp://10.96.12.7:8080", true),
            ("ETHERPLY_PORT", "udp://[fd00::1]:8080", true),
            ("ETHERPLY_PORT", "sctp://10.96.12.7:8080", true),
            ("ETHERPLY_ADMIN_PORT", "tcp://10.96.12.7:9090", true),
            ("ETHERPLY_PORT", "8080", false),
            ("ETHERPLY_PORT", "http://10.96.12.7:8080", false),
            ("ETHERPLY_HOST", "tcp://10.96.12.7", false),
            ("ETHERPLY_SERVICE_HOST", "10.96.12.7", true),
            ("ETHERPLY_SERVICE_PORT", "8080", true),
            ("ETHERPLY_SERVICE_PORT_WS", "8080", true),
            ("ETHERPLY_BLUE_SERVICE_PORT", "8080", true),
            ("ETHERPLY_PORT_8080_TCP", "tcp://10.96.12.7:8080", true),
            ("ETHERPLY_PORT_8080_TCP_ADDR", "10.96.12.7", true),
            ("ETHERPLY_PORT_8080_UDP_PORT", "8080", true),
            ("ETHERPLY_PORT_8080_TCP_PROTO", "tcp", true),
            ("ETHERPLY_X_PORT_8080_TCP_PROTO", "tcp", true),
            ("ETHERPLY_PORT_8080_TCP_ADDR_X", "10.96.12.7", false),
            ("ETHERPLY_PORT_8080_HTTP", "x", false),
            ("ETHERPLY_PORT_WS", "x", false),
            ("PORT", "tcp://10.96.12.7:8080", false),
        ] {
            assert_eq!(
                is_service_link(name, OsStr::new(value)),
                expected,
                "{name}={value}"
            );
        }
    }

    #[test]
    fn unknown_variables_and_service_links_are_found() {
        let variables = [
            ("ETHERPLY_SHRADS", "2"),
            ("ETHERPLY_PORT", "tcp://10.96.12.7:8080"),
            ("ETHERPLY_SHARDS", "2"),
            ("ETHERPLY_JWT_SECRET_PREVIOUS", "x"),
            ("ETHERPLY_FAULT_PANIC_KEY", "x"),
            ("ETHERPLYX", "x"),
            ("ETHERPLY_", "x"),
            ("HOME", "/"),
        ];
        let variables = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        let found = others_of(&known(), variables);
        let unknown = |name: &str, nearest: Option<&str>| Unknown {
            name: name.to_owned(),
            nearest: nearest.map(str::to_owned),
        };
        let expected = [
            unknown("ETHERPLY_", None),
            unknown("ETHERPLY_SHRADS", Some("ETHERPLY_SHARDS")),
        ];
        assert_eq!(found.unknown, expected);
        assert_eq!(found.service_links, ["ETHERPLY_PORT"]);
    }

    #[test]
    fn the_nearest_name_to_a_known_variable_is_itself() {
        let known = known();
        assert!(known.len() > 25, "{known:?}");
        for name in &known {
            assert_eq!(nearest(name, &known).as_ref(), Some(name));
        }
        assert_eq!(nearest("ETHERPLY_FLAVOUR", &known), None);
    }
}
