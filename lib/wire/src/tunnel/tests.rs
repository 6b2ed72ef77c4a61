use super::*;

/// Messages as a stock peer's code writes them (KubeEdge v1.23.1 `pkg/stream`; Go's encoder). Lines are added, never changed.
const VECTORS: &str = include_str!("../../../../tests/vectors/tunnel.txt");

fn vector(name: &str) -> Vec<u8> {
    let line = VECTORS.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    hex::decode(line.unwrap_or_else(|| panic!("no vector {name}"))).unwrap()
}

#[test]
fn messages_are_what_stock_peers_send() {
    let cases: [(&str, Envelope<'_>); 4] = [
        ("data", Envelope { id: 1, kind: kind::DATA, data: &[0xff, 0x00, 0xc3] }),
        ("remove", Envelope { id: 300, kind: kind::REMOVE_CONNECT, data: &[] }),
        (
            "close",
            Envelope { id: 0, kind: kind::CLOSE_CONNECT, data: b"failed to Update KubeletEndpoint Port" },
        ),
        ("largest", Envelope { id: u64::MAX, kind: kind::ATTACH_CONNECT, data: b"{}" }),
    ];
    for (name, envelope) in cases {
        assert_eq!(hex::encode(envelope.encode()), hex::encode(vector(name)), "{name}");
        assert_eq!(Envelope::decode(&vector(name)), Ok(envelope), "{name}");
    }
}

#[test]
fn a_stock_clouds_exec_becomes_a_request() {
    let message = vector("exec-connect");
    let envelope = Envelope::decode(&message).unwrap();
    assert_eq!((envelope.id, envelope.kind), (7, kind::EXEC_CONNECT));
    let connect: Connect = serde_json::from_slice(envelope.data).unwrap();
    assert_eq!(connect.id, 7);
    let request = String::from_utf8(connect.request("1.1").unwrap()).unwrap();
    assert_eq!(
        request,
        "POST /exec/default/web/c?command=ls&command=-l&error=1&output=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n\
         Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: v3.channel.k8s.io\r\n\r\n"
    );
}

/// The whole message; Go's encoder writes `&` as an escape, which means the same.
fn go_text(id: u64, kind: u64, connect: &Connect) -> String {
    let data = serde_json::to_string(connect).unwrap().replace('&', "\\u0026");
    String::from_utf8(Envelope { id, kind, data: data.as_bytes() }.encode()).unwrap()
}

#[test]
fn what_we_ask_a_stock_edge_is_what_its_cloud_asks() {
    let head = b"POST /exec/default/web/c?command=ls&command=-l&error=1&output=1 HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: \
        SPDY/3.1\r\nx-stream-protocol-version: v4.channel.k8s.io\r\nx-stream-protocol-version:v3.channel.k8s.io\r\n\r\n";
    let (kind, connect) = super::connect(7, head).unwrap();
    assert_eq!(go_text(7, kind, &connect), String::from_utf8_lossy(&vector("exec-connect")));

    let head = b"GET /containerLogs/default/web/c?follow=true&tailLines=10 HTTP/1.1\r\nAccept-Encoding: gzip\r\n\r\n";
    let (kind, connect) = super::connect(3, head).unwrap();
    assert_eq!(go_text(3, kind, &connect), String::from_utf8_lossy(&vector("logs-connect")));
    assert_eq!(
        String::from_utf8(connect.request("1.0").unwrap()).unwrap(),
        "GET /containerLogs/default/web/c?follow=true&tailLines=10 HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n",
        "nobody unpacks the answer on its way, so it must not be packed"
    );
}

#[test]
fn paths_choose_the_kind() {
    let kind_of = |head: &str| super::connect(1, format!("{head}\r\n\r\n").as_bytes()).map(|(kind, _)| kind);
    assert_eq!(kind_of("GET /stats/summary HTTP/1.1"), Ok(kind::METRIC_CONNECT));
    assert_eq!(kind_of("GET /attach/n/p/c HTTP/1.1"), Ok(kind::ATTACH_CONNECT));
    assert_eq!(kind_of("POST /portForward/n/p HTTP/1.1\r\nUpgrade: SPDY/3.1"), Ok(kind::EXEC_CONNECT));
    assert!(kind_of("POST /run HTTP/1.1").is_err());
    assert!(kind_of("GET http://x/ HTTP/1.1").is_err());
    assert!(kind_of("nonsense").is_err());
    assert!(kind_of("GET / HTTP/1.1\r\nno colon").is_err());
}

#[test]
fn what_cannot_stand_in_a_request_is_none() {
    let connect = |path: &str, header: (&str, &str), method: &str| Connect {
        url: Url { path: path.into(), ..Url::default() },
        header: Some([(header.0.to_owned(), Some(vec![header.1.to_owned()]))].into()),
        method: Some(method.into()),
        ..Connect::default()
    };
    assert!(
        connect("/exec/a b", ("A", "b"), "POST").request("1.1").unwrap().starts_with(b"POST /exec/a%20b ")
    );
    for bad in [
        connect("exec", ("A", "b"), "POST"),
        connect("/exec", ("A", "b\r\nX: y"), "POST"),
        connect("/exec", ("A: x\r\nB", "b"), "POST"),
        connect("/exec", ("A", "b"), "POST /x HTTP/1.1\r\n"),
    ] {
        assert_eq!(bad.request("1.1"), None, "{bad:?}");
    }
    let raw =
        Connect { url: Url { raw_path: "/x HTTP/1.1\r\n".into(), ..Url::default() }, ..Connect::default() };
    assert_eq!(raw.request("1.1"), None);
}

#[test]
fn escaped_paths_come_back() {
    for target in ["/a/b?x=%20y", "/a%2Fb/c", "/caf%C3%A9?q", "/"] {
        assert_eq!(Url::from_target(target).target().as_deref(), Some(target));
    }
}

#[test]
fn text_becomes_binary_and_nothing_else_changes() {
    let mut connection = b"HTTP/1.1 101 Switching\r\nA: b\r\n\r\n".to_vec();
    let head_len = connection.len();
    let mut wanted = connection.clone();
    for (first, header, payload_len) in [
        (0x81u8, vec![3u8], 3usize),
        (0x01, vec![0x80 | 2, 9, 9, 9, 9], 2),
        (0x80, vec![126, 1, 0], 256),
        (0x89, vec![0], 0),
        (0x82, vec![127, 0, 0, 0, 0, 0, 1, 0, 0], 65_536),
        (0x81, vec![1], 1),
    ] {
        for (out, relabelled) in [(&mut connection, false), (&mut wanted, true)] {
            out.push(if relabelled && first & 0xf == 1 { first & 0xf0 | 2 } else { first });
            out.extend(&header);
            // Payloads that look like text frames.
            out.extend(vec![0x81; payload_len]);
        }
    }
    for piece_len in [1, 2, 5, 1000, connection.len()] {
        let (mut bytes, mut relabel) = (connection.clone(), Relabel::connection());
        bytes.chunks_mut(piece_len).for_each(|piece| relabel.feed(piece));
        assert!(bytes == wanted, "in pieces of {piece_len}");
    }
    let (mut bytes, mut relabel) = (connection[head_len..].to_vec(), Relabel::frames());
    relabel.feed(&mut bytes);
    assert!(bytes == wanted[head_len..]);
}

#[test]
fn any_bytes_are_no_panic() {
    let mut seed = 0x2545_F491_4F6C_DD1Du64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let samples =
        [vector("exec-connect"), vector("data"), vector("exec-connect")[2..].to_vec(), vec![0x81; 40]];
    for _ in 0..5_000 {
        let mut data = samples[(next() % 4) as usize].clone();
        for _ in 0..next() % 6 {
            let at = (next() % data.len() as u64) as usize;
            data[at] = next() as u8;
        }
        data.truncate(data.len() - (next() % data.len() as u64) as usize);
        fuzz_tunnel(&data);
    }
}
