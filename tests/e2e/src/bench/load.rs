//! `cargo xtask bench load`: edgecore under the standard load of the design (section 5): 20 pods, 50 MQTT devices that report every
//! second, 500 cached objects. Resident memory, CPU and bytes written.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Bench, IDLE, IDLE_THREADS, Line, SETTLE, beside, cpu_s, line, pod};
use crate::{
    Programs,
    containerd::Containerd,
    host::NODE,
    process::proc_status_kb,
    steps::{Steps, wait_until},
};

const DEVICES: usize = 50;
/// With 20 pods, 50 devices and their model: 500 objects and a little more (service account tokens, the root CA).
const CONFIG_MAPS_PER_POD: usize = 22;
const REPORT_EVERY: Duration = Duration::from_secs(1);
const LOADED_FOR: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(10);

pub fn load(programs: &Programs, dir: &Path, steps: &mut Steps) -> Result<Vec<Line>> {
    let bench = Bench::start(programs, dir, Containerd::start_in, steps)?;
    thread::sleep(SETTLE);
    let empty = bench.rss_kb()?;
    steps.step("20 pods with 22 config maps each", || {
        let maps = (0..IDLE).flat_map(|pod| (0..CONFIG_MAPS_PER_POD).map(move |map| config_map(pod, map)));
        bench.apply(maps.collect())?;
        bench.apply((0..IDLE).map(pod_with_maps).collect())?;
        wait_until(Duration::from_secs(300), "all pods Running", || {
            let pods = bench.kubectl.json(&["get", "pods"])?;
            let running = pods["items"].as_array().into_iter().flatten();
            Ok((running.filter(|pod| pod["status"]["phase"] == "Running").count() == IDLE).then_some(()))
        })
    })?;
    let (sensors, _) = steps.step("50 devices report every second", || {
        bench.apply(std::iter::once(model()).chain((0..DEVICES).map(device)).collect())?;
        let sensors = Sensors::start(&bench)?;
        wait_until(Duration::from_secs(120), "every device's value in the cloud", || {
            let told = bench.kubectl.json(&["get", "devicestatuses"])?;
            let told = told["items"].as_array().into_iter().flatten();
            let told = told.filter(|status| status["status"]["twins"][0]["reported"]["value"].is_string());
            Ok((told.count() == DEVICES).then_some(()))
        })?;
        Ok(sensors)
    })?;
    thread::sleep(IDLE_THREADS);
    let before = (cpu_s(bench.pid()?)?, bench.containerd_cpu_s()?, written(bench.pid()?)?, sensors.reports());
    steps.step("two minutes of it", || {
        thread::sleep(LOADED_FOR);
        Ok(())
    })?;
    let seconds = LOADED_FOR.as_secs_f64();
    let cpu = (cpu_s(bench.pid()?)? - before.0, bench.containerd_cpu_s()? - before.1);
    let reports = sensors.reports() - before.3;
    ensure!(reports as f64 > 0.8 * DEVICES as f64 * seconds, "only {reports} reports were acknowledged");
    let containerd = bench.containerd_rss_kb()?;
    let name = "containerd";
    let mut lines = vec![
        beside("resident, nothing to do", "kB", empty, containerd, "containerd, 20 pods"),
        beside("resident under the standard load", "kB", bench.rss_kb()?, containerd, name),
        line("  largest since the start", "kB", proc_status_kb(bench.pid()?, "VmHWM")? as f64),
        beside("CPU of one core", "%", 100.0 * cpu.0 / seconds, 100.0 * cpu.1 / seconds, name),
        line("reports of devices, acknowledged", "1/s", reports as f64 / seconds),
    ];
    let bytes = (written(bench.pid()?)? - before.2) as f64;
    lines.push(line("written to the disk", "MB/day", bytes * 86_400.0 / seconds / 1e6));
    Ok(lines)
}

impl Bench {
    fn apply(&self, items: Vec<Value>) -> Result<()> {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        self.kubectl.apply_text(self.node.root(), &list.to_string()).map(drop)
    }
}

fn config_map(pod: usize, map: usize) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": format!("settings-{pod}-{map}") },
        "data": { "settings": format!("level = {map}\nname = \"{}\"\n", "line ".repeat(20)) } })
}

fn pod_with_maps(number: usize) -> Value {
    let mut pod = pod(&format!("load-{number}"), json!(["sleep", "100000"]), "Always");
    let maps = (0..CONFIG_MAPS_PER_POD).map(|map| {
        let items = [json!({ "key": "settings", "path": format!("{map}.toml") })];
        json!({ "configMap": { "name": format!("settings-{number}-{map}"), "items": items } })
    });
    pod["spec"]["volumes"] =
        json!([{ "name": "settings", "projected": { "sources": maps.collect::<Vec<_>>() } }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "settings", "mountPath": "/settings" }]);
    pod
}

fn model() -> Value {
    json!({ "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceModel", "metadata": { "name": "sensor" },
        "spec": { "protocol": "mine", "properties": [
            { "name": "temperature", "type": "FLOAT", "accessMode": "ReadOnly" }] } })
}

fn device(number: usize) -> Value {
    json!({ "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device", "metadata": { "name": format!("sensor-{number}") },
        "spec": { "deviceModelRef": { "name": "sensor" }, "nodeName": NODE, "protocol": { "protocolName": "mine" },
            "properties": [{ "name": "temperature", "reportToCloud": true, "visitors": { "protocolName": "mine" } }] } })
}

/// Bytes that a process sent to its disks.
fn written(pid: u32) -> Result<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let bytes = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    bytes.and_then(|bytes| bytes.parse().ok()).context("/proc/PID/io has no write_bytes")
}

/// One MQTT connection for each device, all by one thread in the node's network.
struct Sensors {
    end: Arc<AtomicBool>,
    reports: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Sensors {
    fn start(bench: &Bench) -> Result<Sensors> {
        let port = bench.node.broker_port();
        let (end, reports) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let namespace = fs::File::open(format!("/proc/{}/ns/net", bench.node.containerd.inside()?))?;
        let (stop, count) = (end.clone(), reports.clone());
        let thread = thread::spawn(move || {
            // What goes wrong shows as reports that are missing.
            if let Err(error) = report(namespace, port, &stop, &count) {
                eprintln!("the sensors ended: {error:#}");
            }
        });
        Ok(Sensors { end, reports, thread: Some(thread) })
    }

    fn reports(&self) -> u64 {
        self.reports.load(Ordering::Relaxed)
    }
}

impl Drop for Sensors {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn report(namespace: fs::File, port: u16, end: &AtomicBool, reports: &AtomicU64) -> Result<()> {
    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
    let mut connections = Vec::new();
    for number in 0..DEVICES {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&connect(&format!("sensor-{number}")))?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).context("CONNACK")?;
        ensure!(answer == [0x20, 2, 0, 0], "the broker refuses: {answer:?}");
        connections.push(stream);
    }
    let mut round = 0_u32;
    while !end.load(Ordering::Relaxed) {
        let began = Instant::now();
        round += 1;
        for (number, stream) in connections.iter_mut().enumerate() {
            let value = f64::from(round % 100) / 10.0 + number as f64;
            let payload = json!({ "twin": { "temperature": { "actual": { "value": value.to_string() } } } });
            let topic = format!("$hw/events/device/default/sensor-{number}/twin/update");
            stream.write_all(&publish(&topic, payload.to_string().as_bytes()))?;
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).context("PUBACK")?;
            ensure!(answer[0] == 0x40, "not a PUBACK: {answer:?}");
            reports.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(REPORT_EVERY.saturating_sub(began.elapsed()));
    }
    Ok(())
}

/// CONNECT of MQTT 3.1.1, clean session, keep-alive 60 s.
fn connect(client: &str) -> Vec<u8> {
    let mut body = b"\x00\x04MQTT\x04\x02\x00\x3c".to_vec();
    text(&mut body, client);
    packet(0x10, &body)
}

/// PUBLISH at QoS 1. One is under way at a time, so that its id may always be 1.
fn publish(topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, topic);
    body.extend([0, 1]);
    body.extend(payload);
    packet(0x32, &body)
}

fn text(body: &mut Vec<u8>, text: &str) {
    body.extend((text.len() as u16).to_be_bytes());
    body.extend(text.as_bytes());
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    assert!(body.len() < 16_384, "two bytes of length are enough here");
    let mut packet = vec![first, body.len() as u8 & 0x7f | 0x80, (body.len() >> 7) as u8];
    packet.extend(body);
    packet
}
