//! Parses the command line. An error is one line that names what the user wrote and points to the
//! relevant help.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory, Error, FromArgMatches};

use super::{CommandLine, Given, environment};

/// The reason that no command is run.
#[derive(Debug)]
pub enum UsageError {
    /// The user asked for help or for the version.
    Help(Error),
    /// The command line is invalid. The text is one line that says why and what to do.
    Wrong(String),
}

/// Parses a command line, whose first word is the program's name, together with the variables of
/// this process.
pub fn read(arguments: &[OsString]) -> Result<CommandLine, UsageError> {
    let command = environment::readable(base());
    let matches = command.clone().try_get_matches_from(arguments);
    let read = matches.and_then(|matches| {
        let mut line = CommandLine::from_arg_matches(&matches)?;
        if let Some((_, matches)) = matches.subcommand() {
            line.command.set_given(&Given::of(matches));
        }
        Ok(line)
    });
    read.map_err(|error| {
        if error.use_stderr() {
            UsageError::Wrong(line(&error, &command, arguments))
        } else {
            // The unfiltered command is used so that the help lists every variable, even those that
            // are unset.
            UsageError::Help(
                base()
                    .try_get_matches_from(arguments)
                    .err()
                    .unwrap_or(error),
            )
        }
    })
}

/// Returns the clap command that describes the command line.
fn base() -> Command {
    fn with_signs(command: Command) -> Command {
        // Makes clap report `-1` as a wrong value of its flag, rather than as an unknown flag.
        let with_sign = |arg: Arg| {
            let takes_value = arg.get_action().takes_values();
            arg.allow_negative_numbers(takes_value)
        };
        command.mut_args(with_sign).mut_subcommands(with_signs)
    }
    with_signs(CommandLine::command())
}

fn line(error: &Error, command: &Command, arguments: &[OsString]) -> String {
    let (path, at) = addressed(command, arguments);
    let text = match error.kind() {
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let names: Vec<&str> = at.get_subcommands().map(Command::get_name).collect();
            format!(
                "error: a command is missing; use one of {}",
                names.join(", ")
            )
        }
        ErrorKind::InvalidUtf8 => not_utf8(at),
        _ => first_line(error, at, command, arguments),
    };
    format!("{text} (see `{path} --help`)")
}

/// Returns clap's message on one line, with clap's suggestion. If the value came from a variable,
/// the variable replaces the flag.
fn first_line(error: &Error, at: &Command, command: &Command, arguments: &[OsString]) -> String {
    let mut text = summary(error);
    if let Some(flag) = context(error, ContextKind::InvalidArg)
        && let Some(name) = variable_of(error, flag, at, command, arguments)
    {
        text = text.replace(&format!("'{flag}'"), &name);
    }
    match suggestion(error) {
        Some(suggestion) => format!("{text}; did you mean {suggestion}?"),
        None => text,
    }
}

/// Returns the first paragraph of clap's message as one line.
pub(super) fn summary(error: &Error) -> String {
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let lines: Vec<&str> = paragraph.lines().map(str::trim).collect();
    lines.join(" ")
}

fn suggestion(error: &Error) -> Option<String> {
    let text = error.render().to_string();
    let tips = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("tip: "));
    // clap's tip about values that begin with a dash is ignored, because no flag accepts such a
    // value.
    let mut suggestions = tips.filter_map(|tip| {
        let similar = tip
            .split_once("similar")
            .and_then(|(_, rest)| rest.split_once(": "));
        similar
            .map(|(_, names)| names)
            .or(tip.strip_suffix(" exists"))
    });
    suggestions.next().map(str::to_owned)
}

fn context(error: &Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    }
}

/// Returns the variable that a wrong value came from, or `None` if the value is on the command
/// line.
fn variable_of(
    error: &Error,
    flag: &str,
    at: &Command,
    command: &Command,
    arguments: &[OsString],
) -> Option<String> {
    let kinds = [ErrorKind::InvalidValue, ErrorKind::ValueValidation];
    if !kinds.contains(&error.kind()) {
        return None;
    }
    let long = flag.split([' ', '[']).next()?.strip_prefix("--")?;
    let variable = argument(at, long).and_then(environment::variable)?;
    // If the command line fails in the same way without variables, the variable is not the cause.
    let alone = without_variables(command.clone()).try_get_matches_from(arguments);
    let is_same = alone.is_err_and(|alone| {
        alone.kind() == error.kind() && context(&alone, ContextKind::InvalidArg) == Some(flag)
    });
    (!is_same).then_some(variable)
}

fn without_variables(command: Command) -> Command {
    let without = |arg: Arg| arg.env(clap::builder::Resettable::Reset);
    command.mut_args(without).mut_subcommands(without_variables)
}

fn argument<'a>(command: &'a Command, long: &str) -> Option<&'a Arg> {
    command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(long))
}

/// Returns the command that the arguments name, and the words that lead to it.
fn addressed<'a>(command: &'a Command, arguments: &[OsString]) -> (String, &'a Command) {
    let (mut path, mut at) = (command.get_name().to_owned(), command);
    let mut globals: Vec<&Arg> = Vec::new();
    let mut words = arguments.iter().skip(1).filter_map(|word| word.to_str());
    while let Some(word) = words.next() {
        globals.extend(at.get_arguments().filter(|arg| arg.is_global_set()));
        if let Some(long) = word.strip_prefix("--") {
            let global = globals
                .iter()
                .copied()
                .find(|arg| arg.get_long() == Some(long));
            let takes_next = argument(at, long).or(global);
            if takes_next.is_some_and(|arg| arg.get_action().takes_values()) {
                words.next();
            }
        } else if let Some(found) = at.find_subcommand(word) {
            at = found;
            path = format!("{path} {word}");
        }
    }
    (path, at)
}

fn not_utf8(command: &Command) -> String {
    let variables = command.get_arguments().filter_map(environment::variable);
    let mut bad = variables.filter(|name| {
        let is_path = name.ends_with("_DIR") || name.ends_with("_FILE");
        !is_path && environment::value(name).is_some_and(|value| value.to_str().is_none())
    });
    match bad.next() {
        Some(name) => format!("error: the value of {name} is not UTF-8"),
        None => "error: an argument is not UTF-8".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(arguments: &[&str]) -> String {
        let line = ["etherply"].iter().chain(arguments).map(OsString::from);
        match read(&line.collect::<Vec<_>>()) {
            Err(UsageError::Wrong(line)) => line,
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    #[test]
    fn a_usage_error_points_to_the_help_of_its_command() {
        for (arguments, help) in [
            (&["--bad"][..], "`etherply --help`"),
            (&["serve", "--bad"], "`etherply serve --help`"),
            (
                &["serve", "--data-dir", "token", "--bad"],
                "`etherply serve --help`",
            ),
            (
                &["serve", "--data-dir=x", "--bad"],
                "`etherply serve --help`",
            ),
            (&["log", "--bad"], "`etherply log --help`"),
            (
                &["log", "--data-dir", "stat", "verify", "--bad"],
                "`etherply log verify --help`",
            ),
            (
                &["log", "verify", "--data-dir", "stat", "--bad"],
                "`etherply log verify --help`",
            ),
        ] {
            let line = wrong(arguments);
            assert!(line.contains("'--bad'") && line.contains(help), "{line}");
        }
    }

    #[test]
    fn suggestions_from_clap_are_kept() {
        for (arguments, suggestion) in [
            (&["serve", "--prot", "1"][..], "did you mean '--port'?"),
            (&["sreve"], "did you mean 'serve'?"),
            (&["serve", "--log-format", "jsn"], "did you mean 'json'?"),
        ] {
            let line = wrong(arguments);
            assert!(line.contains(suggestion), "{line}");
        }
        let none = wrong(&["serve", "--frobnicate"]);
        assert!(!none.contains("did you mean"), "{none}");
    }
}
