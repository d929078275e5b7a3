//! Help texts and the README's table, both from the tables of flags and commands.

use super::commands::{COMMANDS, Name, Row};
use super::flags::{Default, FLAGS, Flag};

/// The exit codes, as every help text ends.
const EXIT_CODES: &str = "\
Exit codes:
  0 done                              1 any other failure
  2 wrong command line                3 unknown machine or segment
  4 time-out                          5 not implemented
  6 not permitted                     7 Redis cannot be reached
  8 no daemon on this machine
";

/// The end of the general help.
const EXAMPLES: &str = "
Every command accepts these options too, and `daoserver COMMAND --help` lists its own.

Examples:
  on both machines:     daoserver --redis-host 192.168.64.2
  on the first:         daoserver shm create wfs --shape 64x64 --dtype uint16
                        daoserver shm write wfs --rate 1000
  on the second:        daoserver list
                        daoserver get first-machine wfs
                        daoserver shm watch remote_first-machine_wfs

";

/// Widest left column; what is wider has its help on the next line.
const LEFT_MAX: usize = 32;
/// Where lines are broken.
const WIDTH: usize = 100;

/// `daoserver --help`.
pub fn general() -> String {
    let mut out = String::from(
        "daoserver takes DAO shared-memory segments across machines, through Redis and ZMQ.\n\n\
         Usage: daoserver [OPTIONS]                       run the daemon\n       \
         daoserver COMMAND [OPERANDS] [OPTIONS]    ask it, Redis, or this machine's segments\n\n\
         The daemon runs in the foreground and logs to standard error; SIGINT or SIGTERM stops it.\n\nCommands:\n",
    );
    for row in COMMANDS.iter().filter(|row| row.name != Name::Daemon) {
        entry(&mut out, &signature(row), row.about);
    }
    out.push_str("\nOptions:\n");
    options(&mut out, Name::Daemon);
    out.push_str(EXAMPLES);
    out.push_str(EXIT_CODES);
    out
}

/// `daoserver shm --help`.
pub fn shm() -> String {
    let mut out = String::from("Usage: daoserver shm COMMAND [OPERANDS] [OPTIONS]\n\nCommands:\n");
    for row in COMMANDS.iter().filter(|row| row.words.starts_with("shm ")) {
        entry(&mut out, &signature(row), row.about);
    }
    out.push_str("\nThey need no daemon. `daoserver shm COMMAND --help` lists the options of one.\n\n");
    out.push_str(EXIT_CODES);
    out
}

/// `daoserver COMMAND --help`.
pub fn of(name: Name) -> String {
    if name == Name::Daemon {
        return general();
    }
    let row = name.row();
    let mut about = row.about.to_owned();
    if let Some(first) = about.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let mut out = format!("Usage: daoserver {} [OPTIONS]\n\n", signature(row));
    wrap(&mut out, &format!("{about}. {}", row.more), 0);
    out.push_str("\nOptions:\n");
    options(&mut out, name);
    out.push_str("\nExamples:\n");
    for example in row.examples {
        out.push_str(&format!("  {example}\n"));
    }
    out.push('\n');
    out.push_str(EXIT_CODES);
    out
}

fn signature(row: &Row) -> String {
    format!("{} {}", row.words, row.operands.join(" ")).trim().to_owned()
}

fn spelled(flag: &Flag) -> String {
    match flag.value {
        Some(value) => format!("--{} {value}", flag.long),
        None => format!("--{}", flag.long),
    }
}

fn default_text(flag: &Flag) -> Option<&'static str> {
    match flag.default {
        Default::None => None,
        Default::Value(text) | Default::Text(text) => Some(text),
    }
}

/// The command's own flags first, then those that it shares with the daemon.
fn options(out: &mut String, name: Name) {
    let listed = FLAGS.iter().filter(|flag| flag.commands.contains(&name));
    let (shared, own): (Vec<&Flag>, Vec<&Flag>) =
        listed.partition(|flag| flag.commands.contains(&Name::Daemon));
    for flag in own.into_iter().chain(shared) {
        let help = match default_text(flag) {
            Some(default) => format!("{} [default: {default}]", flag.help),
            None => flag.help.to_owned(),
        };
        entry(out, &spelled(flag), &help);
    }
}

fn entry(out: &mut String, left: &str, right: &str) {
    out.push_str(&format!("  {left:<LEFT_MAX$}"));
    if left.len() >= LEFT_MAX {
        out.push('\n');
        out.push_str(&" ".repeat(LEFT_MAX + 2));
    }
    wrap(out, right, LEFT_MAX + 2);
}

/// Words up to the width; lines but the first are indented.
fn wrap(out: &mut String, text: &str, indent: usize) {
    let mut column = indent;
    for word in text.split_whitespace() {
        if column > indent && column + 1 + word.len() > WIDTH {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            column = indent;
        }
        if column > indent {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += word.len();
    }
    out.push('\n');
}

/// The tables between `<!-- flags -->` and `<!-- /flags -->` of the README.
pub fn flags_markdown() -> String {
    let mut out = String::from("| flag | default | |\n|---|---|---|\n");
    let cell = |text: &str| text.replace('|', "\\|");
    let default = |flag| default_text(flag).map_or(String::new(), |text| format!("`{text}`"));
    for flag in FLAGS.iter().filter(|flag| flag.commands.contains(&Name::Daemon)) {
        out.push_str(&format!(
            "| `{}` | {} | {} |\n",
            cell(&spelled(flag)),
            cell(&default(flag)),
            cell(flag.help)
        ));
    }
    out.push_str("\n| command | flag | default | |\n|---|---|---|---|\n");
    for row in COMMANDS.iter().filter(|row| row.name != Name::Daemon) {
        out.push_str(&format!("| `{}` | | | {} |\n", signature(row), cell(row.about)));
        let own = FLAGS.iter().filter(|flag| flag.commands.contains(&row.name));
        for flag in own.filter(|flag| !flag.commands.contains(&Name::Daemon)) {
            let (spelled, default) = (cell(&spelled(flag)), cell(&default(flag)));
            out.push_str(&format!("| | `{spelled}` | {default} | {} |\n", cell(flag.help)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_and_command_is_in_a_help_text_and_in_the_readmes_table() {
        let markdown = flags_markdown();
        for row in COMMANDS {
            let help = of(row.name);
            for flag in FLAGS.iter().filter(|flag| flag.commands.contains(&row.name)) {
                assert!(help.contains(&spelled(flag)), "--{} of {}", flag.long, row.words);
                assert!(markdown.contains(&spelled(flag).replace('|', "\\|")));
            }
            assert!(help.contains("Exit codes:") && help.contains("Examples:"));
            assert!(general().contains(&signature(row)) && markdown.contains(&signature(row)));
        }
    }

    #[test]
    fn no_line_of_a_help_text_is_too_wide() {
        let texts = COMMANDS.iter().map(|row| of(row.name)).chain([shm()]);
        for line in texts.collect::<Vec<_>>().join("\n").lines() {
            assert!(line.chars().count() <= WIDTH && line.trim_end() == line, "{line:?}");
        }
    }
}
