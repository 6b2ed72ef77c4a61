"""Paho's client against a broker: paho.py PORT mqttv311|mqttv5. One line for each case: `ok NAME` or `failed: WHY NAME`."""

import os
import queue
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

PORT, IS_5 = int(sys.argv[1]), sys.argv[2] == "mqttv5"
PROTOCOL = mqtt.MQTTv5 if IS_5 else mqtt.MQTTv311
DEADLINE = 15


class Peer:
    """A client whose callbacks go to queues."""

    def __init__(self, name, kept=False, port=PORT, ca=None, will=None):
        extra = {} if IS_5 else {"clean_session": not kept}
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, f"paho-{name}-{IS_5}", protocol=PROTOCOL, **extra)
        self.connected, self.messages, self.acks = queue.Queue(), queue.Queue(), queue.Queue()
        self.client.on_connect = lambda c, u, flags, code, p: self.connected.put((flags, code))
        self.client.on_message = lambda c, u, message: self.messages.put(message)
        self.client.on_subscribe = lambda c, u, mid, codes, p: self.acks.put(codes)
        self.client.on_unsubscribe = lambda c, u, mid, codes, p: self.acks.put(codes)
        if ca:
            self.client.tls_set(ca)
            self.client.username_pw_set(os.environ["USER_NAME"], os.environ["PASSWORD"])
        if will:
            self.client.will_set(will, "gone", 1)
        if IS_5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 60 if kept else 0
            self.client.connect("127.0.0.1", port, 60, clean_start=not kept, properties=properties)
        else:
            self.client.connect("127.0.0.1", port, 60)
        self.client.loop_start()
        self.flags, code = self.connected.get(timeout=DEADLINE)
        assert not code.is_failure, code

    def subscribe(self, topic, qos):
        self.client.subscribe(topic, qos)
        codes = self.acks.get(timeout=DEADLINE)
        assert [code.value for code in codes] == [qos], codes

    def publish(self, topic, payload, qos, retain=False, properties=None):
        self.client.publish(topic, payload, qos, retain, properties).wait_for_publish(DEADLINE)

    def expect(self, payload, qos):
        message = self.messages.get(timeout=DEADLINE)
        assert (message.payload, message.qos) == (payload.encode(), qos), (message.payload, message.qos)
        return message

    def end(self):
        self.client.disconnect()
        self.client.loop_stop()


def each_qos():
    reader, writer = Peer("reader"), Peer("writer")
    for qos in (0, 1, 2):
        reader.subscribe(f"paho/{qos}", qos)
        for number in range(20):
            writer.publish(f"paho/{qos}", str(number), qos)
        for number in range(20):
            reader.expect(str(number), qos)
    reader.end()
    writer.end()


def session():
    keeper = Peer("keeper", kept=True)
    keeper.subscribe("paho/session", 2)
    keeper.end()
    writer = Peer("writer")
    for qos in (1, 2):
        writer.publish("paho/session", f"qos {qos}", qos)
    keeper = Peer("keeper", kept=True)
    assert keeper.flags.session_present
    for qos in (1, 2):
        keeper.expect(f"qos {qos}", qos)
    keeper.end()
    writer.end()


def retained():
    writer, late = Peer("writer"), Peer("late")
    writer.publish("paho/retained", "kept", 1, retain=True)
    late.subscribe("paho/retained", 1)
    assert late.expect("kept", 1).retain
    writer.publish("paho/retained", "", 1, retain=True)
    late.expect("", 1)
    later = Peer("later")
    later.subscribe("paho/retained", 1)
    assert later.messages.empty()
    for peer in (writer, late, later):
        peer.end()


def will():
    reader, mortal = Peer("reader"), Peer("mortal", will="paho/will")
    reader.subscribe("paho/will", 1)
    mortal.client.loop_stop()
    mortal.client.socket().close()
    reader.expect("gone", 1)
    reader.end()


def unsubscribe():
    peer = Peer("peer")
    peer.subscribe("paho/off", 1)
    peer.client.unsubscribe("paho/off")
    peer.acks.get(timeout=DEADLINE)
    peer.subscribe("paho/on", 1)
    peer.publish("paho/off", "no", 1)
    peer.publish("paho/on", "yes", 1)
    peer.expect("yes", 1)
    peer.end()


def large():
    peer = Peer("peer")
    peer.subscribe("paho/large", 1)
    peer.publish("paho/large", "x" * 200_000, 1)
    peer.expect("x" * 200_000, 1)
    peer.end()


def tls():
    peer = Peer("secure", port=int(os.environ["SECURE"]), ca=os.environ["CA"])
    peer.subscribe("paho/tls", 2)
    peer.publish("paho/tls", "x", 2)
    peer.expect("x", 2)
    peer.end()


def properties_of_5():
    peer = Peer("peer")
    options = SubscribeOptions(qos=1, noLocal=False, retainAsPublished=True)
    peer.client.subscribe("paho/properties", options=options)
    peer.acks.get(timeout=DEADLINE)
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = [("a", "1"), ("b", "2")]
    properties.ResponseTopic = "answers"
    properties.CorrelationData = b"\x00\x01"
    properties.MessageExpiryInterval = 100
    peer.publish("paho/properties", "x", 1, properties=properties)
    got = peer.expect("x", 1).properties
    assert got.UserProperty == [("a", "1"), ("b", "2")], got
    assert (got.ResponseTopic, got.CorrelationData) == ("answers", b"\x00\x01"), got
    assert 0 < got.MessageExpiryInterval <= 100, got
    peer.end()


cases = [each_qos, session, retained, will, unsubscribe, large, tls]
for case in cases + ([properties_of_5] if IS_5 else []):
    try:
        case()
        print("ok", case.__name__.replace("_", " "), flush=True)
    except Exception as error:  # noqa: BLE001: whatever it is, it is the case's result
        print(f"failed:{error!r}".replace(" ", "_"), case.__name__.replace("_", " "), flush=True)
