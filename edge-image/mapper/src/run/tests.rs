//! The whole loop against the real mosquitto and a real tty.

use std::{
    fs::File,
    io::{Read, Write},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

struct Mosquitto(Child);

impl Mosquitto {
    fn start(port: u16) -> Mosquitto {
        let binary = if std::path::Path::new("/usr/sbin/mosquitto").exists() {
            "/usr/sbin/mosquitto"
        } else {
            "mosquitto"
        };
        let child =
            Command::new(binary).args(["-p", &port.to_string()]).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + DEADLINE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "mosquitto does not come up");
            thread::sleep(Duration::from_millis(10));
        }
        Mosquitto(child)
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn publish(port: u16, topic: &str, payload: &str) {
    let status = Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-t", topic, "-m", payload, "-r", "-q", "1"])
        .status();
    assert!(status.unwrap().success());
}

/// Lines that mosquitto_sub prints, until it is dropped.
struct Watch {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Watch {
    fn start(port: u16) -> Watch {
        let mut child = Command::new("mosquitto_sub")
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &port.to_string(),
                "-t",
                "$hw/#",
                "-t",
                "$kinglet/mapper/+",
                "-q",
                "1",
                "-F",
                "%t %p",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = child.stdout.take().unwrap();
        let (tx, lines) = mpsc::channel();
        thread::spawn(move || {
            use std::io::BufRead;
            for line in std::io::BufReader::new(out).lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        Watch { child, lines }
    }

    fn wait_for(&self, parts: &[&str]) -> String {
        let deadline = Instant::now() + DEADLINE;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if parts.iter().all(|part| line.contains(part)) {
                return line;
            }
        }
        panic!("no line with {parts:?}");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_line(master: &mut File) -> String {
    let mut got = Vec::new();
    let mut byte = [0];
    while byte[0] != b'\n' {
        master.read_exact(&mut byte).unwrap();
        got.push(byte[0]);
    }
    String::from_utf8(got).unwrap()
}

#[test]
fn a_serial_device_over_mosquitto_which_is_killed_in_between() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let pty = nix::pty::openpty(None, None).unwrap();
    let path = nix::unistd::ttyname(&pty.slave).unwrap().to_string_lossy().into_owned();
    let mut master = File::from(pty.master);
    let stop = Arc::new(AtomicBool::new(false));
    let settings = Settings {
        broker: format!("127.0.0.1:{port}"),
        username: None,
        password: None,
        lines_socket: "/nonexistent/lines.sock".into(),
        client_id: "mapper-under-test".into(),
    };
    let mapper = {
        let stop = stop.clone();
        thread::spawn(move || {
            let engine = Engine::new(Box::new(KernelOpener::new(&settings.lines_socket)));
            Loop::new(&settings, engine).run(|| stop.load(Ordering::Relaxed)).unwrap();
        })
    };
    let description = |desired: &str| {
        format!(
            r#"{{"version":1,"device":{{"metadata":{{"name":"s","namespace":"default"}},"spec":{{"protocol":{{"protocolName":"serial","configData":{{"path":"{path}"}}}},"properties":[{{"name":"temperature","reportCycle":200,"visitors":{{"configData":{{}}}}}},{{"name":"heater","desired":{{"value":"{desired}"}},"visitors":{{"configData":{{"write":"heater={{}}"}}}}}}]}}}}}}"#
        )
    };
    let topic = "$kinglet/mapper/serial/device/default/s";
    let broker = Mosquitto::start(port);
    let watch = Watch::start(port);
    publish(port, topic, &description("1"));
    assert_eq!(read_line(&mut master), "heater=1\n");
    master.write_all(b"temperature=21.5\n").unwrap();
    watch.wait_for(&["$kinglet/mapper/mapper-under-test {\"alive\":true"]);
    watch.wait_for(&["default/s/state/update", "\"state\":\"online\""]);
    watch.wait_for(&[
        "$hw/events/device/default/s/twin/update",
        "\"temperature\":{\"actual\":{\"value\":\"21.5\"",
    ]);
    publish(port, topic, &description("0"));
    assert_eq!(read_line(&mut master), "heater=0\n");
    watch.wait_for(&["\"heater\":{\"actual\":{\"value\":\"0\""]);
    drop((watch, broker));
    master.write_all(b"temperature=30\n").unwrap();
    // A new broker that knows nothing: the last values are told again, the device was never closed.
    let _broker = Mosquitto::start(port);
    let watch = Watch::start(port);
    watch.wait_for(&["\"temperature\":{\"actual\":{\"value\":\"30\""]);
    publish(
        port,
        "$kinglet/mapper/gpio/device/default/g",
        r#"{"device":{"metadata":{"name":"g"},"spec":{"protocol":{"protocolName":"gpio","configData":{"chip":"none"}},"properties":[{"name":"x","visitors":{"configData":{"line":1}}}]}}}"#,
    );
    watch.wait_for(&["default/g/state/update", "offline", "no GPIO chip with the label none"]);
    // Its end is said by the broker.
    stop.store(true, Ordering::Relaxed);
    mapper.join().unwrap();
    watch.wait_for(&["$kinglet/mapper/mapper-under-test {\"alive\":false", "\"serial\""]);
}

/// The file goes with the adapter and comes back with it; nobody restarts anything.
#[test]
fn an_adapter_that_is_unplugged_and_plugged_in_again() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // Device files are below /dev; a link there is what udev makes, too.
    let dir = tempfile::Builder::new().prefix("kinglet-hot-plug-").tempdir_in("/dev/shm").unwrap();
    let link = dir.path().join("usb-adapter");
    let plug = || {
        let pty = nix::pty::openpty(None, None).unwrap();
        let path = nix::unistd::ttyname(&pty.slave).unwrap();
        // As it is with udev: the link appears whole.
        std::os::unix::fs::symlink(path, dir.path().join("new")).unwrap();
        std::fs::rename(dir.path().join("new"), &link).unwrap();
        (File::from(pty.master), pty.slave)
    };
    let stop = Arc::new(AtomicBool::new(false));
    let settings = Settings {
        broker: format!("127.0.0.1:{port}"),
        username: None,
        password: None,
        lines_socket: "/nonexistent/lines.sock".into(),
        client_id: "mapper-under-test".into(),
    };
    let mapper = {
        let (stop, folder) = (stop.clone(), dir.path().to_owned());
        thread::spawn(move || {
            let engine = Engine::new(Box::new(KernelOpener::new(&settings.lines_socket)));
            let mut mapper = Loop::new(&settings, engine);
            mapper.hot_plug = HotPlug::new(&[folder.as_path()]);
            mapper.run(|| stop.load(Ordering::Relaxed)).unwrap();
        })
    };
    let _broker = Mosquitto::start(port);
    let watch = Watch::start(port);
    let path = link.display();
    let description = format!(
        r#"{{"device":{{"metadata":{{"name":"s","namespace":"default"}},"spec":{{"protocol":{{"protocolName":"serial","configData":{{"path":"{path}"}}}},"properties":[{{"name":"t","visitors":{{"configData":{{}}}}}},{{"name":"heater","desired":{{"value":"1"}},"visitors":{{"configData":{{"write":"heater={{}}"}}}}}}]}}}}}}"#
    );
    publish(port, "$kinglet/mapper/serial/device/default/s", &description);
    watch.wait_for(&["default/s/state/update", "\"offline\"", "plug the device in"]);
    for value in ["1", "2", "3"] {
        let (mut master, slave) = plug();
        assert_eq!(read_line(&mut master), "heater=1\n", "desired values are written again");
        watch.wait_for(&["default/s/state/update", "\"online\""]);
        master.write_all(format!("t={value}\n").as_bytes()).unwrap();
        watch.wait_for(&["twin/update", &format!("\"t\":{{\"actual\":{{\"value\":\"{value}\"")]);
        std::fs::remove_file(&link).unwrap();
        drop((master, slave));
        watch.wait_for(&["default/s/state/update", "\"offline\"", "plug"]);
    }
    stop.store(true, Ordering::Relaxed);
    mapper.join().unwrap();
}

/// A meter and a valve behind one address: from the description to the registers and back to the twin.
#[test]
fn a_modbus_device_over_mosquitto() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (slave, storage) = crate::modbus::tests::slave();
    storage.lock().unwrap().inputs[342] = 215;
    let stop = Arc::new(AtomicBool::new(false));
    let settings = Settings {
        broker: format!("127.0.0.1:{port}"),
        username: None,
        password: None,
        lines_socket: "/nonexistent/lines.sock".into(),
        client_id: "mapper-under-test".into(),
    };
    let mapper = {
        let stop = stop.clone();
        thread::spawn(move || {
            let engine = Engine::new(Box::new(KernelOpener::new(&settings.lines_socket)));
            Loop::new(&settings, engine).run(|| stop.load(Ordering::Relaxed)).unwrap();
        })
    };
    let _broker = Mosquitto::start(port);
    let watch = Watch::start(port);
    let description = |valve: &str| {
        serde_json::json!({"version": 1, "device": {"metadata": {"name": "m", "namespace": "default"}, "spec": {
            "protocol": {"protocolName": "modbus", "configData": {"ip": "127.0.0.1", "port": slave, "slaveID": "1"}},
            "properties": [
                {"name": "voltage", "collectCycle": 100, "visitors": {"configData": {"register": "InputRegister", "offset": "342", "limit": 1, "scale": 0.1}}},
                {"name": "valve", "desired": {"value": valve}, "visitors": {"configData": {"register": "CoilRegister", "offset": 9, "limit": 1}}}]}},
            "model": {"spec": {"properties": [{"name": "voltage", "type": "FLOAT"}, {"name": "valve", "type": "BOOLEAN", "accessMode": "ReadWrite"}]}}})
        .to_string()
    };
    let topic = "$kinglet/mapper/modbus/device/default/m";
    publish(port, topic, &description("true"));
    watch.wait_for(&["default/m/state/update", "\"online\""]);
    watch.wait_for(&["twin/update", "\"valve\":{\"actual\":{\"value\":\"true\""]);
    assert!(storage.lock().unwrap().coils[9]);
    storage.lock().unwrap().inputs[342] = 221;
    watch.wait_for(&["twin/update", "\"voltage\":{\"actual\":{\"value\":\"22.1\"", "\"good\""]);
    publish(port, topic, &description("false"));
    watch.wait_for(&["twin/update", "\"valve\":{\"actual\":{\"value\":\"false\""]);
    assert!(!storage.lock().unwrap().coils[9]);
    publish(port, topic, &description("open"));
    watch.wait_for(&["default/m/state/update", "unhealthy", "is no BOOLEAN; write true or false"]);
    stop.store(true, Ordering::Relaxed);
    mapper.join().unwrap();
}
