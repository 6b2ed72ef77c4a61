//! Protobuf request bodies to JSON values, driven by the schema table. kubectl 1.32 and newer send them on typed writes.

use base64::Engine as _;
use serde_json::{Map, Value};

use crate::ApiError;
use crate::kinds::KINDS;
use crate::limits::DEPTH_MAX;
use crate::schema::{self, Field, Message, Shape, Type};
use crate::time;

pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";

type Decoded<T> = Result<T, String>;

/// Decodes the envelope and the message of the kind that it names.
pub fn decode(bytes: &[u8]) -> Result<Value, ApiError> {
    let bad = |why: String| ApiError::bad_request(format!("the protobuf body cannot be read: {why}"));
    let body = bytes
        .strip_prefix(MAGIC)
        .ok_or_else(|| bad("it does not start with the bytes 6b 38 73 00".into()))?;
    let (api_version, kind, raw) = envelope(body).map_err(bad)?;
    let message = message(&api_version, &kind).ok_or_else(|| {
        ApiError::bad_request(format!("no kind \"{kind}\" is registered for version \"{api_version}\""))
    })?;
    let mut object = decode_message(raw, message).map_err(bad)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

fn message(api_version: &str, kind: &str) -> Option<&'static Message> {
    // The options of a deletion carry the group of what is deleted.
    match (api_version, kind) {
        (_, "DeleteOptions") => return Some(&schema::META_V1_DELETE_OPTIONS),
        ("v1", "Binding") => return Some(&schema::CORE_V1_BINDING),
        ("policy/v1", "Eviction") => return Some(&schema::POLICY_V1_EVICTION),
        ("authentication.k8s.io/v1", "TokenRequest") => {
            return Some(&schema::AUTHENTICATION_V1_TOKEN_REQUEST);
        }
        ("authentication.k8s.io/v1", "SelfSubjectReview") => {
            return Some(&schema::AUTHENTICATION_V1_SELF_SUBJECT_REVIEW);
        }
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview") => {
            return Some(&schema::AUTHORIZATION_V1_SELF_SUBJECT_ACCESS_REVIEW);
        }
        ("authorization.k8s.io/v1", "SelfSubjectRulesReview") => {
            return Some(&schema::AUTHORIZATION_V1_SELF_SUBJECT_RULES_REVIEW);
        }
        _ => {}
    }
    let found =
        KINDS.iter().find(|entry| entry.kind == kind && entry.builtin && entry.api_version() == api_version);
    found.map(|entry| entry.schema)
}

/// `Unknown{1: TypeMeta{1: apiVersion, 2: kind}, 2: raw, 3: contentEncoding, 4: contentType}`.
fn envelope(body: &[u8]) -> Decoded<(String, String, &[u8])> {
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader { bytes: body };
    while let Some((tag, wire)) = reader.field()? {
        match (tag, wire) {
            (1, Wire::Bytes(inner)) => {
                let mut reader = Reader { bytes: inner };
                while let Some((tag, wire)) = reader.field()? {
                    match (tag, wire) {
                        (1, Wire::Bytes(text)) => api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(inner)) => raw = inner,
            (3, Wire::Bytes(encoding)) if !encoding.is_empty() => {
                return Err("its content encoding is unknown".into());
            }
            _ => {}
        }
    }
    Ok((api_version, kind, raw))
}

/// Decodes one message.
pub fn decode_message(bytes: &[u8], message: &'static Message) -> Decoded<Map<String, Value>> {
    let mut map = Map::new();
    read_message(bytes, message, &mut map, 0)?;
    Ok(map)
}

fn read_message(
    bytes: &[u8],
    message: &'static Message,
    map: &mut Map<String, Value>,
    depth: usize,
) -> Decoded<()> {
    if depth > DEPTH_MAX {
        return Err("messages nest too deeply".into());
    }
    let mut reader = Reader { bytes };
    while let Some((tag, wire)) = reader.field()? {
        let Some(field) = message.fields.iter().find(|field| field.tag == tag && tag != 0) else { continue };
        read_field(field, wire, map, depth).map_err(|why| {
            if why.contains(" in ") { why } else { format!("{why} in {}.{}", message.name, field.name) }
        })?;
    }
    Ok(())
}

fn read_field(
    field: &'static Field,
    wire: Wire<'_>,
    map: &mut Map<String, Value>,
    depth: usize,
) -> Decoded<()> {
    if field.inline
        && let (Type::Message(inner), Wire::Bytes(bytes)) = (field.what, &wire)
    {
        return read_message(bytes, inner, map, depth + 1);
    }
    match field.shape {
        Shape::One => {
            if let Some(value) = value(field, &wire, depth)? {
                map.insert(field.name.into(), value);
            }
        }
        Shape::List => {
            let slot = map.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            let list = slot.as_array_mut().expect("a field is always written in the same shape");
            match (&wire, field.what) {
                (Wire::Bytes(packed), Type::Int | Type::Bool) => {
                    let mut reader = Reader { bytes: packed };
                    while !reader.bytes.is_empty() {
                        let wire = Wire::Varint(reader.varint()?);
                        list.push(scalar(field.what, &wire, depth)?);
                    }
                }
                _ => list.push(scalar(field.what, &wire, depth)?),
            }
        }
        Shape::Map => {
            let Wire::Bytes(entry) = wire else { return Err("a map entry is not a message".into()) };
            let (mut key, mut member) = (String::new(), None);
            let mut reader = Reader { bytes: entry };
            while let Some((tag, wire)) = reader.field()? {
                match (tag, &wire) {
                    (1, Wire::Bytes(text)) => key = utf8(text)?,
                    (2, _) => member = Some(scalar(field.what, &wire, depth)?),
                    _ => {}
                }
            }
            let member = match member {
                Some(member) => member,
                None => scalar(field.what, &Wire::Bytes(&[]), depth)?,
            };
            let slot = map.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            slot.as_object_mut().expect("a field is always written in the same shape").insert(key, member);
        }
    }
    Ok(())
}

/// A single value; `None` where JSON leaves it out: a zero that is no pointer.
fn value(field: &'static Field, wire: &Wire<'_>, depth: usize) -> Decoded<Option<Value>> {
    let value = scalar(field.what, wire, depth)?;
    let zero = match &value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        // A struct that is no pointer is always sent, and means nothing when empty.
        Value::Object(map) => map.is_empty() && matches!(field.what, Type::Message(_)),
        Value::Array(_) => false,
    };
    let kept = field.pointer && !value.is_null();
    Ok((!zero || kept).then_some(value))
}

fn scalar(what: Type, wire: &Wire<'_>, depth: usize) -> Decoded<Value> {
    match (what, wire) {
        (Type::String, Wire::Bytes(text)) => Ok(Value::String(utf8(text)?)),
        (Type::Bytes, Wire::Bytes(bytes)) => {
            Ok(base64::engine::general_purpose::STANDARD.encode(bytes).into())
        }
        (Type::Bool, Wire::Varint(number)) => Ok((*number != 0).into()),
        // int32 and int64 alike: negative numbers are sign-extended to 64 bits.
        (Type::Int, Wire::Varint(number)) => Ok((*number as i64).into()),
        (Type::Double, Wire::Fixed64(bits)) => Ok(f64::from_bits(*bits).into()),
        (Type::Message(message), Wire::Bytes(bytes)) => {
            let mut map = Map::new();
            read_message(bytes, message, &mut map, depth + 1)?;
            Ok(Value::Object(map))
        }
        (Type::Quantity, Wire::Bytes(bytes)) => {
            let inner = text_at(bytes, 1)?;
            Ok(if inner.is_empty() { "0".into() } else { inner.into() })
        }
        (Type::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes),
        (Type::Time, Wire::Bytes(bytes)) => {
            Ok(time_of(bytes)?.map_or(Value::Null, |(s, _)| time::rfc3339(s).into()))
        }
        (Type::MicroTime, Wire::Bytes(bytes)) => {
            Ok(time_of(bytes)?.map_or(Value::Null, |(s, nanos)| time::rfc3339_micro(s, nanos).into()))
        }
        (Type::Duration, Wire::Bytes(bytes)) => {
            let nanos = number_at(bytes, 1)?.unwrap_or(0) as i64;
            Ok(format!("{}s", nanos / 1_000_000_000).into())
        }
        (Type::Any | Type::Fields, Wire::Bytes(bytes)) => embedded_json(bytes),
        (Type::Strings, Wire::Bytes(bytes)) => {
            let mut list = Vec::new();
            let mut reader = Reader { bytes };
            while let Some((tag, wire)) = reader.field()? {
                if let (1, Wire::Bytes(text)) = (tag, wire) {
                    list.push(Value::String(utf8(text)?));
                }
            }
            Ok(list.into())
        }
        // An absent value of a map entry.
        (Type::Bool, Wire::Bytes([])) => Ok(false.into()),
        (Type::Int | Type::Double, Wire::Bytes([])) => Ok(0.into()),
        _ => Err("a field has another wire type than the table says".into()),
    }
}

fn utf8(bytes: &[u8]) -> Decoded<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a string is not UTF-8".into())
}

fn text_at(bytes: &[u8], wanted: u32) -> Decoded<String> {
    let (mut reader, mut out) = (Reader { bytes }, String::new());
    while let Some((tag, wire)) = reader.field()? {
        if let Wire::Bytes(text) = wire
            && tag == wanted
        {
            out = utf8(text)?;
        }
    }
    Ok(out)
}

fn number_at(bytes: &[u8], wanted: u32) -> Decoded<Option<u64>> {
    let (mut reader, mut out) = (Reader { bytes }, None);
    while let Some((tag, wire)) = reader.field()? {
        if let Wire::Varint(number) = wire
            && tag == wanted
        {
            out = Some(number);
        }
    }
    Ok(out)
}

/// Seconds and nanoseconds; `None` for the zero time.
fn time_of(bytes: &[u8]) -> Decoded<Option<(i64, i32)>> {
    let seconds = number_at(bytes, 1)?.unwrap_or(0) as i64;
    let nanos = number_at(bytes, 2)?.unwrap_or(0) as i32;
    // Go's zero time is in the year 1.
    Ok((!bytes.is_empty() && (seconds != 0 || nanos != 0) && seconds > -62_135_596_800)
        .then_some((seconds, nanos)))
}

/// `{1: type (1 is string), 2: int, 3: string}`.
fn int_or_string(bytes: &[u8]) -> Decoded<Value> {
    if number_at(bytes, 1)? == Some(1) {
        return Ok(text_at(bytes, 3)?.into());
    }
    Ok((number_at(bytes, 2)?.unwrap_or(0) as i64).into())
}

fn embedded_json(bytes: &[u8]) -> Decoded<Value> {
    let mut reader = Reader { bytes };
    let mut raw = &[][..];
    while let Some((tag, wire)) = reader.field()? {
        if let (1, Wire::Bytes(inner)) = (tag, wire) {
            raw = inner;
        }
    }
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(raw).map_err(|error| format!("embedded JSON is broken: {error}"))
}

enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Decoded<u64> {
        let mut out = 0_u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.bytes.split_first().ok_or("it ends inside a number")?;
            self.bytes = rest;
            if shift == 63 && byte > 1 {
                break;
            }
            out |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(out);
            }
        }
        Err("a number has more than 64 bits".into())
    }

    fn take(&mut self, len: usize) -> Decoded<&'a [u8]> {
        let (head, rest) = self.bytes.split_at_checked(len).ok_or("it ends inside a field")?;
        self.bytes = rest;
        Ok(head)
    }

    fn field(&mut self) -> Decoded<Option<(u32, Wire<'a>)>> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).map_err(|_| "a field number is too large")?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Wire::Fixed64(u64::from_le_bytes(bytes.try_into().map_err(|_| "eight bytes")?))
            }
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| "a field is too long")?;
                Wire::Bytes(self.take(len)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err("groups are not used here".into()),
        };
        Ok(Some((tag, wire)))
    }
}

/// For fuzzing: any bytes decode or are refused, under every message of the table that a client may send.
pub fn fuzz_protobuf(data: &[u8]) {
    let _ = decode(data);
    for kind in KINDS {
        let _ = decode_message(data, kind.schema);
    }
}
