//! What fields an object has: names, protobuf tags, types, merge keys. One table serves decoding, validation, patches and OpenAPI.

mod devices;
mod kubernetes;
mod reliablesyncs;

pub use devices::*;
pub use kubernetes::*;
pub use reliablesyncs::*;

/// A message type. Field lookups by JSON name look through inlined fields.
#[derive(Debug)]
pub struct Message {
    /// The name it has in OpenAPI documents, such as `io.k8s.api.core.v1.Pod`.
    pub name: &'static str,
    pub fields: &'static [Field],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    One,
    List,
    /// From string.
    Map,
}

#[derive(Clone, Copy, Debug)]
pub enum Type {
    String,
    /// base64 in JSON.
    Bytes,
    Bool,
    Int,
    Double,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    Duration,
    /// Any JSON.
    Any,
    /// JSON object stored as bytes: managed fields.
    Fields,
    /// A list of strings that is a message of its own on the wire.
    Strings,
    Message(&'static Message),
}

/// How a strategic merge patch treats a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Replaced as a whole.
    Atomic,
    /// A set of primitive values.
    Set,
    /// Elements with the same value of this field are merged.
    Key(&'static str),
}

#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    /// 0: not in protobuf.
    pub tag: u32,
    pub shape: Shape,
    pub what: Type,
    pub merge: Merge,
    /// Its fields stand in the parent in JSON.
    pub inline: bool,
    /// A zero value on the wire is a value; without it zero means absent.
    pub pointer: bool,
    /// Written in JSON even when empty.
    pub required: bool,
    pub retain_keys: bool,
}

impl Field {
    pub(crate) const fn new(name: &'static str, tag: u32, shape: Shape, what: Type, merge: Merge) -> Field {
        Field {
            name,
            tag,
            shape,
            what,
            merge,
            inline: false,
            pointer: false,
            required: false,
            retain_keys: false,
        }
    }
    pub(crate) const fn inline(mut self) -> Field {
        self.inline = true;
        self
    }
    pub(crate) const fn pointer(mut self) -> Field {
        self.pointer = true;
        self
    }
    pub(crate) const fn required(mut self) -> Field {
        self.required = true;
        self
    }
    pub(crate) const fn retain_keys(mut self) -> Field {
        self.retain_keys = true;
        self
    }
}

impl Message {
    /// The field with this JSON name, also inside inlined messages.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find_map(|field| match field.what {
            Type::Message(inner) if field.inline => inner.field(name),
            _ => (field.name == name).then_some(field),
        })
    }
}
