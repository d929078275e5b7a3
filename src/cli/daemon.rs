//! No command: the daemon.

use crate::api::DaoServer;
use crate::error::{Error, Kind, Result};
use crate::log::Repeats;
use crate::os::notify::{self, Notifier};
use crate::os::signals;
use crate::os::threads::{Stop, spawn};
use crate::settings::Settings;
use crate::wire::control::answer;
use serde_json::Value;
use std::process::exit;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The service manager's line on the daemon is so old at most.
const STATUS_PERIOD: Duration = Duration::from_secs(10);

/// Runs the daemon until a signal ends it, or somebody over its control socket; with `stdio`, until standard input ends.
pub fn run(settings: Settings, stdio: bool) -> Result<()> {
    // Before any thread is started: all of them inherit it.
    signals::block();
    // A daemon behind --stdio is a part of the service that has started it, and not that service.
    let manager = if stdio { None } else { Notifier::from_environment().map(Arc::new) };
    let slot = Arc::new(OnceLock::new());
    stop_on_signal(Arc::clone(&slot), manager.clone())?;
    let server = DaoServer::new(settings);
    if let Ok(server) = &server {
        let _ = slot.set(server.clone());
    }
    let ended = match &server {
        Ok(server) if stdio => server.serve_stdio(),
        Ok(server) => serve(server, manager.as_ref()),
        Err(why) => Err(why.clone()),
    };
    if let (Some(manager), Err(why)) = (&manager, &ended) {
        manager.tell(&format!("STATUS={why}"));
    }
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

fn serve(server: &DaoServer, manager: Option<&Arc<Notifier>>) -> Result<()> {
    server.register_machine()?.announce();
    let Some(manager) = manager else { return server.start() };
    manager.tell("READY=1");
    let (reported, told) = (server.clone(), Arc::clone(manager));
    let reports = spawn("dao-notify", Stop::new(), move |stop| report(&reported, &told, stop), |_| ());
    let reports = reports.map_err(|why| Error::new(Kind::Os, format!("No thread for reports: {why}.")))?;
    let served = server.start();
    reports.stop();
    manager.tell("STOPPING=1");
    served
}

/// `dao-notify`: tells the service manager how the daemon does, and that it lives, as often as the manager wants: twice
/// within its time. A daemon that does not answer itself is not said to live.
fn report(server: &DaoServer, manager: &Notifier, stop: &Stop) {
    let watchdog = notify::watchdog();
    let period = watchdog.map_or(STATUS_PERIOD, |time| STATUS_PERIOD.min(time / 2));
    let alive = if watchdog.is_some() { "\nWATCHDOG=1" } else { "" };
    let said = Repeats::new(Duration::from_secs(60));
    loop {
        let pulse = server.pulse(period);
        if stop.is_set() {
            return;
        }
        let pause = match pulse {
            Ok(status) => {
                manager.tell(&format!("STATUS={status}{alive}"));
                period
            }
            Err(why) => {
                if said.due(&why.message).is_some() {
                    crate::error!("no sign of life for the service manager: {why}");
                }
                manager.tell(&format!("STATUS={why}"));
                period / 10
            }
        };
        if stop.wait(pause) {
            return;
        }
    }
}

/// The first signal ends the daemon in order, the second at once.
fn stop_on_signal(slot: Arc<OnceLock<DaoServer>>, manager: Option<Arc<Notifier>>) -> Result<()> {
    let wait = move |_: &Stop| {
        let next = || loop {
            if let Some(signal) = signals::wait(Duration::from_secs(60)) {
                break signal;
            }
        };
        let signal = next();
        crate::info!("{signal}: stopping");
        if let Some(manager) = &manager {
            manager.tell("STOPPING=1");
        }
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
