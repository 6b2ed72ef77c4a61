//! What test programs of this crate share.

use std::sync::Arc;

use pki::{Identity, tls};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, pki_types::ServerName};

/// A handshake in memory: whom the server sees, or what the first end says that is not content.
pub fn handshake(
    server: ServerConfig,
    client: ClientConfig,
    name: &str,
) -> Result<Option<Identity>, rustls::Error> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut server = ServerConnection::new(Arc::new(server))?;
    let mut client = ClientConnection::new(Arc::new(client), name)?;
    while server.is_handshaking() || client.is_handshaking() || client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("memory");
        server.read_tls(&mut &wire[..]).expect("memory");
        server.process_new_packets()?;
        wire.clear();
        server.write_tls(&mut wire).expect("memory");
        client.read_tls(&mut &wire[..]).expect("memory");
        client.process_new_packets()?;
    }
    Ok(tls::peer_identity(server.peer_certificates()).expect("a readable certificate"))
}
