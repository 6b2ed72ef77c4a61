//! What a property takes out of a text line, and what it writes (docs/serial.md).

use super::{Type, fields::Fields, modbus::expression};
use crate::{
    expression::{Expression, Given, Pattern, json_text, nmea_checksum, nmea_field, number_text},
    limits::WRITE_BYTES_MAX,
};

#[derive(Clone, Debug, PartialEq)]
pub struct TextField {
    pub pick: Pick,
    /// Of what was picked, which then must be a number: times and plus.
    pub scale: Option<(f64, f64)>,
    pub expression: Option<Expression>,
    /// INT: rounded.
    pub whole: bool,
    /// The line to send for a desired value.
    pub write: Option<Template>,
    /// The line to send every `collectCycle`, for devices that speak only when they are asked.
    pub ask: Option<Template>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Pick {
    /// The whole line, for the expression to look at.
    Line,
    /// What follows a prefix, or a part of it.
    Prefix {
        prefix: String,
        separator: Option<char>,
        field: i64,
    },
    Json {
        pointer: String,
    },
    Nmea {
        sentence: String,
        field: i64,
    },
    Pattern {
        pattern: String,
        field: usize,
    },
}

/// A line with `{}` for the value and `{checksum}` for NMEA's.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    pub text: String,
    expression: Option<Expression>,
}

pub fn text_field(fields: &mut Fields<'_>, property: &str, kind: Type) -> Result<TextField, String> {
    let scale = (fields.decimal("scale")?, fields.decimal("offset")?);
    if scale.0 == Some(0.0) {
        return Err(format!("{}: 0 makes every value 0; use 1 for no scale", fields.path("scale")));
    }
    let expression_of_value = expression(fields, "expression")?;
    Ok(TextField {
        pick: pick(fields, property, expression_of_value.is_some())?,
        scale: (scale != (None, None)).then(|| (scale.0.unwrap_or(1.0), scale.1.unwrap_or(0.0))),
        expression: expression_of_value,
        whole: kind == Type::Int,
        write: write(fields)?,
        ask: line(fields, "ask")?.map(|text| Template { text, expression: None }),
    })
}

fn pick(fields: &mut Fields<'_>, property: &str, has_expression: bool) -> Result<Pick, String> {
    let prefix = fields.text("prefix")?;
    let json = fields.text("json")?;
    let sentence = fields.text("nmea")?;
    let pattern = fields.text("pattern")?;
    let separator = match fields.text("separator")? {
        None => None,
        Some(text) => {
            let mut chars = text.chars();
            match (chars.next(), chars.next()) {
                (Some(separator), None) => Some(separator),
                _ => return Err(format!("{}: {text:?} is not one character", fields.path("separator"))),
            }
        }
    };
    let field = match fields.decimal("field")? {
        Some(field) if field.fract() != 0.0 || field.abs() > 63.0 => {
            return Err(format!("{}: {field} is not a whole number from -63 to 63", fields.path("field")));
        }
        field => field.map(|field| field as i64),
    };
    let ways =
        [prefix.is_some() || separator.is_some(), json.is_some(), sentence.is_some(), pattern.is_some()];
    if ways.iter().filter(|way| **way).count() > 1 {
        return Err(format!(
            "{}: prefix and separator, json, nmea and pattern are four ways; use one of them",
            fields.path("pattern")
        ));
    }
    if field.is_some() && separator.is_none() && sentence.is_none() && pattern.is_none() {
        return Err(format!(
            "{}: needs a separator, nmea or pattern; write configData.separator",
            fields.path("field")
        ));
    }
    Ok(match (json, sentence, pattern) {
        (Some(pointer), ..) => {
            if !pointer.is_empty() && !pointer.starts_with('/') {
                return Err(format!(
                    "{}: {pointer:?} is no JSON pointer; write it as /sensor/temperature",
                    fields.path("json")
                ));
            }
            Pick::Json { pointer }
        }
        (_, Some(sentence), _) => {
            let Some(field) = field else {
                return Err(format!(
                    "{} is missing: write the field of the sentence, from 0",
                    fields.path("field")
                ));
            };
            Pick::Nmea { sentence, field }
        }
        (.., Some(pattern)) => {
            if !pattern.contains('*') {
                return Err(format!("{}: {pattern:?} has no * for the value", fields.path("pattern")));
            }
            Pick::Pattern { pattern, field: usize::try_from(field.unwrap_or(0)).unwrap_or(usize::MAX) }
        }
        _ if has_expression && prefix.is_none() && separator.is_none() => Pick::Line,
        _ => {
            let prefix = prefix.unwrap_or_else(|| format!("{property}="));
            Pick::Prefix { prefix, separator, field: field.unwrap_or(0) }
        }
    })
}

fn line(fields: &mut Fields<'_>, key: &'static str) -> Result<Option<String>, String> {
    let text = fields.text(key)?;
    if let Some(line) = &text
        && (line.contains(['\n', '\r']) || line.len() > WRITE_BYTES_MAX / 2)
    {
        return Err(format!(
            "{}: {line:?} is no line of at most {} bytes",
            fields.path(key),
            WRITE_BYTES_MAX / 2
        ));
    }
    Ok(text)
}

fn write(fields: &mut Fields<'_>) -> Result<Option<Template>, String> {
    let text = line(fields, "write")?;
    let expression = expression(fields, "writeExpression")?;
    match text {
        None if expression.is_some() => {
            Err(format!("{}: is for write; write configData.write", fields.path("writeExpression")))
        }
        None => Ok(None),
        Some(text) if !text.contains("{}") => Err(format!(
            "{}: {text:?} is no line with a place for the value; write something like \"heater={{}}\"",
            fields.path("write")
        )),
        Some(text) => Ok(Some(Template { text, expression })),
    }
}

impl TextField {
    /// For `mapper check`.
    pub fn describe(&self) -> String {
        let what = match &self.pick {
            Pick::Line => "the line".to_owned(),
            Pick::Prefix { prefix, separator: None, .. } => format!("what follows {prefix:?}"),
            Pick::Prefix { prefix, separator: Some(separator), field } => {
                format!("part {field} between {separator:?} of what follows {prefix:?}")
            }
            Pick::Json { pointer } => format!("{pointer} of JSON"),
            Pick::Nmea { sentence, field } => format!("field {field} of NMEA {sentence}"),
            Pick::Pattern { pattern, field } => format!("star {field} of {pattern:?}"),
        };
        let expression = self.expression.as_ref().map(|expression| format!(", then {}", expression.source()));
        what + &expression.unwrap_or_default()
    }

    /// The value in a line, if the line is for this property.
    pub fn value(&self, line: &str) -> Option<String> {
        let line = line.trim();
        let mut value = match &self.pick {
            Pick::Line => line.to_owned(),
            Pick::Prefix { prefix, separator, field } => {
                let rest = line.strip_prefix(prefix.as_str())?;
                match separator {
                    Some(separator) => {
                        let count = rest.split(*separator).count() as i64;
                        let at = if *field < 0 { count + field } else { *field };
                        rest.split(*separator).nth(usize::try_from(at).ok()?)?.trim().to_owned()
                    }
                    None => rest.trim().to_owned(),
                }
            }
            Pick::Json { pointer } => json_text(line, pointer)?,
            Pick::Nmea { sentence, field } => nmea_field(line, sentence, *field)?.to_owned(),
            Pick::Pattern { pattern, field } => Pattern::new(pattern).part(line, *field)?.trim().to_owned(),
        };
        if let Some((scale, offset)) = self.scale {
            let number = value.parse::<f64>().ok()? * scale + offset;
            value = number.is_finite().then(|| number_text(number))?;
        }
        if let Some(expression) = &self.expression {
            value = expression.text(&Given { line, value: Some(&value) }, self.whole).ok()?;
        } else if self.whole && self.scale.is_some() {
            value = number_text(value.parse::<f64>().ok()?.round());
        }
        Some(value)
    }
}

impl Template {
    /// The line to send, without its end.
    pub fn line(&self, value: &str) -> Result<String, String> {
        let value = match &self.expression {
            Some(expression) => expression.text(&Given { line: value, value: Some(value) }, false)?,
            None => value.to_owned(),
        };
        let mut line = self.text.replace("{}", &value);
        if let Some(sum) = line.find("{checksum}") {
            let from = line[..sum].find('$').map_or(0, |at| at + 1);
            let body = line[from..sum].trim_end_matches('*');
            line = line.replace("{checksum}", &format!("{:02X}", nmea_checksum(body)));
        }
        if line.len() > WRITE_BYTES_MAX {
            return Err(format!("the line for {value:?} is longer than {WRITE_BYTES_MAX} bytes"));
        }
        Ok(line)
    }
}

/// Total on any line: each way to pick finds something within the line, or nothing; a sentence with a spoilt byte is no sentence.
pub fn fuzz_text(data: &[u8]) {
    let line = String::from_utf8_lossy(data);
    let within = |part: Option<&str>| assert!(part.is_none_or(|part| line.contains(part)));
    for field in [-63, -1, 0, 1, 63] {
        within(nmea_field(&line, "GGA", field));
    }
    for pattern in ["*", "*,*", "$*", "a*b*c", "**"] {
        within(Pattern::new(pattern).part(&line, 0));
        within(Pattern::new(pattern).part(&line, 1));
    }
    let _ = json_text(&line, "/a/0/b");
    let body: String = line.chars().filter(|letter| !"$!*\r\n".contains(*letter)).collect();
    let sentence = format!("$GPGGA,{body}*{:02X}", nmea_checksum(&format!("GPGGA,{body}")));
    assert_eq!(nmea_field(&sentence, "GGA", 0), Some("GPGGA"), "{sentence:?}");
    let spoilt = sentence.replacen("GPGGA", "GPGGB", 1);
    assert_eq!(nmea_field(&spoilt, "GGB", 0), None);
}
