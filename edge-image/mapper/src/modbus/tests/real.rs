//! Real sockets and terminals; the slave is a thread with rmodbus.

use std::{
    fs::File,
    io::{Read, Write},
    net::TcpListener,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::openpty,
};
use rmodbus::guess_request_frame_len;

use super::*;
use crate::{
    driver::{Driver, Quality, Reading},
    modbus::{Lines, ModbusDriver},
    monotonic_ms,
    plan::Protocol,
};

const DEADLINE: Duration = Duration::from_secs(20);

fn open(plan: &Plan, name: &str, lines: &mut Lines) -> Result<ModbusDriver, String> {
    let Protocol::Modbus(slave) = &plan.protocol else { panic!() };
    ModbusDriver::open(monotonic_ms(), name, slave, &plan.properties, lines)
}

/// Runs drivers as the loop does, until the readings are what is waited for or a driver fails.
fn drive(
    drivers: &mut [&mut ModbusDriver],
    mut enough: impl FnMut(&[(usize, Reading)]) -> bool,
) -> Result<Vec<(usize, Reading)>, String> {
    let started = Instant::now();
    let mut all = Vec::new();
    loop {
        assert!(started.elapsed() < DEADLINE, "only {all:?}");
        let mut waits = Vec::new();
        drivers.iter().for_each(|driver| driver.waits(&mut waits));
        let now_ms = monotonic_ms();
        let due_ms = drivers.iter().filter_map(|driver| driver.deadline_ms()).min().unwrap_or(now_ms + 50);
        #[allow(unsafe_code)]
        // SAFETY: the drivers own these descriptors and live through the poll.
        let borrowed = |fd| unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let mut fds: Vec<PollFd<'_>> = waits
            .iter()
            .map(|wait| {
                let write = if wait.write { PollFlags::POLLOUT } else { PollFlags::empty() };
                PollFd::new(borrowed(wait.fd), PollFlags::POLLIN | write)
            })
            .collect();
        poll(&mut fds, PollTimeout::from(due_ms.saturating_sub(now_ms).min(50) as u16)).unwrap();
        for (at, driver) in drivers.iter_mut().enumerate() {
            let mut readings = Vec::new();
            driver.ready(monotonic_ms(), &mut readings)?;
            all.extend(readings.into_iter().map(|reading| (at, reading)));
        }
        if enough(&all) {
            return Ok(all);
        }
    }
}

/// Serves one stream until it ends. The first unit that answers speaks.
fn answer(mut stream: impl Read + Write, proto: ModbusProto, units: &[(u8, Storage)]) {
    let mut buffer: Vec<u8> = Vec::new();
    let mut piece = [0; 256];
    while let Ok(len @ 1..) = stream.read(&mut piece) {
        buffer.extend_from_slice(&piece[..len]);
        let least = if proto == ModbusProto::Rtu { 8 } else { 7 };
        while buffer.len() >= least {
            let Ok(len) = guess_request_frame_len(&buffer, proto) else { return };
            let len = usize::from(len);
            if buffer.len() < len {
                break;
            }
            let request: Vec<u8> = buffer.drain(..len).collect();
            if let Some(said) =
                units.iter().find_map(|(unit, storage)| serve(*unit, proto, storage, &request))
                && stream.write_all(&said).is_err()
            {
                return;
            }
        }
    }
}

pub fn served(proto: ModbusProto, units: Vec<(u8, Storage)>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let units = units.clone();
            std::thread::spawn(move || answer(stream, proto, &units));
        }
    });
    port
}

fn has(all: &[(usize, Reading)], driver: usize, property: usize, value: &str) -> bool {
    all.iter()
        .any(|(at, reading)| (*at, reading.property, reading.value.as_str()) == (driver, property, value))
}

fn over_tcp(proto: ModbusProto, mode: &str) {
    let storages: [Storage; 2] = Default::default();
    storages[0].lock().unwrap().inputs[0] = 215;
    storages[1].lock().unwrap().inputs[0] = 1;
    let port = served(proto, vec![(1, storages[0].clone()), (2, storages[1].clone())]);
    let plan = |unit: u8, desired: Option<&str>| {
        plan_of(
            json!({"ip": "127.0.0.1", "port": port.to_string(), "slaveID": unit, "transmissionMode": mode}),
            &[
                (
                    "temperature",
                    "FLOAT",
                    json!({"register": "InputRegister", "offset": 0, "limit": 1, "scale": 0.1}),
                    None,
                ),
                ("valve", "BOOLEAN", json!({"register": "CoilRegister", "offset": 7, "limit": 1}), desired),
                (
                    "setpoint",
                    "FLOAT",
                    json!({"register": "HoldingRegister", "offset": 2, "limit": 2, "isRegisterSwap": true}),
                    desired.map(|_| "21.5"),
                ),
            ],
        )
    };
    let mut lines = Lines::default();
    let mut one = open(&plan(1, Some("true")), "default/one", &mut lines).unwrap();
    let mut two = open(&plan(2, None), "default/two", &mut lines).unwrap();
    drive(&mut [&mut one, &mut two], |all| {
        has(all, 0, 0, "21.5") && has(all, 0, 1, "true") && has(all, 0, 2, "21.5") && has(all, 1, 0, "0.1")
    })
    .unwrap();
    {
        let storage = storages[0].lock().unwrap();
        assert_eq!((storage.coils[7], storage.holdings[3], storage.holdings[2]), (true, 0x41ac, 0));
        assert!(!storages[1].lock().unwrap().coils[7]);
    }
    storages[0].lock().unwrap().inputs[0] = 222;
    one.set(monotonic_ms(), 1, "false", &mut Vec::new()).unwrap();
    drive(&mut [&mut one, &mut two], |all| has(all, 0, 0, "22.2") && has(all, 0, 1, "false")).unwrap();
    assert!(!storages[0].lock().unwrap().coils[7] && one.complaint().is_none());
    drop(one);
    storages[1].lock().unwrap().inputs[0] = 2;
    drive(&mut [&mut two], |all| has(all, 0, 0, "0.2")).unwrap();
}

#[test]
fn two_units_behind_one_address() {
    over_tcp(ModbusProto::TcpUdp, "TCP");
}

#[test]
fn rtu_through_a_tcp_gateway() {
    over_tcp(ModbusProto::Rtu, "RTUoverTCP");
}

/// A terminal whose far end is a slave; ends when the returned slave side and the driver are gone.
fn rtu_line(units: Vec<(u8, Storage)>) -> (String, OwnedFd) {
    let pty = openpty(None, None).unwrap();
    let path = nix::unistd::ttyname(&pty.slave).unwrap().to_string_lossy().into_owned();
    let far = File::from(pty.master);
    std::thread::spawn(move || answer(far, ModbusProto::Rtu, &units));
    (path, pty.slave)
}

fn rtu_plan(path: &str, unit: u8, baud: u32) -> Plan {
    plan_of(
        json!({"serialPort": path, "slaveID": unit, "baudRate": baud, "timeoutMs": 500, "maxGap": 4}),
        &[
            ("power", "INT", json!({"register": "HoldingRegister", "offset": 0, "limit": 1}), None),
            ("energy", "INT", json!({"register": "HoldingRegister", "offset": 3, "limit": 2}), Some("70000")),
        ],
    )
}

#[test]
fn two_slaves_on_one_serial_line() {
    let storages: [Storage; 2] = Default::default();
    storages[0].lock().unwrap().holdings[0] = 11;
    storages[1].lock().unwrap().holdings[0] = 22;
    let (path, _slave) = rtu_line(vec![(1, storages[0].clone()), (5, storages[1].clone())]);
    let mut lines = Lines::default();
    let mut one = open(&rtu_plan(&path, 1, 9600), "default/one", &mut lines).unwrap();
    let mut five = open(&rtu_plan(&path, 5, 9600), "default/five", &mut lines).unwrap();
    drive(&mut [&mut one, &mut five], |all| {
        has(all, 0, 0, "11") && has(all, 1, 0, "22") && has(all, 0, 1, "70000") && has(all, 1, 1, "70000")
    })
    .unwrap();
    assert_eq!(storages[1].lock().unwrap().holdings[3..5], [1, 4464]);
    let Err(error) = open(&rtu_plan(&path, 6, 19_200), "default/six", &mut lines) else { panic!() };
    assert!(error.contains("is open for default/one with other settings"), "{error}");
    // The adapter is unplugged, and comes back.
    let moved = rtu_line(vec![(1, storages[0].clone())]);
    drop((one, five));
    let mut again = open(&rtu_plan(&moved.0, 1, 9600), "default/one", &mut lines).unwrap();
    drive(&mut [&mut again], |all| has(all, 0, 0, "11")).unwrap();
}

#[test]
fn an_unplugged_adapter_fails_every_device_on_it() {
    let pty = openpty(None, None).unwrap();
    let path = nix::unistd::ttyname(&pty.slave).unwrap().to_string_lossy().into_owned();
    let mut lines = Lines::default();
    let mut one = open(&rtu_plan(&path, 1, 9600), "default/one", &mut lines).unwrap();
    let mut two = open(&rtu_plan(&path, 2, 9600), "default/two", &mut lines).unwrap();
    drop(pty);
    let error = drive(&mut [&mut one], |_| false).unwrap_err();
    assert!(error.contains(&path), "{error}");
    assert_eq!(two.deadline_ms(), Some(0), "the other one learns it at once");
    assert_eq!(two.tick(0, &mut Vec::new()), Err(error));
    let Err(error) = open(&rtu_plan(&path, 1, 9600), "default/one", &mut lines) else { panic!() };
    assert!(error.contains("cannot open"), "a dead line is not handed out: {error}");
}

/// Nobody listens, then somebody does, breaks off in the middle of a request, and is there again: the driver stays open.
#[test]
fn connections_are_made_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let plan = plan_of(
        json!({"ip": "127.0.0.1", "port": port, "slaveID": 1}),
        &[("p", "INT", json!({"register": "input", "offset": 0}), None)],
    );
    let mut driver = open(&plan, "default/p", &mut Lines::default()).unwrap();
    drive(&mut [&mut driver], |all| all.iter().any(|(_, reading)| reading.quality == Quality::Bad)).unwrap();
    let said = driver.complaint().unwrap();
    assert!(said.contains("refused") && said.contains("check ip, port"), "{said}");
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let storage: Storage = Arc::default();
    storage.lock().unwrap().inputs[0] = 7;
    let slave = storage.clone();
    let served = std::thread::spawn(move || {
        // The first is closed when it has asked; the second, after three answers.
        let (mut first, _) = listener.accept().unwrap();
        first.read_exact(&mut [0; 12]).unwrap();
        drop(first);
        let (mut second, _) = listener.accept().unwrap();
        for _ in 0..3 {
            let mut request = [0; 12];
            second.read_exact(&mut request).unwrap();
            let answer = serve(1, ModbusProto::TcpUdp, &slave, &request).unwrap();
            second.write_all(&answer).unwrap();
        }
        drop(second);
        answer(listener.accept().unwrap().0, ModbusProto::TcpUdp, &[(1, slave)]);
    });
    drive(&mut [&mut driver], |all| has(all, 0, 0, "7")).unwrap();
    assert_eq!(driver.complaint(), None);
    // Five values are more than the second connection's three answers.
    for value in [8, 9, 10, 11] {
        storage.lock().unwrap().inputs[0] = value;
        drive(&mut [&mut driver], |all| has(all, 0, 0, &value.to_string())).unwrap();
    }
    assert!(!served.is_finished(), "the third connection serves");
}
