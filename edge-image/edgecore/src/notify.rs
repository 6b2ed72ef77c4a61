//! What a service manager is told: that the agent runs, how the node is, that it lives and that it stops.
//!
//! systemd's protocol (sd_notify(3)): datagrams of `KEY=value` lines to the socket that `NOTIFY_SOCKET` names. Without that
//! variable (our image's init, a shell) nothing is sent. A datagram that cannot be sent is no reason to stop.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{linux::net::SocketAddrExt, unix::ffi::OsStrExt, unix::net},
    time::Duration,
};

use rt::Drain;

/// Beats within the time that the service manager waits for one: two may be late.
const BEATS: u32 = 3;

/// For example `READY=1`, `STATUS=Offline: cut`.
pub fn tell(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        tracing::debug!("NOTIFY_SOCKET {}: {error}", socket.display());
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let to = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => net::SocketAddr::from_abstract_name(name)?,
        None => net::SocketAddr::from_pathname(socket)?,
    };
    let from = net::UnixDatagram::unbound()?;
    // A manager that does not read must not hold the agent.
    from.set_nonblocking(true)?;
    from.send_to_addr(state.as_bytes(), &to).map(drop)
}

/// Shows that this thread, on which all of the agent's work waits its turn, is alive: a service manager that hears nothing for
/// `WatchdogSec` kills the agent and starts it again. Returns at once where nobody listens.
pub async fn beat(drain: Drain) {
    let Some(every) = interval(std::env::var_os("WATCHDOG_USEC"), std::env::var_os("WATCHDOG_PID")) else {
        return;
    };
    while drain.or(tokio::time::sleep(every)).await.is_some() {
        tell("WATCHDOG=1");
    }
}

fn interval(usec: Option<OsString>, pid: Option<OsString>) -> Option<Duration> {
    let number = |text: OsString| text.to_str()?.parse::<u64>().ok();
    let is_ours = pid.and_then(number).is_none_or(|pid| pid == u64::from(std::process::id()));
    let usec = usec.and_then(number).filter(|usec| *usec > 0 && is_ours)?;
    Some(Duration::from_micros(usec) / BEATS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &net::UnixDatagram) -> String {
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn a_manager_hears_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = net::UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1").unwrap();
        assert_eq!(heard(&socket), "READY=1");

        let name = format!("kinglet-notify-{}", std::process::id());
        let address = net::SocketAddr::from_abstract_name(&name).unwrap();
        let socket = net::UnixDatagram::bind_addr(&address).unwrap();
        send(format!("@{name}").as_ref(), "WATCHDOG=1").unwrap();
        assert_eq!(heard(&socket), "WATCHDOG=1");
        assert!(send("/nowhere/notify".as_ref(), "READY=1").is_err());
    }

    #[test]
    fn beats_are_for_the_process_that_was_asked() {
        let own = || Some(std::process::id().to_string().into());
        let usec = || Some(OsString::from("90000000"));
        assert_eq!(interval(usec(), own()), Some(Duration::from_secs(30)));
        assert_eq!(interval(usec(), None), Some(Duration::from_secs(30)));
        assert_eq!(interval(usec(), Some("1".into())), None, "of a parent that handed its environment on");
        for none in [None, Some("0".into()), Some("soon".into())] {
            assert_eq!(interval(none, own()), None);
        }
    }
}
