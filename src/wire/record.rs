//! Requests and connection records: the JSON in Redis by which an owner and a client find each other.
//!
//! Python peers read and write the plain fields; ours adds `dao`, which they ignore:
//! `{"wire": 1, "boot": "<16 hex digits>", "shape": [64, 64], "dtype": "uint16", "keywords": 3, "tcp": 5561}`. A record with it has
//! a publisher that also serves [`crate::naming::TOPIC_DAO`]; shape and type are that publisher's, where the registry's
//! may be a second older or newer.

use crate::dtype::{DType, Shape};
use crate::naming;
use serde_json::{Map, Value, json};
use std::net::Ipv4Addr;

/// What a client writes to `dao:connections:<host>:<name>`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Request {
    /// Of a daoserver that writes back: the boot id of its publisher, field `dao` of the request.
    pub boot_id: Option<u64>,
    /// Beside it: that publisher's port for TCP.
    pub tcp_port: Option<u16>,
    pub client_hostname: String,
    pub client_ip: Ipv4Addr,
    pub transport: String,
    pub bidirectional: bool,
    pub client_pub_port: Option<u16>,
}

/// What only a daoserver puts into a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordExtras {
    /// Version of our wire that the publisher serves.
    pub wire: u16,
    /// The publisher's boot id, as in every header.
    pub boot_id: u64,
    /// Shape of its frames.
    pub shape: Shape,
    /// Type of their elements.
    pub dtype: DType,
    /// Keywords of the segment.
    pub keywords: u16,
    /// The boot id of the request that this record answers.
    pub client_boot_id: Option<u64>,
    /// The client asked to write and may not.
    pub read_only: bool,
    /// The publisher's port for TCP, where it is offered.
    pub tcp_port: Option<u16>,
}

impl RecordExtras {
    fn to_value(self) -> Value {
        json!({
            "wire": self.wire,
            "boot": format!("{:016x}", self.boot_id),
            "shape": self.shape.axes(),
            "dtype": self.dtype.name(),
            "keywords": self.keywords,
            "client_boot": self.client_boot_id.map(|id| format!("{id:016x}")),
            "read_only": self.read_only,
            "tcp": self.tcp_port,
        })
    }

    fn from_map(dao: &Map<String, Value>) -> Result<RecordExtras, String> {
        let small = |field: &str| {
            let number = dao.get(field).and_then(Value::as_u64).and_then(|number| u16::try_from(number).ok());
            number.ok_or_else(|| format!("field '{field}' is missing or no small number"))
        };
        Ok(RecordExtras {
            wire: small("wire")?,
            boot_id: boot(dao, "boot")?,
            shape: shape_from_value(dao.get("shape").unwrap_or(&Value::Null))?,
            dtype: parse_dtype(string(dao, "dtype")?)?,
            keywords: small("keywords")?.min(crate::limits::KEYWORDS_MAX),
            client_boot_id: match dao.get("client_boot") {
                None | Some(Value::Null) => None,
                Some(_) => Some(boot(dao, "client_boot")?),
            },
            read_only: flag(dao, "read_only")?,
            tcp_port: port(dao, "tcp")?,
        })
    }
}

/// One entry of `dao:machines:<host>:shm:<name>:connections`: who is served, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Record {
    pub server_ip: Ipv4Addr,
    pub port: u16,
    pub transport: String,
    pub client_hostname: String,
    pub client_ip: Ipv4Addr,
    pub bidirectional: bool,
    pub client_pub_port: Option<u16>,
    pub extras: Option<RecordExtras>,
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err("it is no JSON object".to_owned()),
        Err(error) => Err(format!("it is no JSON: {error}")),
    }
}

fn string<'a>(map: &'a Map<String, Value>, field: &str) -> Result<&'a str, String> {
    map.get(field).and_then(Value::as_str).ok_or_else(|| format!("field '{field}' is missing or no string"))
}

fn ip(map: &Map<String, Value>, field: &str) -> Result<Ipv4Addr, String> {
    let text = string(map, field)?;
    text.parse().map_err(|_| format!("field '{field}' is no IPv4 address"))
}

fn host(map: &Map<String, Value>, field: &str) -> Result<String, String> {
    naming::host_name(string(map, field)?).map(str::to_owned)
}

fn boot(map: &Map<String, Value>, field: &str) -> Result<u64, String> {
    u64::from_str_radix(string(map, field)?, 16).map_err(|_| format!("field '{field}' is no number"))
}

fn flag(map: &Map<String, Value>, field: &str) -> Result<bool, String> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(format!("field '{field}' is no truth value")),
    }
}

fn port(map: &Map<String, Value>, field: &str) -> Result<Option<u16>, String> {
    match map.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let port = value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|&port| port > 0);
            port.map(Some).ok_or_else(|| format!("field '{field}' is no port"))
        }
    }
}

fn transport(map: &Map<String, Value>) -> Result<String, String> {
    match map.get("transport") {
        None => Ok("zmq".to_owned()),
        Some(_) => string(map, "transport").map(|name| name.chars().take(32).collect()),
    }
}

impl Request {
    /// The JSON of the request.
    pub fn to_json(&self) -> String {
        let mut value = json!({
            "client_ip": self.client_ip.to_string(),
            "client_hostname": self.client_hostname,
            "transport": self.transport,
            "bidirectional": self.bidirectional,
            "client_pub_port": self.client_pub_port,
        });
        if let Some(boot_id) = self.boot_id {
            value["dao"] = json!({"boot": format!("{boot_id:016x}"), "tcp": self.tcp_port});
        }
        value.to_string()
    }

    /// Reads a request; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Request, String> {
        let map = object(text)?;
        let dao = map.get("dao").and_then(Value::as_object);
        Ok(Request {
            // Extra fields may be anybody's: what we do not understand is no reason to refuse a request.
            boot_id: dao.and_then(|dao| boot(dao, "boot").ok()),
            tcp_port: dao.and_then(|dao| port(dao, "tcp").ok()?),
            client_hostname: host(&map, "client_hostname")?,
            client_ip: ip(&map, "client_ip")?,
            transport: transport(&map)?,
            bidirectional: flag(&map, "bidirectional")?,
            client_pub_port: port(&map, "client_pub_port")?,
        })
    }
}

impl Record {
    fn to_value(&self) -> Value {
        let mut value = json!({
            "server_ip": self.server_ip.to_string(),
            "port": self.port,
            "transport": self.transport,
            "client_hostname": self.client_hostname,
            "client_ip": self.client_ip.to_string(),
            "bidirectional": self.bidirectional,
            "client_pub_port": self.client_pub_port,
        });
        if let Some(extras) = &self.extras {
            value["dao"] = extras.to_value();
        }
        value
    }

    fn from_value(value: &Value) -> Result<Record, String> {
        let map = value.as_object().ok_or("a record is no JSON object")?;
        // Those of another version are none to us: its plain fields still name a port with Python's wire.
        let dao = map.get("dao").and_then(Value::as_object);
        let extras = dao.and_then(|dao| RecordExtras::from_map(dao).ok());
        Ok(Record {
            server_ip: ip(map, "server_ip")?,
            port: port(map, "port")?.ok_or("field 'port' is missing")?,
            transport: transport(map)?,
            client_hostname: host(map, "client_hostname")?,
            client_ip: ip(map, "client_ip")?,
            bidirectional: flag(map, "bidirectional")?,
            client_pub_port: port(map, "client_pub_port")?,
            extras,
        })
    }

    /// The JSON array of a segment's records.
    pub fn list_to_json(records: &[Record]) -> String {
        Value::Array(records.iter().map(Record::to_value).collect()).to_string()
    }

    /// Reads the array. A record that makes no sense is left out and named in the second list.
    pub fn parse_list(text: &str) -> Result<(Vec<Record>, Vec<String>), String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
        let array = value.as_array().ok_or("it is no JSON array")?;
        let (mut records, mut refused) = (Vec::new(), Vec::new());
        for entry in array.iter().take(crate::limits::CLIENTS_MAX) {
            match Record::from_value(entry) {
                Ok(record) => records.push(record),
                Err(why) => refused.push(why),
            }
        }
        Ok((records, refused))
    }
}

/// `[512, 512]`, as Python's `json.dumps` writes it: peers may compare the text.
pub fn dimensions_to_json(shape: &Shape) -> String {
    let axes: Vec<String> = shape.axes().iter().map(u32::to_string).collect();
    format!("[{}]", axes.join(", "))
}

/// Reads `dimensions`.
pub fn parse_dimensions(text: &str) -> Result<Shape, String> {
    shape_from_value(&serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?)
}

fn shape_from_value(value: &Value) -> Result<Shape, String> {
    let array = value.as_array().filter(|array| array.len() <= 3).ok_or("it is no array of 1 to 3 axes")?;
    let axes: Option<Vec<u32>> = array.iter().map(|axis| u32::try_from(axis.as_u64()?).ok()).collect();
    Shape::new(&axes.ok_or("an axis is no number")?)
}

/// Reads `dtype`.
pub fn parse_dtype(text: &str) -> Result<DType, String> {
    DType::from_name(text).ok_or_else(|| "it is no element type that we know".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(extras: Option<RecordExtras>) -> Record {
        Record {
            server_ip: Ipv4Addr::new(192, 168, 64, 2),
            port: 5560,
            transport: "zmq".into(),
            client_hostname: "gui1".into(),
            client_ip: Ipv4Addr::new(192, 168, 64, 3),
            bidirectional: false,
            client_pub_port: None,
            extras,
        }
    }

    #[test]
    fn pythons_request_and_record_are_read() {
        let text = r#"{"client_ip": "192.168.64.3", "client_hostname": "gui1", "transport": "zmq", "bidirectional": false, "client_pub_port": null}"#;
        let request = Request::parse(text).unwrap();
        assert_eq!(Request::parse(&request.to_json()), Ok(request));
        let text = r#"[{"server_ip": "192.168.64.2", "port": 5560, "transport": "zmq", "client_hostname": "gui1", "client_ip": "192.168.64.3", "bidirectional": false, "client_pub_port": null}]"#;
        assert_eq!(Record::parse_list(text).unwrap(), (vec![record(None)], vec![]));
    }

    #[test]
    fn our_extras_come_back() {
        let ours = record(Some(RecordExtras {
            wire: 1,
            boot_id: u64::MAX - 3,
            shape: Shape::new(&[8, 6]).unwrap(),
            dtype: DType::C64,
            keywords: 3,
            client_boot_id: Some(7),
            read_only: true,
            tcp_port: Some(5561),
        }));
        let text = Record::list_to_json(std::slice::from_ref(&ours));
        assert_eq!(Record::parse_list(&text).unwrap().0, vec![ours]);
    }

    #[test]
    fn extra_fields_of_another_version_leave_the_plain_ones_as_they_are() {
        let text = r#"{"client_ip": "1.2.3.4", "client_hostname": "gui1", "transport": "zmq", "dao": {"wire": "x"}, "x": 1}"#;
        assert_eq!(Request::parse(text).unwrap().boot_id, None);
        let mut value = record(None).to_value();
        value["dao"] = json!({"wire": 99, "boot": 5});
        assert_eq!(Record::from_value(&value).unwrap().extras, None);
    }

    #[test]
    fn a_bad_record_does_not_take_the_others_with_it() {
        let good = Record::list_to_json(&[record(None)]);
        let text = format!("[{{\"port\": 0}}, 7, {}", good.strip_prefix('[').unwrap());
        let (records, refused) = Record::parse_list(&text).unwrap();
        assert_eq!((records.len(), refused.len()), (1, 2));
    }

    #[test]
    fn a_request_whose_client_would_leave_its_key_is_refused() {
        for bad in ["a:b", "../x", "", "*"] {
            let text =
                json!({"client_ip": "1.2.3.4", "client_hostname": bad, "transport": "zmq"}).to_string();
            assert!(Request::parse(&text).is_err(), "{bad}");
        }
    }

    #[test]
    fn dimensions_are_written_as_python_writes_them() {
        assert_eq!(dimensions_to_json(&Shape::new(&[8, 6]).unwrap()), "[8, 6]");
        assert_eq!(parse_dimensions("[140]").unwrap().axes(), &[140]);
        for bad in ["", "[]", "[0]", "[1,2,3,4]", "[-1]", "[1.5]", "8", "[4294967296]"] {
            assert!(parse_dimensions(bad).is_err(), "{bad}");
        }
    }
}
