//! The command line from outside: what a user or a script sees of the binary.
#![allow(clippy::unwrap_used)] // helpers of tests, too

use std::fs;
use std::process::{Command, Output, Stdio};

fn daoserver() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_daoserver"));
    command.env_remove("REDISCLI_AUTH").stdin(Stdio::null());
    command
}

fn run(line: &str) -> Output {
    daoserver().args(line.split_whitespace()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Fails with this code, says nothing on standard output and one line on standard error, which is returned.
fn fails(output: Output, code: i32) -> String {
    let why = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{why}");
    assert_eq!(stdout(&output), "");
    assert!(why.starts_with("daoserver: ") && why.ends_with('\n') && why.lines().count() == 1, "{why:?}");
    why
}

#[test]
fn a_wrong_command_line_is_one_sentence_and_exit_2() {
    assert_eq!(
        fails(run("--no-such-flag"), 2),
        "daoserver: unknown flag --no-such-flag; see daoserver --help\n"
    );
    for line in [
        "frobnicate",
        "get",
        "get a",
        "list extra",
        "--redis-port 0",
        "--role king",
        "--heartbeat-interval 0",
    ] {
        fails(run(line), 2);
    }
    for line in [
        "shm",
        "shm frobnicate",
        "shm create x",
        "shm create x --shape 0 --dtype int8",
        "shm rm",
        "discover x",
    ] {
        fails(run(line), 2);
    }
    let broken = daoserver().args(["get", "a\nb", "c"]).output().unwrap();
    assert!(fails(broken, 2).contains("a\\nb"));
    let bytes: std::ffi::OsString = std::os::unix::ffi::OsStringExt::from_vec(vec![0xff, 0xfe]);
    fails(daoserver().arg(bytes).output().unwrap(), 2);
}

#[test]
fn every_command_has_a_help_text_with_examples_and_exit_codes() {
    for line in
        ["--help", "-h", "list --help", "get --help", "release --help", "status --help", "deregister --help"]
    {
        let help = run(line);
        assert!(help.status.success());
        assert!(
            stdout(&help).contains("Usage: daoserver") && stdout(&help).contains("Exit codes:"),
            "{line}"
        );
    }
    for name in ["list", "info", "create", "write", "read", "watch", "rm"] {
        let help = run(&format!("shm {name} --help"));
        assert!(help.status.success() && stdout(&help).contains("Examples:"), "{name}");
    }
    assert!(stdout(&run("shm --help")).contains("shm create NAME"));
    assert!(stdout(&run("cleanup --help")).contains("--ttl"));
    assert!(stdout(&run("discover --help")).contains("--workers"));
    assert_eq!(stdout(&run("--version")), concat!("daoserver ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_password_file_that_cannot_be_read_is_named() {
    let why = fails(run("list --redis-password-file /nonexistent/secret"), 2);
    assert!(why.contains("--redis-password-file /nonexistent/secret"), "{why}");
    fails(run("--redis-password hunter2"), 2);
    // Of what never ends, only so much is read.
    let why = fails(run("list --redis-password-file /dev/zero"), 2);
    assert!(why.contains("it is too long"), "{why}");
}

#[test]
fn tls_is_there_or_said_not_to_be() {
    let asked = run("list --redis-tls --redis-host 127.0.0.1 --redis-port 1");
    if cfg!(feature = "redis-tls") {
        assert!(fails(asked, 7).contains("Connection refused"));
    } else {
        assert!(fails(asked, 5).contains("built without TLS"));
    }
    let why = fails(run("list --redis-ca /etc/hosts"), 2);
    assert!(why.contains("--redis-ca needs --redis-tls"), "{why}");
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let mut child = daoserver().arg("--help").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn a_standard_output_that_is_full_is_an_error() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = daoserver().arg("--help").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("standard output"));
}
