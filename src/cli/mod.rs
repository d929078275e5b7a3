//! The command line: the flag table, parsing, help, one file a command. `typed` is what was typed,
//! [`crate::settings`] what it means.

pub mod bench;
pub mod cleanup;
pub mod commands;
pub mod daemon;
pub mod deregister;
pub mod discover;
pub mod flags;
pub mod get;
pub mod help;
pub mod list;
pub mod output;
pub mod parse;
pub mod release;
pub mod shm;
pub mod status;
pub mod typed;

use crate::control::discovery::Login;
use crate::error::{Error, Result};
use crate::log;
use commands::Command;
use parse::Parsed;
use std::process::ExitCode;
use typed::Typed;

/// What the binary does: reads the command line, runs the command, and ends with the code of its error.
pub fn main() -> ExitCode {
    match parse::parse(std::env::args_os().skip(1)).and_then(dispatch) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            output::complain(&why);
            ExitCode::from(code(&why))
        }
    }
}

fn code(why: &Error) -> u8 {
    why.exit_code() as u8
}

fn dispatch(parsed: Parsed) -> Result<()> {
    match parsed {
        Parsed::Help => output::print(&help::general()),
        Parsed::HelpShm => output::print(&help::shm()),
        Parsed::HelpOf(name) => output::print(&help::of(name)),
        Parsed::Version => output::print(concat!("daoserver ", env!("CARGO_PKG_VERSION"))),
        Parsed::Run(typed, command) => run(&typed, &command),
    }
}

fn run(typed: &Typed, command: &Command) -> Result<()> {
    log::set_level(typed.log_level.unwrap_or(log::Level::Info));
    let password = || std::env::var("REDISCLI_AUTH").ok();
    // Segments of this machine and scans need no name of this machine, so a bad one does not stop them.
    match command {
        Command::Shm(asked) => return shm::run(asked, &typed.shm_dir),
        Command::Bench(asked) if asked.to.is_none() => return bench::run(asked, &typed.shm_dir),
        Command::Discover(asked) => {
            if typed.redis_tls {
                crate::warn!(
                    "a scan speaks no TLS: it finds only servers that answer without, and sends no password"
                );
                return discover::run(asked, None);
            }
            let login = |password| Login { username: typed.redis_username.clone(), password };
            return discover::run(asked, typed.password(password())?.map(login));
        }
        _ => (),
    }
    let settings = typed.settings(password())?;
    match command {
        Command::Daemon => daemon::run(settings, typed.stdio),
        Command::List { json } => list::run(&settings, *json),
        Command::Get { host, shm, bidirectional, timeout, json } => {
            get::run(&settings, host, shm, *bidirectional, *timeout, *json)
        }
        Command::Release { host, shm } => release::run(&settings, host, shm),
        Command::Status { json } => status::run(&settings, *json),
        Command::Deregister { host } => deregister::run(&settings, host),
        Command::Cleanup { ttl } => cleanup::run(&settings, *ttl),
        Command::Bench(asked) => bench::run_to(asked, &settings),
        Command::Shm(_) | Command::Discover(_) => Ok(()), // done above
    }
}
