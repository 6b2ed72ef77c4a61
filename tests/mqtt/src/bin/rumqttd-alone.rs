//! rumqttd as a process of its own: `rumqttd-alone V4_ADDRESS V5_ADDRESS [USER PASSWORD]`.
//!
//! Its segments are those of its sample configuration: smaller ones lose QoS 1 messages of a reader that is behind.

use std::{collections::HashMap, net::SocketAddr};

use anyhow::{Context, Result};
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut address = || -> Result<SocketAddr> {
        arguments.next().context("rumqttd-alone V4_ADDRESS V5_ADDRESS")?.parse().context("an address")
    };
    let (v4, v5) = (address()?, address()?);
    let auth: HashMap<String, String> = arguments.next().zip(arguments.next()).into_iter().collect();
    let auth = Some(auth).filter(|auth| !auth.is_empty());
    let server = |name: &str, listen| {
        let connections = ConnectionSettings {
            connection_timeout_ms: 5_000,
            max_payload_size: 256 * 1024,
            max_inflight_count: 100,
            auth: auth.clone(),
            external_auth: None,
            dynamic_filters: true,
        };
        let settings =
            ServerSettings { name: name.into(), listen, tls: None, next_connection_delay_ms: 1, connections };
        Some(HashMap::from([(name.to_owned(), settings)]))
    };
    let router = RouterConfig {
        max_connections: 2_000,
        max_outgoing_packet_count: 200,
        max_segment_size: 100 * 1024 * 1024,
        max_segment_count: 10,
        ..RouterConfig::default()
    };
    let config = Config { router, v4: server("v4", v4), v5: server("v5", v5), ..Config::default() };
    Broker::new(config).start().context("rumqttd ended")
}
