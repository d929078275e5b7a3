//! No command: the daemon.

use crate::api::DaoServer;
use crate::error::{Error, Kind, Result};
use crate::os::signals;
use crate::os::threads::{Stop, spawn};
use crate::settings::Settings;
use crate::wire::control::answer;
use serde_json::Value;
use std::time::Duration;

/// Runs the daemon until a signal ends it, or somebody over its control socket; with `stdio`, until standard input ends.
pub fn run(settings: Settings, stdio: bool) -> Result<()> {
    // Before any thread is started: all of them inherit it.
    signals::block();
    if !stdio {
        return serve(settings);
    }
    let started = DaoServer::new(settings).and_then(|server| {
        stop_on_signal(&server)?;
        server.serve_stdio()
    });
    if let Err(why) = &started {
        // Whoever has started us reads there.
        super::output::print(&answer(&Value::Null, &Err(why.clone())))?;
    }
    started
}

fn serve(settings: Settings) -> Result<()> {
    let server = DaoServer::new(settings)?;
    stop_on_signal(&server)?;
    let me = match server.register_machine() {
        Ok(me) => me,
        Err(why) => {
            server.stop(); // the thread that waits for signals has it, too
            return Err(why);
        }
    };
    eprintln!("{}", me.ready_line());
    server.start()
}

fn stop_on_signal(server: &DaoServer) -> Result<()> {
    let server = server.clone();
    let wait = move |_: &Stop| {
        let signal = loop {
            if let Some(signal) = signals::wait(Duration::from_secs(60)) {
                break signal;
            }
        };
        crate::info!("{signal}: stopping");
        server.stop();
    };
    let started = spawn("dao-signals", Stop::new(), wait, |_| ());
    started.map(|_| ()).map_err(|why| Error::new(Kind::Os, format!("No thread for signals: {why}.")))
}
