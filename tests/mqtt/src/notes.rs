//! What is written around the table of results: why the other brokers differ. A row that one of them fails and that no note names
//! fails the suite, and so does a note about nothing.

use crate::brokers::Kind;

pub const HEAD: &str = "\
# MQTT conformance

Written by `UPDATE=1 cargo xtask test --suite mqtt`, which runs every row over sockets against our broker, Debian's mosquitto 2.0.11 and
rumqttd 0.20 and fails when ours fails one or when this page is not what it saw. Numbers are those of the normative statements of
MQTT 3.1.1 and MQTT 5.0 (`MQTT-` left out), § a section whose text has no number. The client is `tests/mqtt/src/peer.rs`, with
a codec of its own. A row that rumqttd or mosquitto fails is run a second time on a broker of its own: rumqttd's listener ends with some bad
packets. The same suite runs mosquitto_pub, mosquitto_sub and Paho's Python client against our broker in both versions (QoS 0, 1
and 2, kept sessions, wills, retained, TLS, users), and bad behaviour: damaged packets, two thousand connects, readers that never read,
floods of topics and of retained messages, packets that never end.

| broker | rows passed, 3.1.1 | rows passed, 5 |
| --- | --- | --- |
";

/// Broker, numbers of the rows (of either version), why.
pub const WHY: &[(Kind, &[&str], &str)] = &[
    (
        Kind::Mosquitto,
        &["2.2.2-2", "4.8.0-1"],
        "It looks at the flags of the packets that carry data only, and ignores a server's packets from a client.",
    ),
    (
        Kind::Mosquitto,
        &["§2.2.2.2", "§3.1.2.11", "3.3.2-14", "3.3.4-6"],
        "Some properties are not checked: a payload format of 2, authentication data without a method, wildcards in a response topic, a client's subscription identifier.",
    ),
    (Kind::Mosquitto, &["3.1.4-3"], "The client that is taken over is closed without DISCONNECT 0x8E."),
    (
        Kind::Mosquitto,
        &["§4.8.2", "3.8.3-4", "4.8.2-1"],
        "Shared subscriptions: retained messages are sent, No Local and an empty share name are accepted.",
    ),
    (
        Kind::Mosquitto,
        &["3.3.5-1"],
        "3.1.1 only: one copy, with the QoS of a subscription that is not the highest.",
    ),
    (
        Kind::Mosquitto,
        &["3.3.4-9", "3.3.4-7"],
        "The third message of three acknowledgements goes out over a receive maximum of two; a client over the server's gets PUBREC 0x97 where the specification says DISCONNECT 0x93.",
    ),
    (
        Kind::Rumqttd,
        &[
            "1.5.3-2",
            "2.2.2-2",
            "2.3.1-1",
            "3.1.0-2",
            "3.1.2-3",
            "3.1.2-18",
            "3.1.2-20",
            "3.1.2-22",
            "3.1.2-9",
            "3.1.3-10",
            "3.1.4-1",
            "3.8.1-1",
            "3.8.3-4",
            "3.10.1-1",
            "3.10.3-2",
            "4.7.1-1",
            "4.7.1-2",
            "4.7.1-3",
            "4.7.3-1",
            "4.7.3-2",
            "4.8.0-1",
            "§2.2.2.2",
            "3.3.2-14",
        ],
        "The codec checks lengths and little else: reserved bits, packet id 0, U+0000, misplaced wildcards and most properties pass.",
    ),
    (
        Kind::Rumqttd,
        &["4.13.1-1"],
        "A server's packet from a client of MQTT 5 ends the task that accepts connections: nobody gets in any more.",
    ),
    (Kind::Rumqttd, &["3.1.2-2", "3.2.2-4", "3.2.2-5"], "It refuses by closing, without CONNACK."),
    (Kind::Rumqttd, &["§3.1.2.10"], "A keep-alive below 5 s, 0 included, is refused."),
    (Kind::Rumqttd, &["3.1.4-3"], "The client that is taken over is closed without DISCONNECT 0x8E."),
    (
        Kind::Rumqttd,
        &["3.1.2-5", "3.1.2-14", "3.3.1-6", "3.8.4-3", "3.8.4-6"],
        "A message goes out with the QoS of the subscription, whatever it came with; a second SUBSCRIBE changes nothing and sends no retained messages.",
    ),
    (
        Kind::Rumqttd,
        &["3.3.1-1", "3.3.1-3"],
        "DUP is passed on from the publisher and not set when a message is sent again.",
    ),
    (
        Kind::Rumqttd,
        &["3.3.1-12", "§3.3.1.3"],
        "An empty message without the retain flag removes the retained one; a new subscription gets at most 100.",
    ),
    (
        Kind::Rumqttd,
        &["3.3.1-11", "3.3.1-13", "3.8.3-3", "3.8.3-4"],
        "Retain handling, retain as published and No Local are read and not acted on.",
    ),
    (
        Kind::Rumqttd,
        &["4.4.0-1", "4.3.3-2", "4.3.3-4"],
        "QoS 2: PUBREL is not sent again, an unknown PUBREL ends the connection, a PUBREC with an error is answered with PUBREL.",
    ),
    (
        Kind::Rumqttd,
        &["3.10.4-1", "3.10.4-5", "3.10.4-6", "3.11.3-1"],
        "UNSUBSCRIBE is not answered when there is no such subscription, and answered once for each filter otherwise.",
    ),
    (
        Kind::Rumqttd,
        &["3.1.2-8", "§3.14.2.1"],
        "The will is not published after an error of the protocol, nor after DISCONNECT with reason 0x04.",
    ),
    (Kind::Rumqttd, &["3.1.2-23", "§3.14.2.2.2"], "Sessions do not expire."),
    (
        Kind::Rumqttd,
        &["3.3.4-9", "4.9.0-2", "3.1.2-24", "3.1.2-25"],
        "The client's receive maximum and maximum packet size are not kept to.",
    ),
    (Kind::Rumqttd, &["4.8.2-1", "4.8.2-2"], "Malformed shared filters are granted."),
    (
        Kind::Rumqttd,
        &["§4.7.2"],
        "A topic that begins with `$` is never delivered: KubeEdge's `$hw/events/...` are.",
    ),
    (
        Kind::Rumqttd,
        &["§3.1.2.2"],
        "A message of a 3.1.1 client with QoS 2 ends a subscriber of MQTT 5, and the other way round.",
    ),
];
