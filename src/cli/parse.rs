//! From the words of the command line to a command. Never panics, whatever the words are.

use super::commands::{COMMANDS, Command, Name};
use super::flags::{self, Default, FLAGS, Flag};
use super::typed::Typed;
use crate::error::{Error, Result};
use lexopt::Arg;
use std::ffi::OsString;

/// The first word of the commands for segments of this machine.
pub const SHM: &str = "shm";

/// What the command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// The general help.
    Help,
    /// The help of all `shm` commands.
    HelpShm,
    /// The help of one command.
    HelpOf(Name),
    /// The version.
    Version,
    /// A command.
    Run(Box<Typed>, Command),
}

fn usage(why: String) -> Error {
    Error::usage(why)
}

/// What the words stand for before their values are read.
#[derive(Default)]
struct Words {
    command: Option<Name>,
    /// `shm` was typed, and its second word not yet.
    in_shm: bool,
    operands: Vec<String>,
    /// Flags in the order they were typed, with their values.
    flags: Vec<(String, String)>,
}

/// Parses the words after the program's name.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Parsed> {
    let words = split(words)?;
    let has = |long: &str| words.flags.iter().any(|flag| flag.0 == long);
    if has("help") {
        return Ok(match words.command {
            Some(command) => Parsed::HelpOf(command),
            None if words.in_shm => Parsed::HelpShm,
            None => Parsed::Help,
        });
    }
    if has("version") {
        return Ok(Parsed::Version);
    }
    if words.in_shm {
        return Err(usage(format!("shm needs one of {}; see daoserver shm --help", shm_words())));
    }
    let command = words.command.unwrap_or(Name::Daemon);
    let mut typed = Typed::default();
    for flag in FLAGS.iter().filter(|flag| flag.accepted_by(command)) {
        if let Default::Value(text) = flag.default {
            set(flag, text, &mut typed)?;
        }
    }
    for (long, value) in &words.flags {
        let Some(flag) = flags::named(long).find(|flag| flag.accepted_by(command)) else {
            return Err(usage(format!("{0} does not take --{long}; see {0} --help", command.typed())));
        };
        set(flag, value, &mut typed)?;
    }
    typed.redis_named = has("redis-host") || has("redis-port");
    let command = Command::new(command, &words.operands, &typed)?;
    Ok(Parsed::Run(Box::new(typed), command))
}

fn set(flag: &Flag, value: &str, typed: &mut Typed) -> Result<()> {
    (flag.set)(typed, value).map_err(|why| usage(format!("--{} '{value}': {why}", flag.long)))
}

/// Tells flags, their values, the command and its operands apart.
fn split(words: impl IntoIterator<Item = OsString>) -> Result<Words> {
    let mut parser = lexopt::Parser::from_args(words);
    let mut found = Words::default();
    while let Some(arg) = parser.next().map_err(|why| usage(why.to_string()))? {
        let long = match arg {
            Arg::Value(word) => {
                found.on_word(utf8(word)?)?;
                continue;
            }
            Arg::Short('h') => "help".to_owned(),
            Arg::Short('V') => "version".to_owned(),
            Arg::Short(letter) => return Err(usage(format!("unknown flag -{letter}; see daoserver --help"))),
            Arg::Long(long) => long.to_owned(),
        };
        let value = if found.takes_value(&long)? {
            let missing = || usage(format!("--{long} needs a value; see daoserver --help"));
            match parser.optional_value() {
                Some(value) => utf8(value)?,
                // The next flag is no value; a negative number and `-` for standard input are.
                None => utf8(parser.value().map_err(|_| missing())?)
                    .and_then(|value| if value.starts_with("--") { Err(missing()) } else { Ok(value) })?,
            }
        } else if let Some(value) = parser.optional_value() {
            return Err(usage(format!("--{long} takes no value, not '{}'", value.to_string_lossy())));
        } else {
            String::new()
        };
        found.flags.push((long, value));
    }
    Ok(found)
}

impl Words {
    fn on_word(&mut self, word: String) -> Result<()> {
        if self.command.is_some() {
            self.operands.push(word);
            return Ok(());
        }
        if word == SHM && !self.in_shm {
            self.in_shm = true;
            return Ok(());
        }
        let typed = if self.in_shm { format!("{SHM} {word}") } else { word };
        match COMMANDS.iter().find(|row| !typed.is_empty() && row.words == typed) {
            Some(row) => {
                self.command = Some(row.name);
                self.in_shm = false;
                Ok(())
            }
            None => {
                let all = COMMANDS.iter().map(|row| row.words).filter(|words| !words.is_empty());
                let hint = hint(&typed, all, "");
                let help = if self.in_shm { "daoserver shm --help" } else { "daoserver --help" };
                Err(usage(format!("unknown command '{typed}'{hint}; see {help}")))
            }
        }
    }

    /// Does a flag of this name take a value? Where commands differ in that, the command must have come
    /// before.
    fn takes_value(&self, long: &str) -> Result<bool> {
        let own = self.command.and_then(|command| flags::named(long).find(|flag| flag.accepted_by(command)));
        if let Some(flag) = own {
            return Ok(flag.value.is_some());
        }
        let mut rows = flags::named(long).map(|flag| flag.value.is_some());
        match rows.next() {
            Some(first) if rows.all(|other| other == first) => Ok(first),
            Some(_) => match self.command {
                None => Err(usage(format!("--{long} must stand after its command"))),
                Some(command) => {
                    Err(usage(format!("{0} does not take --{long}; see {0} --help", command.typed())))
                }
            },
            None => {
                let hint = hint(long, FLAGS.iter().map(|flag| flag.long), "--");
                Err(usage(format!("unknown flag --{long}{hint}; see daoserver --help")))
            }
        }
    }
}

/// The second words of the `shm` commands.
fn shm_words() -> String {
    let seconds = COMMANDS.iter().filter_map(|row| row.words.strip_prefix(SHM));
    seconds.map(str::trim).collect::<Vec<_>>().join(", ")
}

fn utf8(word: OsString) -> Result<String> {
    word.into_string().map_err(|word| usage(format!("'{}' is no UTF-8 text", word.to_string_lossy())))
}

/// `, did you mean ...?` if one of `all` is near what was typed.
fn hint<'a>(typed: &str, all: impl Iterator<Item = &'a str>, dashes: &str) -> String {
    let nearest = all.map(|known| (distance(typed, known), known)).min();
    match nearest {
        Some((far, known)) if far <= 2.min(known.len() / 2) => format!(" (did you mean {dashes}{known}?)"),
        _ => String::new(),
    }
}

/// How many letters must be put in, left out or changed to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    // A word that is so long is no slip of a known one, and the table below would be large.
    if a.len() > 64 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in b.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ExitCode;
    use crate::settings::Settings;

    fn line(text: &str) -> Result<Parsed> {
        parse(text.split_whitespace().map(Into::into))
    }

    fn run(text: &str) -> (Box<Typed>, Command) {
        match line(text) {
            Ok(Parsed::Run(typed, command)) => (typed, command),
            other => panic!("{text}: {other:?}"),
        }
    }

    fn refused(text: &str) -> String {
        let why = line(text).unwrap_err();
        assert_eq!(why.exit_code(), ExitCode::Usage);
        assert!(!why.message.contains('\n'), "{why}");
        why.message
    }

    #[test]
    fn without_anything_it_is_the_daemon_with_the_defaults_of_the_table() {
        let (typed, command) = run("");
        assert_eq!(command, Command::Daemon);
        let settings = typed.settings(None).unwrap();
        // So the table and a program's `Settings::here()` have the same ones.
        assert_eq!(settings, Settings::named(&settings.hostname));
        let socket = format!("/tmp/.daoserver-{}.sock", settings.hostname);
        assert_eq!(settings.control_path().to_str(), Some(socket.as_str()));
    }

    #[test]
    fn flags_may_stand_before_between_and_after_operands() {
        let wanted = run("get a b --json --timeout 2 --redis-host r").1;
        assert_eq!(run("--redis-host r get --json a --timeout=2 b").1, wanted);
        assert_eq!(run("--json get --timeout 2 a b").1, wanted);
        assert_eq!(run("get --json --timeout 2 -- a b").1, wanted);
    }

    #[test]
    fn one_set_of_daemon_flags_can_be_given_to_every_command() {
        for command in COMMANDS {
            let operands = command.operands.iter().map(|_| "x").collect::<Vec<_>>().join(" ");
            let create = if command.name == Name::ShmCreate { "--shape 2 --dtype int8" } else { "" };
            run(&format!(
                "{} {operands} {create} --redis-host h --redis-port 1 --hostname n --shm-dir /d --control /c",
                command.words
            ));
        }
    }

    #[test]
    fn a_wrong_line_is_named_in_one_sentence() {
        assert_eq!(refused("--no-such-flag"), "unknown flag --no-such-flag; see daoserver --help");
        assert_eq!(
            refused("--redis-hots x"),
            "unknown flag --redis-hots (did you mean --redis-host?); see daoserver --help"
        );
        assert_eq!(refused("lst"), "unknown command 'lst' (did you mean list?); see daoserver --help");
        assert_eq!(
            refused("shm raed x"),
            "unknown command 'shm raed' (did you mean shm read?); see daoserver shm --help"
        );
        assert_eq!(refused("get a"), "get needs HOST SHM; see daoserver get --help");
        assert_eq!(refused("list a"), "list takes no operand, not 'a'; see daoserver list --help");
        assert_eq!(
            refused("release a b c"),
            "release takes HOST SHM, and 'c' is too much; see daoserver release --help"
        );
        assert_eq!(refused("list --ttl 3"), "daoserver list does not take --ttl; see daoserver list --help");
        assert_eq!(refused("--redis-port x"), "--redis-port 'x': it is no whole number from 1 to 65535");
        assert_eq!(refused("--redis-host --json"), "--redis-host needs a value; see daoserver --help");
        assert_eq!(refused("--redis-host"), "--redis-host needs a value; see daoserver --help");
        assert_eq!(refused("list --json=yes"), "--json takes no value, not 'yes'");
        assert_eq!(refused("-x"), "unknown flag -x; see daoserver --help");
        assert_eq!(refused("--raw f shm write a"), "--raw must stand after its command");
        assert!(refused("get ../a b").contains("host name"));
        assert!(refused("get a .b").contains("segment name"));
        assert!(refused("shm").starts_with("shm needs one of list, info, create"));
        assert!(refused("shm create a --dtype int8").contains("--shape"));
        assert!(refused("shm write a --raw f --fill 1").contains("exclude"));
    }

    #[test]
    fn negative_numbers_and_a_dash_are_values() {
        let Command::Shm(super::super::commands::Shm::Write(write)) = run("shm write a --fill -1.5").1 else {
            panic!("not shm write")
        };
        assert_eq!(write.source, super::super::commands::Source::Fill("-1.5".into()));
        run("shm write a --raw -");
        run("shm read a --raw");
    }

    #[test]
    fn help_and_version_win_over_missing_operands() {
        assert!(matches!(line("get --help"), Ok(Parsed::HelpOf(Name::Get))));
        assert!(matches!(line("shm -h"), Ok(Parsed::HelpShm)));
        assert!(matches!(line("-h"), Ok(Parsed::Help)));
        assert!(matches!(line("--version"), Ok(Parsed::Version)));
    }
}
