//! Everything that reads bytes from outside is total: seeded mutations of good inputs, and a protobuf round trip.
#![allow(clippy::unwrap_used)]

use kapi::decode::{self, Findings};
use kapi::kinds::{KINDS, by_path};
use kapi::schema::{Message, Shape, Type};
use kapi::{patch, protobuf, selector};
use serde_json::{Value, json};

/// xorshift64*: the same inputs at every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// One to four changes: a byte set, a piece cut, doubled, or moved.
    fn mutate(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(4) {
                0 if !bytes.is_empty() => bytes[at] = self.next() as u8,
                1 => bytes.truncate(at),
                2 => {
                    let end = at + self.below(bytes.len() - at);
                    let piece = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
                _ => {
                    let end = at + self.below(bytes.len() - at);
                    bytes.drain(at..end);
                }
            }
        }
        bytes
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web", "namespace": "shop", "labels": {"app": "web", "empty": ""}, "finalizers": ["x.io/y"],
            "creationTimestamp": "2026-01-02T03:04:05Z", "generation": 7,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "pi", "uid": "u", "controller": false}],
        },
        "spec": {
            "nodeName": "pi", "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "hostNetwork": true,
            "containers": [{
                "name": "c", "image": "i:1", "command": ["/bin/x", "--flag"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}],
                "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}},
                "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 5},
                "readinessProbe": {"tcpSocket": {"port": 8080}},
                "securityContext": {"runAsUser": 0, "privileged": false},
            }],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "t", "defaultMode": 292}}],
        },
        "status": {"phase": "Running", "startTime": "2026-01-02T03:04:06Z"},
    })
}

/// The other direction of the decoder under test, written from the same table, in the way Go's encoder writes.
fn encode(object: &Value, message: &'static Message) -> Vec<u8> {
    let mut out = Vec::new();
    for field in message.fields {
        if field.inline {
            let Type::Message(inner) = field.what else { panic!("{} is inlined and no message", field.name) };
            put_bytes(&mut out, field.tag, &encode(object, inner));
            continue;
        }
        let Some(value) = object.get(field.name) else { continue };
        match field.shape {
            Shape::One => put(&mut out, field.tag, field.what, value),
            Shape::List => {
                value.as_array().unwrap().iter().for_each(|item| put(&mut out, field.tag, field.what, item))
            }
            Shape::Map => {
                for (key, member) in value.as_object().unwrap() {
                    let mut entry = Vec::new();
                    put_bytes(&mut entry, 1, key.as_bytes());
                    put(&mut entry, 2, field.what, member);
                    put_bytes(&mut out, field.tag, &entry);
                }
            }
        }
    }
    out
}

fn put(out: &mut Vec<u8>, tag: u32, what: Type, value: &Value) {
    let text = value.as_str().unwrap_or_default();
    let mut inner = Vec::new();
    match what {
        Type::Bool => return put_number(out, tag, u64::from(value.as_bool().unwrap())),
        Type::Int => return put_number(out, tag, value.as_i64().unwrap() as u64),
        Type::String => inner.extend(text.as_bytes()),
        Type::Message(message) => inner = encode(value, message),
        Type::Quantity => put_bytes(&mut inner, 1, text.as_bytes()),
        Type::Time => put_number(&mut inner, 1, kapi::time::parse(text).unwrap() as u64),
        Type::IntOrString => match value.as_i64() {
            Some(number) => put_number(&mut inner, 2, number as u64),
            None => {
                put_number(&mut inner, 1, 1);
                put_bytes(&mut inner, 3, text.as_bytes());
            }
        },
        other => panic!("the sample has no {other:?}"),
    }
    put_bytes(out, tag, &inner);
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_number(out: &mut Vec<u8>, tag: u32, number: u64) {
    put_varint(out, u64::from(tag) << 3);
    put_varint(out, number);
}

fn put_bytes(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    put_varint(out, u64::from(tag) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn enveloped(object: &Value, message: &'static Message) -> Vec<u8> {
    let mut types = Vec::new();
    put_bytes(&mut types, 1, object["apiVersion"].as_str().unwrap().as_bytes());
    put_bytes(&mut types, 2, object["kind"].as_str().unwrap().as_bytes());
    let mut out = b"k8s\0".to_vec();
    put_bytes(&mut out, 1, &types);
    put_bytes(&mut out, 2, &encode(object, message));
    put_bytes(&mut out, 4, b"");
    out
}

#[test]
fn protobuf_and_json_mean_the_same_pod() {
    let pods = by_path("", "v1", "pods").unwrap();
    let bytes = enveloped(&pod(), pods.schema);
    let mut decoded = protobuf::decode(&bytes).unwrap();
    assert_eq!(decoded, pod());
    let mut findings = Findings::default();
    decode::conform(pods, &mut decoded, &mut findings).unwrap();
    assert_eq!(findings.texts, [""; 0]);
}

/// A namespace as a typed client sends it, empty fields and all.
#[test]
fn a_body_by_hand() {
    let mut body = b"k8s\0".to_vec();
    body.extend(
        b"\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12\x10\x0a\x0a\x0a\x04shop\x2a\x00B\x00\x12\x00\x1a\x00",
    );
    assert_eq!(
        protobuf::decode(&body).unwrap(),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    );
    for cut in 0..body.len() {
        // Cut anywhere it is refused or means less; it never panics.
        let _ = protobuf::decode(&body[..cut]);
    }
    let unknown = b"k8s\0\x0a\x0a\x0a\x02v1\x12\x04Blob";
    assert!(protobuf::decode(unknown).unwrap_err().message.contains("no kind \"Blob\" is registered"));
    assert!(protobuf::decode(b"{}").unwrap_err().message.contains("6b 38 73 00"));
}

#[test]
fn mutated_protobuf_is_decoded_or_refused() {
    let pods = by_path("", "v1", "pods").unwrap();
    let whole = enveloped(&pod(), pods.schema);
    let bare = encode(&pod(), pods.schema);
    let mut random = Random(0x6b38_7300);
    let (mut good, mut bad) = (0, 0);
    for round in 0..4_000 {
        let bytes = random.mutate(if round % 2 == 0 { &whole } else { &bare });
        protobuf::fuzz_protobuf(&bytes);
        match protobuf::decode_message(&bytes, pods.schema) {
            Ok(_) => good += 1,
            Err(_) => bad += 1,
        }
    }
    assert!(good > 10 && bad > 10, "mutations reach both ends: {good} {bad}");
}

#[test]
fn nesting_is_bounded() {
    // managedFields hold raw JSON; a message that holds itself does not exist in the table, JSON does.
    let deep = format!("{}1{}", "[".repeat(5_000), "]".repeat(5_000));
    assert!(decode::json(deep.as_bytes(), &mut Findings::default()).is_err());
}

#[test]
fn mutated_json_fits_the_schema_or_is_refused() {
    let seed = pod().to_string();
    let mut random = Random(7);
    let mut accepted = 0;
    for _ in 0..2_500 {
        let bytes = random.mutate(seed.as_bytes());
        let mut findings = Findings::default();
        let Ok(value) = decode::json(&bytes, &mut findings) else { continue };
        for kind in KINDS {
            let mut value = value.clone();
            if decode::conform(kind, &mut value, &mut findings).is_ok() {
                kapi::defaults::apply(kind, &mut value);
                kapi::defaults::initial_status(kind, &mut value);
                kapi::validate::object(kind, &value);
                kapi::table::row(kind, &value, kapi::table::Include::Metadata, 0);
                accepted += 1;
            }
        }
    }
    assert!(accepted > 10, "{accepted}");
}

#[test]
fn mutated_patches_apply_or_are_refused() {
    let seeds = [
        json!([{"op": "add", "path": "/spec/containers/0/env/-", "value": {"name": "X"}},
            {"op": "move", "from": "/metadata/labels/app", "path": "/metadata/labels/b~1c"},
            {"op": "test", "path": "/spec/hostNetwork", "value": true}, {"op": "remove", "path": "/status"}]),
        json!({"metadata": {"labels": {"a": null}, "$deleteFromPrimitiveList/finalizers": ["x.io/y"]}, "spec": {
            "$setElementOrder/containers": [{"name": "d"}, {"name": "c"}],
            "containers": [{"name": "d", "image": "j"}, {"name": "c", "$patch": "delete"}],
            "volumes": [{"name": "v", "$retainKeys": ["name"], "hostPath": {"path": "/"}}]}}),
    ];
    let mut random = Random(11);
    let (mut good, mut bad) = (0, 0);
    for round in 0..4_000 {
        let bytes = random.mutate(seeds[round % 2].to_string().as_bytes());
        let Ok(body) = serde_json::from_slice::<Value>(&bytes) else { continue };
        let mut target = pod();
        patch::merge::apply(&mut target, body.clone());
        let (mut by_json, mut by_strategy) = (pod(), pod());
        for outcome in [
            patch::json::apply(&mut by_json, &body),
            patch::strategic::apply(&mut by_strategy, body, by_path("", "v1", "pods").unwrap().schema),
        ] {
            match outcome {
                Ok(()) => good += 1,
                Err(_) => bad += 1,
            }
        }
    }
    assert!(good > 10 && bad > 10, "{good} {bad}");
}

#[test]
fn mutated_selectors_are_parsed_or_refused() {
    let seeds = ["a=b,c!=d,e in (f,g),!h,i notin (j)", "metadata.name=a,spec.nodeName!=b,status.phase==c"];
    let mut random = Random(13);
    for round in 0..10_000 {
        selector::fuzz_selectors(&random.mutate(seeds[round % 2].as_bytes()));
    }
}
