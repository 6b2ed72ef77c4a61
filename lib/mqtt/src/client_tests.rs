use super::*;

fn client() -> Client {
    Client::new(Options {
        client_id: "c".into(),
        username: None,
        password: None,
        clean_session: true,
        will: None,
        keep_alive_s: 30,
        packet_bytes_max: 4096,
    })
}

fn up(client: &mut Client) {
    client.opened(0);
    client.output().clear();
    client.receive(&[0x20, 2, 0, 0]);
    assert_eq!(client.next_event(), Ok(Some(Event::Up)));
}

#[test]
fn subscriptions_and_unacknowledged_messages_are_sent_again() {
    let mut client = client();
    assert!(client.subscribe("$hw/#"));
    up(&mut client);
    assert_eq!(client.output().as_slice(), b"\x82\x0a\x00\x01\x00\x05$hw/#\x01");
    client.output().clear();
    let id = client.publish("t", b"v", Qos::AtLeastOnce, false).unwrap();
    assert_eq!(id, 2);
    assert_eq!(client.closed(), RETRY_DELAY_MS_MIN);
    assert_eq!(client.publish("t", b"v", Qos::AtLeastOnce, false), Err(PublishError::Down));
    assert_eq!(client.closed(), RETRY_DELAY_MS_MIN * 2);
    up(&mut client);
    let output = client.output().clone();
    assert!(output.starts_with(b"\x82\x0a\x00\x03\x00\x05$hw/#\x01"), "{output:x?}");
    assert!(
        output.ends_with(b"\x3a\x06\x00\x01t\x00\x02v"),
        "the message again, marked as a duplicate: {output:x?}"
    );
    client.receive(b"\x40\x02\x00\x02");
    assert_eq!(client.next_event(), Ok(Some(Event::Acknowledged(2))));
    assert_eq!(client.closed(), RETRY_DELAY_MS_MIN, "a connection that was up starts the back-off anew");
    up(&mut client);
    assert!(!client.output().ends_with(b"v"));
}

#[test]
fn messages_arrive_in_pieces_and_are_acknowledged() {
    let mut client = client();
    up(&mut client);
    let wire = b"\x33\x08\x00\x03a/b\x00\x09v\xd0\x00";
    for byte in wire[..9].iter() {
        client.receive(&[*byte]);
        assert_eq!(client.next_event(), Ok(None));
    }
    client.receive(&wire[9..]);
    assert_eq!(client.next_event(), Ok(Some(Event::Message { topic: "a/b", payload: b"v", retain: true })));
    assert_eq!(client.next_event(), Ok(None));
    assert_eq!(client.output().as_slice(), b"\x40\x02\x00\x09");
}

#[test]
fn a_silent_broker_is_noticed() {
    let mut client = client();
    up(&mut client);
    assert_eq!(client.deadline_ms(), Some(15_000));
    client.tick(14_999).unwrap();
    assert!(client.output().is_empty());
    client.tick(15_000).unwrap();
    assert_eq!(client.output().as_slice(), [0xc0, 0]);
    client.tick(24_999).unwrap();
    assert_eq!(client.tick(25_000), Err(ClientError::Silent));
}

#[test]
fn bounds_are_kept() {
    let mut client = client();
    up(&mut client);
    for _ in 0..IN_FLIGHT_MAX {
        client.publish("t", b"v", Qos::AtLeastOnce, false).unwrap();
    }
    assert_eq!(client.publish("t", b"v", Qos::AtLeastOnce, false), Err(PublishError::Full));
    assert!(matches!(
        client.publish("t", &vec![0; PACKET_BYTES_MAX], Qos::AtMostOnce, false),
        Err(PublishError::TooLarge(_))
    ));
    assert!(!client.subscribe("a#"));
    client.receive(b"\x30\xff\xff\x7f");
    assert!(matches!(client.next_event(), Err(ClientError::Decode(DecodeError::TooLarge { max: 4096, .. }))));
}

#[test]
fn refusals_are_named() {
    let mut client = client();
    client.opened(0);
    client.receive(&[0x20, 2, 0, 4]);
    assert_eq!(client.next_event(), Err(ClientError::Refused("user name or password is wrong")));
}
