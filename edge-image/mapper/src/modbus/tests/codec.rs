//! Requests, frames, merging and values, by examples.

use mqtt::broker::testing::Random;
use serde_json::json;

use super::*;
use crate::{
    modbus::{
        adu::{self, Found, Framing, Receiver, crc16},
        fuzz_modbus,
        merge::{Merging, Read, Span, merge},
        pdu::{Answer, Exception, Refusal, Request, Table},
        value::Encoding,
    },
    plan::Access,
};

fn read(table: Table, address: u16, count: u16) -> Request {
    Request::Read { table, address, count }
}

/// The frames of the specification's examples (Modbus Application Protocol V1.1b3, section 6), and what they mean.
#[test]
fn requests_and_answers_of_the_specification() {
    let cases: [(Request, &[u8], &[u8], Answer); 8] = [
        (
            read(Table::Coils, 0x13, 0x13),
            &[1, 0, 0x13, 0, 0x13],
            &[1, 3, 0xcd, 0x6b, 5],
            Answer::Bits("1011001111010110101".chars().map(|bit| bit == '1').collect()),
        ),
        (
            read(Table::DiscreteInputs, 0xc4, 3),
            &[2, 0, 0xc4, 0, 3],
            &[2, 1, 5],
            Answer::Bits(vec![true, false, true]),
        ),
        (
            read(Table::Holding, 0x6b, 3),
            &[3, 0, 0x6b, 0, 3],
            &[3, 6, 2, 0x2b, 0, 0, 0, 0x64],
            Answer::Registers(vec![555, 0, 100]),
        ),
        (read(Table::Input, 8, 1), &[4, 0, 8, 0, 1], &[4, 2, 0, 10], Answer::Registers(vec![10])),
        (
            Request::WriteCoils { address: 0xac, values: vec![true] },
            &[5, 0, 0xac, 0xff, 0],
            &[5, 0, 0xac, 0xff, 0],
            Answer::Written,
        ),
        (
            Request::WriteRegisters { address: 1, values: vec![3], multiple: false },
            &[6, 0, 1, 0, 3],
            &[6, 0, 1, 0, 3],
            Answer::Written,
        ),
        (
            Request::WriteCoils {
                address: 0x13,
                values: [1, 0, 1, 1, 0, 0, 1, 1, 1, 0].map(|bit| bit == 1).to_vec(),
            },
            &[15, 0, 0x13, 0, 10, 2, 0xcd, 1],
            &[15, 0, 0x13, 0, 10],
            Answer::Written,
        ),
        (
            Request::WriteRegisters { address: 1, values: vec![10, 0x102], multiple: false },
            &[16, 0, 1, 0, 2, 4, 0, 10, 1, 2],
            &[16, 0, 1, 0, 2],
            Answer::Written,
        ),
    ];
    for (request, sent, answered, meant) in cases {
        assert_eq!(request.encode().unwrap(), sent);
        assert_eq!(request.decode(answered), Ok(meant), "{request:?}");
        assert_eq!(request.decode(&answered[..answered.len() - 1]), Err(Refusal::Wrong));
        assert_eq!(request.decode(&[sent[0] | 0x80, 2]), Err(Refusal::Exception(Exception(2))));
        let mut other = answered.to_vec();
        other[1] ^= 1;
        assert_eq!(request.decode(&other), Err(Refusal::Wrong), "another count or address");
    }
    for request in [
        read(Table::Holding, 0, 126),
        read(Table::Coils, 0, 2001),
        read(Table::Input, 0, 0),
        Request::WriteRegisters { address: 0, values: vec![0; 124], multiple: true },
        Request::WriteCoils { address: 0, values: vec![true; 1969] },
    ] {
        assert_eq!(request.encode(), None, "{request:?}");
    }
    let long = Request::WriteRegisters { address: 0, values: vec![0; 123], multiple: true };
    assert_eq!(long.encode().unwrap().len(), 252);
}

#[test]
fn frames_are_found_in_noise() {
    assert_eq!(crc16(b"123456789"), 0x4b37);
    let request = read(Table::Input, 8, 1);
    let frame = adu::encode(Framing::Rtu, 0, 0x11, &request).unwrap();
    assert_eq!(frame[..6], [0x11, 4, 0, 8, 0, 1]);
    let mut answer = vec![0x11, 4, 2, 0, 10];
    answer.extend_from_slice(&crc16(&answer).to_le_bytes());
    let found = |bytes: &[u8]| Receiver::default().feed(bytes, Framing::Rtu, 0, 0x11, &request);
    assert_eq!(found(&answer), Found::Answer(vec![4, 2, 0, 10]));
    // Noise, the beginning of an answer that never ended, the echo of the request, another unit's answer.
    for before in [&[0xff, 0x11, 4, 2, 9][..], &[0x11, 4, 2], &frame, &[0x12, 4, 2, 0, 9, 1, 2], &[0; 600]] {
        assert_eq!(found(&[before, &answer].concat()), Found::Answer(vec![4, 2, 0, 10]), "{before:?}");
    }
    assert_eq!(found(&answer[..6]), Found::Nothing);
    for at in 0..answer.len() {
        let mut spoilt = answer.clone();
        spoilt[at] ^= 4;
        assert_eq!(found(&spoilt), Found::Nothing, "byte {at}");
    }
    let tcp = |bytes: &[u8]| Receiver::default().feed(bytes, Framing::Tcp, 7, 0x11, &request);
    let answer = [0, 7, 0, 0, 0, 5, 0x11, 4, 2, 0, 10];
    assert_eq!(tcp(&answer), Found::Answer(vec![4, 2, 0, 10]));
    let late = [0, 6, 0, 0, 0, 5, 0x11, 4, 2, 0, 99];
    assert_eq!(tcp(&[&late[..], &answer].concat()), Found::Answer(vec![4, 2, 0, 10]));
    assert_eq!(tcp(b"HTTP/1.1 400 Bad Request"), Found::Broken);
}

/// The frame's form is that of the specification's section 2.5.2.1; its sum makes all bytes zero (6.2.1).
#[test]
fn ascii_frames() {
    let request = read(Table::Input, 8, 1);
    let frame = adu::encode(Framing::Ascii, 0, 0x11, &request).unwrap();
    assert_eq!(&frame[..], b":110400080001E2\r\n");
    assert_eq!(frame.len(), Framing::Ascii.wire_len(5));
    let found = |bytes: &[u8]| Receiver::default().feed(bytes, Framing::Ascii, 0, 0x11, &request);
    let answer = b":110402000ADF\r\n";
    assert_eq!(found(answer), Found::Answer(vec![4, 2, 0, 10]));
    assert_eq!(found(b":11840269\r\n"), Found::Answer(vec![0x84, 2]));
    for before in [&frame[..], b":1104", b":120402000ADE\r\n", b"\xff:\r\n:zz\r\n", &[b':'; 700]] {
        assert_eq!(found(&[before, answer].concat()), Found::Answer(vec![4, 2, 0, 10]), "{before:?}");
    }
    assert_eq!(found(&answer[..13]), Found::Nothing);
    for at in 0..13 {
        let mut spoilt = answer.to_vec();
        spoilt[at] ^= 1;
        assert_eq!(found(&spoilt), Found::Nothing, "byte {at}");
    }
    let most = Request::WriteRegisters { address: 0, values: vec![7; 123], multiple: true };
    assert_eq!(adu::encode(Framing::Ascii, 0, 1, &most).unwrap().len(), Framing::Ascii.wire_len(252));
}

/// Telegraf's words for how requests are merged.
#[test]
fn telegrafs_words_for_merging() {
    let of = |mut config: Value| {
        config["ip"] = json!("127.0.0.1");
        let plan = plan_of(config, &[]);
        let plan::Protocol::Modbus(slave) = plan.protocol else { panic!() };
        slave.merging
    };
    assert_eq!(of(json!({})), Merging::default());
    assert_eq!(of(json!({"optimization": "rearrange"})), Merging::default());
    assert_eq!(of(json!({"optimization": "max_insert"})).gap_max, 50);
    let filled = json!({"optimization": "max_insert", "optimization_max_register_fill": 7});
    assert_eq!(of(filled).gap_max, 7);
    assert_eq!(of(json!({"optimization": "aggressive"})).gap_max, 120);
    assert!(!of(json!({"one_request_per_field": true})).enabled);
    let few = of(json!({"max_word_registers_per_request": 10, "max_bit_registers_per_request": 16}));
    assert_eq!((few.registers_max, few.bits_max), (10, 16));
    let coils = |merging| {
        let span = |address, count| Span { table: Table::Coils, address, count };
        merge(vec![(0, span(3, 1)), (1, span(20, 1))], merging)
            .iter()
            .map(|read| (read.span.address, read.span.count))
            .collect::<Vec<_>>()
    };
    assert_eq!(coils(few), [(3, 1), (20, 1)]);
    let from_zero = of(json!({"read_coils_starting_at_zero": true}));
    assert_eq!(coils(from_zero), [(0, 4), (20, 1)]);
}

#[test]
fn neighbours_are_read_together() {
    let span = |table, address, count| Span { table, address, count };
    let wanted = || {
        vec![
            (0, span(Table::Holding, 10, 2)),
            (1, span(Table::Holding, 0, 2)),
            (2, span(Table::Holding, 12, 1)),
            (3, span(Table::Input, 2, 1)),
            (4, span(Table::Holding, 15, 1)),
            (5, span(Table::Holding, 10, 1)),
        ]
    };
    let merging = Merging::default();
    let count = |merging: Merging| merge(wanted(), merging).len();
    let reads = merge(wanted(), merging);
    assert_eq!(reads[1], Read { span: span(Table::Holding, 10, 3), serves: vec![0, 5, 2] });
    assert_eq!(reads.len(), 4);
    assert_eq!(count(Merging { gap_max: 2, ..merging }), 3);
    assert_eq!(count(Merging { gap_max: 8, ..merging }), 2);
    assert_eq!(count(Merging { gap_max: 8, registers_max: 6, ..merging }), 3);
    assert_eq!(count(Merging { enabled: false, ..merging }), 6);
    let edge = merge(
        vec![(0, span(Table::Input, 65_535, 1)), (1, span(Table::Input, 0, 1))],
        Merging { gap_max: 120, ..merging },
    );
    assert_eq!(edge.len(), 2);
}

fn encoding(kind: &str, config: Value) -> Encoding {
    let mut config = config;
    config["register"] = json!("holding");
    config["offset"] = json!(0);
    let plan = plan_of(json!({"ip": "127.0.0.1"}), &[("p", kind, config, None)]);
    let Access::Register(register) = &plan.properties[0].access else { panic!() };
    register.encoding.clone()
}

/// Data types, byte orders and scales, both ways; the numbers are those of the standards' own examples.
#[test]
fn values_both_ways() {
    let f = |value: f32| [(value.to_bits() >> 16) as u16, value.to_bits() as u16];
    let cases: [(&str, Value, &[u16], &str); 38] = [
        ("INT", json!({}), &[0xfffe], "-2"),
        ("INT", json!({"dataType": "UINT16"}), &[0xfffe], "65534"),
        ("INT", json!({"isSwap": "true"}), &[0x0100], "1"),
        ("INT", json!({"limit": "2"}), &[0x0001, 0x0002], "65538"),
        ("INT", json!({"limit": 2, "isRegisterSwap": true}), &[0x0002, 0x0001], "65538"),
        ("INT", json!({"dataType": "INT32", "byteOrder": "DCBA"}), &[0x0200, 0x0100], "65538"),
        ("INT", json!({"dataType": "INT32", "byteOrder": "BADC"}), &[0x0100, 0x0200], "65538"),
        ("INT", json!({"data_type": "int32", "byte_order": "CDAB"}), &[0x0002, 0x0001], "65538"),
        ("INT", json!({"dataType": "INT64"}), &[0xffff, 0xffff, 0xffff, 0xfffe], "-2"),
        ("STRING", json!({"dataType": "UINT64"}), &[0xffff, 0xffff, 0xffff, 0xffff], "18446744073709551615"),
        ("FLOAT", json!({}), &f(21.3), "21.3"),
        (
            "FLOAT",
            json!({"dataType": "FLOAT32-IEEE", "byteOrder": "CDAB"}),
            &[f(-0.5)[1], f(-0.5)[0]],
            "-0.5",
        ),
        ("DOUBLE", json!({}), &[0x4009, 0x21fb, 0x5444, 0x2d18], "3.14159265359"),
        ("FLOAT", json!({"limit": 1, "scale": "0.1"}), &[215], "21.5"),
        ("FLOAT", json!({"limit": 1, "scale": 0.1}), &[3], "0.3"),
        ("FLOAT", json!({"dataType": "FIXED", "limit": 2, "scale": 0.001}), &[0xffff, 0xff85], "-0.123"),
        ("INT", json!({"dataType": "UFIXED", "scale": 10}), &[7], "70"),
        ("INT", json!({"scale": 0.1}), &[215], "22"),
        ("BOOLEAN", json!({}), &[1], "true"),
        ("BOOLEAN", json!({"bit": 3}), &[8], "true"),
        ("INT", json!({"bit": 3}), &[7], "0"),
        ("INT", json!({"dataType": "INT8H"}), &[0xff01], "-1"),
        ("INT", json!({"dataType": "UINT8L"}), &[0x01ff], "255"),
        ("INT", json!({"dataType": "INT8L"}), &[0x01fe], "-2"),
        ("INT", json!({"dataType": "UINT8H", "byteOrder": "BA"}), &[0x01ff], "255"),
        ("FLOAT", json!({"dataType": "FLOAT16-IEEE"}), &[0x3555], "0.3333"),
        ("FLOAT", json!({"dataType": "FLOAT16", "byteOrder": "DCBA"}), &[0x00c0], "-2"),
        ("FLOAT", json!({"dataType": "FLOAT16", "scale": 0.5}), &[0x7bff], "32750"),
        (
            "FLOAT",
            json!({"dataType": "FLOAT32-IEEE", "byteOrder": "BADC"}),
            &[f(1.5)[0].swap_bytes(), f(1.5)[1].swap_bytes()],
            "1.5",
        ),
        (
            "FLOAT",
            json!({"dataType": "FLOAT32-IEEE", "byteOrder": "DCBA"}),
            &[f(1.5)[1].swap_bytes(), f(1.5)[0].swap_bytes()],
            "1.5",
        ),
        ("INT", json!({"dataType": "INT64", "byteOrder": "GHEFCDAB"}), &[4, 3, 2, 1], "281483566841860"),
        (
            "INT",
            json!({"dataType": "INT64", "byteOrder": "HGFEDCBA"}),
            &[0x0400, 0x0300, 0x0200, 0x0100],
            "281483566841860",
        ),
        (
            "INT",
            json!({"dataType": "UINT64", "byteOrder": "BADCFEHG"}),
            &[0x0100, 0x0200, 0x0300, 0x0400],
            "281483566841860",
        ),
        ("STRING", json!({"limit": 3}), &[0x4142, 0x4300, 0], "ABC"),
        ("STRING", json!({"limit": 3, "string_register_location": "lower"}), &[0x41, 0x42, 0], "AB"),
        (
            "STRING",
            json!({"limit": 2, "stringRegisterLocation": "upper", "byteOrder": "BA"}),
            &[0x41, 0x42],
            "AB",
        ),
        ("BOOLEAN", json!({"dataType": "BIT", "bit": 15}), &[0x8000], "true"),
        ("BYTES", json!({"limit": 2, "isSwap": true}), &[0x0102, 0xa0b0], "0201b0a0"),
    ];
    for (kind, config, registers, text) in cases {
        let encoding = encoding(kind, config.clone());
        assert_eq!(encoding.registers_text(registers).as_deref(), Ok(text), "{kind} {config}");
        let rounded = kind == "INT" && config.get("scale") == Some(&json!(0.1));
        // Half a register and one bit cannot be written alone, and what was rounded does not come back.
        if config.get("bit").is_none() && !config.to_string().contains("INT8") && !rounded && kind != "DOUBLE"
        {
            assert_eq!(encoding.registers(text).as_deref(), Ok(registers), "{kind} {config}");
        }
    }
    let fahrenheit = encoding("FLOAT", json!({"limit": 1, "scale": 0.1, "expression": "value * 1.8 + 32"}));
    assert_eq!(fahrenheit.registers_text(&[215]).as_deref(), Ok("70.7"));
    for (config, text, expected) in [
        (json!({"dataType": "UINT16"}), "-1", "-1 does not fit UINT16, which holds 0 to 65535"),
        (json!({"dataType": "INT16"}), "32768", "32768 does not fit INT16"),
        (json!({"dataType": "INT16"}), "warm", "\"warm\" is no number"),
        (json!({"dataType": "STRING"}), "long", "longer than 2 bytes"),
        (json!({"dataType": "BYTES"}), "00zz", "is not 4 hexadecimal digits"),
        (json!({"dataType": "FLOAT16"}), "65520", "does not fit FLOAT16, which ends at 65504"),
        (json!({"dataType": "INT8L"}), "1", "half a register cannot be written"),
    ] {
        let error = encoding("INT", config).registers(text).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    assert!(encoding("FLOAT", json!({})).registers_text(&f(f32::NAN)).unwrap_err().contains("no number"));
}

#[test]
fn what_is_wrong_in_a_description_is_named() {
    let of = |config: Value, visitor: Value| {
        let description = json!({"device": {"spec": {"protocol": {"protocolName": "modbus", "configData": config},
            "properties": [{"name": "p", "visitors": {"configData": visitor}}]}}});
        plan::read(description.to_string().as_bytes()).unwrap().1
    };
    let tcp = || json!({"ip": "10.0.0.7", "port": "502", "slaveID": "3"});
    let holding = || json!({"register": "HoldingRegister", "offset": 0, "limit": 1});
    assert!(of(tcp(), holding()).is_ok());
    let rtu = json!({"com": {"serialPort": "/dev/ttyUSB0", "baudRate": "9600", "dataBits": 8, "parity": "even", "stopBits": 1}, "slaveID": 1});
    assert!(of(rtu, holding()).is_ok());
    let telegraf = json!({"controller": "file:///dev/ttyUSB0", "slave_id": 1, "baud_rate": 9600, "parity": "N", "transmission_mode": "RTU"});
    assert!(of(telegraf, holding()).is_ok());
    let through = json!({"controller": "tcp://10.0.0.7:4001", "transmissionMode": "RTUoverTCP"});
    assert!(of(through, holding()).is_ok());
    for (config, visitor, expected) in [
        (json!({}), holding(), "configData.serialPort is missing: write serialPort"),
        (json!({"ip": "meter.local"}), holding(), "configData.ip: \"meter.local\" is no IP address"),
        (json!({"ip": "1.2.3.4", "serialPort": "/dev/ttyS0"}), holding(), "are both there"),
        (json!({"serialPort": "/etc/passwd"}), holding(), "no device file"),
        (
            json!({"serialPort": "/dev/ttyS0", "slaveID": 0}),
            json!({"register": "input", "offset": 0}),
            "slaveID 0 is for all devices",
        ),
        (
            json!({"serialPort": "/dev/ttyS0", "slaveID": 0}),
            json!({"register": "holding", "offset": 0, "bit": 3}),
            "written by reading the register first",
        ),
        (json!({"ip": "1.2.3.4", "merge": true, "oneRequestPerField": false}), holding(), "keep one of them"),
        (json!({"ip": "1.2.3.4", "maxGap": 1, "optimization": "aggressive"}), holding(), "keep one of them"),
        (
            json!({"ip": "1.2.3.4", "maxBitRegistersPerRequest": 8}),
            json!({"register": "coil", "offset": 0, "limit": 9}),
            "9 are more than this device gives at once, 8",
        ),
        (
            tcp(),
            json!({"register": "holding", "offset": 0, "dataType": "INT16", "stringRegisterLocation": "upper"}),
            "only texts have it",
        ),
        (json!({"serialPort": "/dev/ttyS0", "slaveID": 248}), holding(), "slaveID: 248"),
        (
            json!({"ip": "1.2.3.4", "transmissionMode": "RTU"}),
            holding(),
            "RTU and ASCII are for a serialPort",
        ),
        (json!({"ip": "1.2.3.4", "transmissionMode": "UDP"}), holding(), "use auto, RTU, ASCII, TCP"),
        (json!({"controller": "modbus://x"}), holding(), "neither tcp://"),
        (json!({"ip": "1.2.3.4", "speed": 1}), holding(), "configData.speed: unknown field"),
        (tcp(), json!({"offset": 1}), "register is missing"),
        (
            tcp(),
            json!({"register": "HoldingRegister"}),
            "offset is missing: write the address as it goes over the wire",
        ),
        (tcp(), json!({"register": "coil", "offset": 1, "dataType": "INT16"}), "a coil is one bit"),
        (
            tcp(),
            json!({"register": "holding", "offset": 1, "dataType": "INT24"}),
            "INT24 is unknown; use INT16",
        ),
        (
            tcp(),
            json!({"register": "holding", "offset": 1, "dataType": "INT32", "limit": 1}),
            "1 does not fit the type, which takes 2",
        ),
        (tcp(), json!({"register": "holding", "offset": 65535, "dataType": "INT32"}), "go beyond 65535"),
        (
            tcp(),
            json!({"register": "holding", "offset": 1, "byteOrder": "ABCD", "isSwap": false}),
            "says what isSwap",
        ),
        (tcp(), json!({"register": "holding", "offset": 1, "scale": 0}), "0 makes every value 0"),
        (
            tcp(),
            json!({"register": "holding", "offset": 1, "expression": "value +"}),
            "expression: character 8",
        ),
    ] {
        let error = of(config, visitor).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    let refused = |kind: &str, visitor: Value, desired: &str| {
        let plan = plan_of(json!({"ip": "1.2.3.4"}), &[("p", kind, visitor, Some(desired))]);
        plan.properties[0].refused.clone().unwrap_or_default()
    };
    let input = json!({"register": "InputRegister", "offset": 0});
    assert!(refused("INT", input, "1").contains("input register is read only"));
    assert!(
        refused("INT", json!({"register": "holding", "offset": 0}), "70000").contains("does not fit INT16")
    );
    assert_eq!(refused("BOOLEAN", json!({"register": "coil", "offset": 0}), "on"), "");
}

#[test]
fn any_bytes() {
    let mut random = Random(23);
    for round in 0..4000 {
        let len = random.below(300);
        let mut data: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        if round % 2 == 0 {
            // Something like an answer.
            let mut answer =
                vec![random.next() as u8, random.next() as u8 % 4, 1, 3, 2, 0, random.next() as u8];
            let crc = crc16(&answer[2..]).to_le_bytes();
            answer.extend_from_slice(&crc);
            answer.extend_from_slice(&data);
            data = answer;
        }
        fuzz_modbus(&data);
    }
}
