//! The node's settings as flags, made from the table of settings.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use crate::config::{Config, ConfigError, Flag, Flags, SETTINGS};

/// Settings given on the command line.
#[derive(Debug, Default)]
pub(super) struct Settings {
    flags: Flags,
    file: Option<PathBuf>,
}

impl Settings {
    /// The whole configuration.
    pub(super) fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.flags, self.file.as_deref())
    }
}

impl clap::Args for Settings {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Configuration file [default: tarn.toml, if it is there]");
        let flags = SETTINGS.iter().filter(|setting| setting.flag != Flag::Secret).map(|setting| {
            let default =
                if setting.default.is_empty() { String::new() } else { format!(" [default: {}]", setting.default) };
            let arg = Arg::new(setting.key)
                .long(setting.flag_name())
                .help(format!("{} [env: {}]{default}", setting.help, setting.env[0]));
            match setting.flag {
                Flag::Switch => arg.action(ArgAction::SetTrue),
                Flag::Value | Flag::Secret => arg.value_name("VALUE"),
            }
        });
        command.arg(file).args(flags)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut settings = Self::default();
        settings.update_from_arg_matches(matches)?;
        Ok(settings)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.file = matches.get_one::<PathBuf>("config").cloned();
        for setting in SETTINGS {
            let text = match setting.flag {
                Flag::Secret => None,
                Flag::Switch => matches.get_flag(setting.key).then(|| "true".to_owned()),
                Flag::Value => matches.get_one::<String>(setting.key).cloned(),
            };
            if let Some(text) = text {
                self.flags.insert(setting.key, text);
            }
        }
        Ok(())
    }
}
