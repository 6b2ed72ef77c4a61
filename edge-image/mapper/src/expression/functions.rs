//! The functions of expressions. `number` and the like are asked of text by the arithmetic itself.

use std::borrow::Cow;

use super::{Datum, Pattern, Scope};

pub struct Function {
    pub name: &'static str,
    /// Fewest and most arguments.
    pub arguments: (usize, usize),
    /// How it is written, for errors and docs.
    pub form: &'static str,
    kind: Kind,
}

impl PartialEq for Function {
    fn eq(&self, other: &Function) -> bool {
        self.name == other.name
    }
}

impl std::fmt::Debug for Function {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.name)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Number(fn(f64) -> f64),
    Numbers(fn(f64, f64) -> f64),
    Other(Other),
}

#[derive(Clone, Copy)]
enum Other {
    Field,
    Word,
    Json,
    Nmea,
    Match,
    After,
    Before,
    Starts,
    Contains,
    Number,
    Hex,
    Round,
    Bit,
    Length,
}

const fn other(name: &'static str, arguments: (usize, usize), form: &'static str, other: Other) -> Function {
    Function { name, arguments, form, kind: Kind::Other(other) }
}

const fn of_one(name: &'static str, form: &'static str, act: fn(f64) -> f64) -> Function {
    Function { name, arguments: (1, 1), form, kind: Kind::Number(act) }
}

const fn of_two(name: &'static str, form: &'static str, act: fn(f64, f64) -> f64) -> Function {
    Function { name, arguments: (2, 2), form, kind: Kind::Numbers(act) }
}

pub static ALL: [Function; 22] = [
    other("field", (3, 3), "field(text, \",\", 2)", Other::Field),
    other("word", (2, 2), "word(text, 2)", Other::Word),
    other("json", (2, 2), "json(text, \"/sensor/temperature\")", Other::Json),
    other("nmea", (3, 3), "nmea(line, \"RMC\", 7)", Other::Nmea),
    other("match", (2, 3), "match(text, \"T=*C H=*%\", 0)", Other::Match),
    other("after", (2, 2), "after(text, \"T=\")", Other::After),
    other("before", (2, 2), "before(text, \"C\")", Other::Before),
    other("starts", (2, 2), "starts(text, \"T=\")", Other::Starts),
    other("contains", (2, 2), "contains(text, \"OK\")", Other::Contains),
    other("number", (1, 1), "number(text)", Other::Number),
    other("hex", (1, 1), "hex(text)", Other::Hex),
    other("round", (1, 2), "round(value, 1)", Other::Round),
    other("bit", (2, 2), "bit(value, 3)", Other::Bit),
    other("length", (1, 1), "length(text)", Other::Length),
    of_one("abs", "abs(value)", f64::abs),
    of_one("floor", "floor(value)", f64::floor),
    of_one("sqrt", "sqrt(value)", f64::sqrt),
    of_one("ln", "ln(value)", f64::ln),
    of_one("exp", "exp(value)", f64::exp),
    of_two("min", "min(value, 100)", f64::min),
    of_two("max", "max(value, 0)", f64::max),
    of_two("pow", "pow(value, 2)", f64::powf),
];

impl Function {
    pub(super) fn call<'a>(
        &'static self,
        arguments: &[Datum<'a>],
        scope: &'a Scope<'a>,
    ) -> Result<Datum<'a>, String> {
        let none = || format!("{} finds nothing", self.form);
        match self.kind {
            Kind::Number(act) => Ok(Datum::Number(act(arguments[0].number()?))),
            Kind::Numbers(act) => Ok(Datum::Number(act(arguments[0].number()?, arguments[1].number()?))),
            Kind::Other(other) => call(other, arguments, scope)?.ok_or_else(none),
        }
    }
}

/// The parser has counted the arguments.
fn call<'a>(
    other: Other,
    arguments: &[Datum<'a>],
    scope: &'a Scope<'a>,
) -> Result<Option<Datum<'a>>, String> {
    let text = arguments[0].text();
    let second = || arguments[1].text();
    let index = |at: usize| arguments.get(at).map_or(Ok(0.0), Datum::number).map(|number| number as i64);
    Ok(match other {
        Other::Field => {
            let separator = second();
            if separator.is_empty() {
                return Err("field needs a separator".into());
            }
            pick(&text, |text| Ok(nth(text.split(separator.as_ref()), index(2)?)))?
        }
        Other::Word => pick(&text, |text| Ok(nth(text.split_whitespace(), index(1)?)))?,
        Other::Json => json(&text, &second(), scope),
        Other::Nmea => {
            let field = nmea_field(&text, &second(), index(2)?);
            field.map(|field| Datum::Text(field.to_owned().into()))
        }
        Other::Match => {
            let Ok(wanted) = usize::try_from(index(2)?) else { return Ok(None) };
            pick(&text, |text| Ok(Pattern::new(&second()).part(text, wanted)))?
        }
        Other::After => pick(&text, |text| Ok(text.split_once(second().as_ref()).map(|(_, after)| after)))?,
        Other::Before => {
            pick(&text, |text| Ok(text.split_once(second().as_ref()).map(|(before, _)| before)))?
        }
        Other::Starts => Some(Datum::Flag(text.starts_with(second().as_ref()))),
        Other::Contains => Some(Datum::Flag(text.contains(second().as_ref()))),
        Other::Number => Some(Datum::Number(arguments[0].number()?)),
        Other::Hex => {
            let digits = text.trim().trim_start_matches("0x");
            u32::from_str_radix(digits, 16).ok().map(|number| Datum::Number(f64::from(number)))
        }
        Other::Round => {
            let digits = index(1)?.clamp(0, 12) as i32;
            let factor = 10_f64.powi(digits);
            Some(Datum::Number((arguments[0].number()? * factor).round() / factor))
        }
        Other::Bit => {
            let bits = arguments[0].number()? as i64;
            Some(Datum::Flag(bits >> index(1)?.clamp(0, 62) & 1 == 1))
        }
        Other::Length => Some(Datum::Number(text.trim().chars().count() as f64)),
    })
}

/// A part of a text, borrowed where the text is.
fn pick<'a>(
    text: &Cow<'a, str>,
    part: impl for<'t> FnOnce(&'t str) -> Result<Option<&'t str>, String>,
) -> Result<Option<Datum<'a>>, String> {
    Ok(match text {
        Cow::Borrowed(text) => part(text)?.map(|part| Datum::Text(part.into())),
        Cow::Owned(text) => part(text)?.map(|part| Datum::Text(part.to_owned().into())),
    })
}

/// From 0, or from the end: -1 is the last.
fn nth<'t>(mut parts: impl Iterator<Item = &'t str> + Clone, index: i64) -> Option<&'t str> {
    let from_start = if index < 0 { parts.clone().count() as i64 + index } else { index };
    usize::try_from(from_start).ok().and_then(|at| parts.nth(at))
}

fn json<'a>(text: &str, pointer: &str, scope: &'a Scope<'a>) -> Option<Datum<'a>> {
    let datum = |found: &serde_json::Value| match found {
        serde_json::Value::String(text) => Some(Datum::Text(text.clone().into())),
        // As it was written: a counter beyond 2^53 keeps its digits.
        serde_json::Value::Number(number) => Some(Datum::Text(number.to_string().into())),
        serde_json::Value::Bool(flag) => Some(Datum::Flag(*flag)),
        _ => None,
    };
    if text == scope.given.line {
        let parsed = scope.json.get_or_init(|| serde_json::from_str(text).ok());
        return datum(parsed.as_ref()?.pointer(pointer)?);
    }
    datum(serde_json::from_str::<serde_json::Value>(text).ok()?.pointer(pointer)?)
}

/// What a JSON pointer leads to, as text; `None` for an object or a list.
pub fn json_text(line: &str, pointer: &str) -> Option<String> {
    match serde_json::from_str::<serde_json::Value>(line).ok()?.pointer(pointer)? {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        serde_json::Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// A field of a sentence of that kind whose checksum is right.
pub fn nmea_field<'t>(line: &'t str, kind: &str, field: i64) -> Option<&'t str> {
    let body = nmea(line).filter(|body| is_kind(body, kind))?;
    nth(body.split(','), field)
}

/// The exclusive or of all bytes between `$` and `*` (NMEA 0183).
pub fn nmea_checksum(body: &str) -> u8 {
    body.bytes().fold(0, |sum, byte| sum ^ byte)
}

/// What is between `$` (or `!`) and `*` of a sentence whose checksum is right.
fn nmea(line: &str) -> Option<&str> {
    let (body, sum) = line.trim().strip_prefix(['$', '!'])?.rsplit_once('*')?;
    (sum.len() == 2 && u8::from_str_radix(sum, 16).ok()? == nmea_checksum(body)).then_some(body)
}

/// `RMC` is the kind of `GPRMC` and of `GNRMC`; `GPRMC` only of the first.
fn is_kind(body: &str, kind: &str) -> bool {
    let name = body.split(',').next().unwrap_or_default();
    name == kind || kind.len() == 3 && name.len() == 5 && name.ends_with(kind)
}
