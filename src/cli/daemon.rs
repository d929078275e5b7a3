//! No command: the daemon.

use crate::api::DaoServer;
use crate::error::{Error, Kind, Result};
use crate::os::signals;
use crate::os::threads::{Stop, spawn};
use crate::settings::Settings;
use crate::wire::control::answer;
use serde_json::Value;
use std::process::exit;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Runs the daemon until a signal ends it, or somebody over its control socket; with `stdio`, until standard input ends.
pub fn run(settings: Settings, stdio: bool) -> Result<()> {
    // Before any thread is started: all of them inherit it.
    signals::block();
    let slot = Arc::new(OnceLock::new());
    stop_on_signal(Arc::clone(&slot))?;
    let server = DaoServer::new(settings);
    if let Ok(server) = &server {
        let _ = slot.set(server.clone());
    }
    let ended = match &server {
        Ok(server) if stdio => server.serve_stdio(),
        Ok(server) => serve(server),
        Err(why) => Err(why.clone()),
    };
    if let Ok(server) = server {
        let shut_down = server.is_shut_down();
        server.shut_down(); // the thread that waits for signals has it, too
        return if shut_down { Ok(()) } else { ended };
    }
    if let (true, Err(why)) = (stdio, &ended) {
        // Whoever has started us reads there.
        super::output::print(&answer(&Value::Null, &Err(why.clone())))?;
    }
    ended
}

fn serve(server: &DaoServer) -> Result<()> {
    server.register_machine()?.announce();
    server.start()
}

/// The first signal ends the daemon in order, the second at once.
fn stop_on_signal(slot: Arc<OnceLock<DaoServer>>) -> Result<()> {
    let wait = move |_: &Stop| {
        let next = || loop {
            if let Some(signal) = signals::wait(Duration::from_secs(60)) {
                break signal;
            }
        };
        let signal = next();
        crate::info!("{signal}: stopping");
        let Some(server) = slot.get().cloned() else { exit(0) }; // nothing of it stands anywhere yet
        let stopping = spawn("dao-signals", Stop::new(), move |_| server.shut_down(), |_| ());
        if stopping.is_err() {
            exit(1);
        }
        next();
        exit(1);
    };
    let started = spawn("dao-signals", Stop::new(), wait, |_| ());
    started.map(|_| ()).map_err(|why| Error::new(Kind::Os, format!("No thread for signals: {why}.")))
}
