//! The way into Redis: address, user and password, TLS; and in words, why Redis does not let us in and what to do.

use crate::limits;
use crate::settings::{Settings, Tls};
use redis::io::tcp::TcpSettings;
use redis::{Client, Connection, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisError, RedisResult};

/// What connections are made from.
pub fn client(settings: &Settings) -> RedisResult<Client> {
    let info = (settings.redis_host.clone(), settings.redis_port).into_connection_info()?;
    let mut credentials = info.redis_settings().clone().set_skip_set_lib_name();
    if let Some(password) = &settings.redis_password {
        credentials = credentials.set_password(password.reveal());
    }
    if let Some(username) = &settings.redis_username {
        credentials = credentials.set_username(username);
        if settings.redis_password.is_none() {
            credentials = credentials.set_password(""); // a user of `nopass`; without one there would be no AUTH
        }
    }
    let info =
        info.set_tcp_settings(TcpSettings::default().set_nodelay(true)).set_redis_settings(credentials);
    match &settings.redis_tls {
        None => Client::open(info),
        Some(tls) => tls_client(info, settings, tls),
    }
}

/// Certificates are always verified, against the name or address that Redis was given as.
#[cfg(feature = "redis-tls")]
fn tls_client(info: ConnectionInfo, settings: &Settings, tls: &Tls) -> RedisResult<Client> {
    let address = redis::ConnectionAddr::TcpTls {
        host: settings.redis_host.clone(),
        port: settings.redis_port,
        insecure: false,
        tls_params: None,
    };
    let client_tls = tls.identity.as_ref().map(|(certificate, key)| redis::ClientTlsConfig {
        client_cert: certificate.clone().into_bytes(),
        client_key: key.reveal().as_bytes().to_vec(),
    });
    let root_cert = tls.ca.as_ref().map(|ca| ca.clone().into_bytes());
    Client::build_with_tls(info.set_addr(address), redis::TlsCertificates { client_tls, root_cert })
}

#[cfg(not(feature = "redis-tls"))]
fn tls_client(_: ConnectionInfo, _: &Settings, _: &Tls) -> RedisResult<Client> {
    Err((ErrorKind::InvalidClientConfig, "this daoserver was built without TLS").into())
}

/// Connects, with a time-out on everything: with TLS, the handshake is part of the first answer.
pub fn open(client: &Client) -> RedisResult<Connection> {
    let connection = client.get_connection_with_timeout(limits::REDIS_CONNECT_TIMEOUT)?;
    connection.set_read_timeout(Some(limits::REDIS_IO_TIMEOUT))?;
    connection.set_write_timeout(Some(limits::REDIS_IO_TIMEOUT))?;
    Ok(connection)
}

/// Ways in which Redis keeps us out, though it can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It wants a password, and there is none.
    NoPassword,
    /// It does not take the one there is.
    WrongPassword,
    /// Its user may not do this.
    NotPermitted,
}

/// Is it one of these? In a pipeline or a transaction the code stands in the text alone.
pub fn refusal(error: &RedisError) -> Option<Refusal> {
    if error.kind() == ErrorKind::AuthenticationFailed {
        return Some(Refusal::WrongPassword);
    }
    if error.is_io_error() {
        return None;
    }
    let text = error.to_string();
    let rows = [
        ("NOAUTH", Refusal::NoPassword),
        ("WRONGPASS", Refusal::WrongPassword),
        ("NOPERM", Refusal::NotPermitted),
        ("NoPerm", Refusal::NotPermitted),
    ];
    rows.into_iter().find(|row| text.contains(row.0)).map(|row| row.1)
}

/// The rest of a sentence that begins with `Cannot connect to Redis at h:p: `.
pub fn describe(error: &RedisError, settings: &Settings) -> String {
    let user = match &settings.redis_username {
        Some(name) => format!("user '{name}'"),
        None => "the default user".to_owned(),
    };
    match refusal(error) {
        Some(Refusal::NoPassword) => {
            return "it wants a password (NOAUTH): give --redis-password-file FILE, or set REDISCLI_AUTH."
                .into();
        }
        Some(Refusal::WrongPassword) => {
            return format!(
                "it refuses the password of {user} (WRONGPASS): give the right one with --redis-password-file or \
                 REDISCLI_AUTH, and its user with --redis-username."
            );
        }
        Some(Refusal::NotPermitted) => {
            return format!(
                "{user} lacks a permission (NOPERM: {}): give it the access list in the README.",
                one_line(error.detail().unwrap_or("a command or a key"))
            );
        }
        None => {}
    }
    let tls = settings.redis_tls.is_some();
    if error.is_timeout() {
        // Redis waits for the end of what it takes for a command.
        let or = if tls { ", or speaks no TLS on this port" } else { "" };
        return format!("it does not answer in time{or}.");
    }
    let said = one_line(&error.to_string());
    let hint = if said.contains("invalid peer certificate") {
        " Its authority belongs into --redis-ca, and --redis-host must be a name or address of the certificate."
    } else if tls && said.contains("corrupt message") {
        " It may speak no TLS on this port."
    } else if !tls && error.is_connection_dropped() {
        " If it speaks TLS on this port, it takes --redis-tls."
    } else {
        ""
    };
    format!("{said}.{hint}")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").trim_end_matches('.').to_owned()
}
