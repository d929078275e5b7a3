//! `discover` and `--discover`.

use super::commands::Discover;
use super::output;
use crate::control::discovery::{Found, Login, discover_redis_as};
use crate::error::Result;

/// Scans and prints.
pub fn run(asked: &Discover, login: Option<Login>) -> Result<()> {
    let found = discover_redis_as(asked.port, asked.timeout, asked.workers, login.as_ref(), &|| false)?;
    if asked.json {
        let array: serde_json::Value = found.iter().map(Found::to_json).collect();
        return output::print(&array.to_string());
    }
    output::print(&text(&found))
}

fn text(found: &[Found]) -> String {
    if found.is_empty() {
        return "No Redis instances found on local subnets.\n".into();
    }
    let addresses: Vec<String> = found.iter().map(|one| format!("{}:{}", one.host, one.port)).collect();
    let width = addresses.iter().map(String::len).max().unwrap_or(0);
    let mut out = format!("Found {} Redis instance(s):\n", found.len());
    for (one, address) in found.iter().zip(&addresses) {
        let mark = if one.dao { "[dao]" } else { "" };
        let machines = if one.machines.is_empty() { "—".to_owned() } else { one.machines.join(", ") };
        out.push_str(&format!("  {address:<width$} {mark:<5}  machines: {machines}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_of_the_contract() {
        let found = [
            Found {
                host: [192, 168, 64, 2].into(),
                port: 6379,
                dao: true,
                machines: vec!["daovm".into(), "rts-machine".into()],
            },
            Found { host: [192, 168, 64, 3].into(), port: 6379, dao: false, machines: Vec::new() },
        ];
        let wanted = "Found 2 Redis instance(s):\n  \
                      192.168.64.2:6379 [dao]  machines: daovm, rts-machine\n  \
                      192.168.64.3:6379        machines: —\n";
        assert_eq!(text(&found), wanted);
        assert_eq!(text(&[]), "No Redis instances found on local subnets.\n");
        assert_eq!(found[0].to_json()["machines"][1], "rts-machine");
    }
}
