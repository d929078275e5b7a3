//! An example of README.md: below these lines it stands there word for word.
#![allow(clippy::print_stdout)]

use daoserver::{DaoServer, Settings};
use std::time::Duration;
fn main() -> daoserver::Result<()> {
    let settings = Settings { redis_host: "192.168.64.2".into(), ..Settings::here()? };
    let mut wfs = DaoServer::connect(settings)?.get_remote_shm("rts", "wfs")?;
    for frame in wfs.frames(Duration::from_secs(5)).take(100) {
        println!("frame {}", frame?.counter());
    }
    Ok(())
}
