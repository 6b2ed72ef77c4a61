//! What is written around the table of results.

pub const HEAD: &str = "\
# MQTT conformance

Written by `UPDATE=1 cargo xtask test --suite mqtt`, which runs every row over sockets against our broker, Debian's mosquitto 2.0.11 and
rumqttd 0.20 and fails when ours fails one or when this table is not what it saw. Numbers are those of the normative statements of
MQTT 3.1.1 and MQTT 5.0 (`MQTT-` left out), § a section whose text has no number. The client is `tests/mqtt/src/peer.rs`, with
a codec of its own.

| broker | rows passed, 3.1.1 | rows passed, 5 |
| --- | --- | --- |
";

pub const WHY: &str = "\n";
