//! A record of how each setting was given: by its flag or by its variable.

use clap::ArgMatches;
use clap::parser::ValueSource;

/// The settings that came from variables, recorded so that messages can name what the user set.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// The argument ids of these settings.
    from_variables: Vec<String>,
}

impl Given {
    /// Returns the name under which a setting was given: its variable if it was set by one,
    /// otherwise its flag.
    #[must_use]
    pub fn name(&self, flag: &'static str) -> String {
        let id = flag.trim_start_matches('-').replace('-', "_");
        if self.from_variables.contains(&id) {
            format!("ETHERPLY_{}", id.to_ascii_uppercase())
        } else {
            flag.to_owned()
        }
    }

    /// Determines from clap's matches how the settings of a command were given.
    pub(super) fn of(matches: &ArgMatches) -> Self {
        let ids = matches.ids().map(clap::Id::as_str);
        let from_variable = |id: &&str| matches.value_source(id) == Some(ValueSource::EnvVariable);
        Self {
            from_variables: ids.filter(from_variable).map(str::to_owned).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_named_the_way_it_was_set() {
        let given = Given {
            from_variables: vec!["admin_port".to_owned()],
        };
        assert_eq!(given.name("--admin-port"), "ETHERPLY_ADMIN_PORT");
        assert_eq!(given.name("--port"), "--port");
    }
}
