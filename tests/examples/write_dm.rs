//! An example of README.md: below these lines it stands there word for word.
#![allow(clippy::print_stdout)]

use daoserver::{DaoServer, Settings};
fn main() -> daoserver::Result<()> {
    let settings = Settings { redis_host: "192.168.64.2".into(), ..Settings::here()? };
    let server = DaoServer::connect(settings)?;
    let mut dm = server.get_remote_shm_bidirectional("rts", "dm")?;
    dm.write(&[0.01f32; 140])?;
    Ok(())
}
