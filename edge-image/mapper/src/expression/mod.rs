//! Expressions that pick a value out of a line or convert it: `number(field(line, ";", 2)) * 0.1 - 40` (docs/serial.md).
//!
//! Is not: a programming language. There are no loops, no variables of one's own and no state.
//! Invariants: reading and evaluating are total and bounded (length, nodes and depth, [`crate::limits`]): a description from outside
//! can cost microseconds, never the mapper. Start at [`Expression::parse`]; the functions are in `functions.rs`.

mod functions;
mod parse;
mod pattern;

use std::{borrow::Cow, cell::OnceCell, fmt};

pub use functions::{json_text, nmea_checksum, nmea_field};
pub use pattern::Pattern;

/// What an expression can look at.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// The whole line that came.
    pub line: &'a str,
    /// What was picked out of it (or what a register holds), if something was.
    pub value: Option<&'a str>,
}

#[derive(Clone, PartialEq)]
pub struct Expression {
    source: String,
    root: Node,
}

impl fmt::Debug for Expression {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Expression({})", self.source)
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Number(f64),
    Text(String),
    Line,
    Value,
    Not(Box<Node>),
    Minus(Box<Node>),
    Two(Operator, Box<(Node, Node)>),
    /// Condition, then, else.
    Choice(Box<(Node, Node, Node)>),
    Call(&'static functions::Function, Vec<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Or,
    And,
    Equal,
    Unequal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Plus,
    Minus,
    Times,
    Divide,
    Remainder,
}

#[derive(Clone, Debug)]
enum Datum<'a> {
    Number(f64),
    Text(Cow<'a, str>),
    Flag(bool),
}

/// One line's parsed JSON, shared by all that look into it while one expression is evaluated.
struct Scope<'a> {
    given: &'a Given<'a>,
    json: OnceCell<Option<serde_json::Value>>,
}

impl Expression {
    /// An error names the place in the text.
    pub fn parse(source: &str) -> Result<Expression, String> {
        Ok(Expression { source: source.to_owned(), root: parse::parse(source)? })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// The value as the twin's text, `whole`: rounded to a whole number. An error says why there is none.
    pub fn text(&self, given: &Given<'_>, whole: bool) -> Result<String, String> {
        let scope = Scope { given, json: OnceCell::new() };
        match self.root.evaluate(&scope)? {
            Datum::Number(number) if !number.is_finite() => Err(format!("{} gives no number", self.source)),
            Datum::Number(number) => Ok(number_text(if whole { number.round() } else { number })),
            Datum::Text(text) => Ok(text.trim().to_owned()),
            Datum::Flag(flag) => Ok(flag.to_string()),
        }
    }
}

impl Node {
    fn evaluate<'a>(&'a self, scope: &'a Scope<'a>) -> Result<Datum<'a>, String> {
        Ok(match self {
            Node::Number(number) => Datum::Number(*number),
            Node::Text(text) => Datum::Text(text.as_str().into()),
            Node::Line => Datum::Text(scope.given.line.into()),
            Node::Value => Datum::Text(scope.given.value.unwrap_or(scope.given.line).into()),
            Node::Not(inner) => Datum::Flag(!inner.evaluate(scope)?.flag()?),
            Node::Minus(inner) => Datum::Number(-inner.evaluate(scope)?.number()?),
            Node::Choice(parts) => {
                let (condition, yes, no) = parts.as_ref();
                if condition.evaluate(scope)?.flag()? { yes.evaluate(scope)? } else { no.evaluate(scope)? }
            }
            Node::Two(operator, sides) => operator.apply(sides, scope)?,
            Node::Call(function, arguments) => {
                let arguments: Result<Vec<Datum<'a>>, String> =
                    arguments.iter().map(|argument| argument.evaluate(scope)).collect();
                function.call(&arguments?, scope)?
            }
        })
    }
}

impl Operator {
    fn apply<'a>(self, sides: &'a (Node, Node), scope: &'a Scope<'a>) -> Result<Datum<'a>, String> {
        let left = sides.0.evaluate(scope)?;
        if matches!(self, Operator::Or | Operator::And) {
            let left = left.flag()?;
            // The right side may have no value when the left one decides.
            let decided = left == (self == Operator::Or);
            return Ok(Datum::Flag(if decided { left } else { sides.1.evaluate(scope)?.flag()? }));
        }
        let right = sides.1.evaluate(scope)?;
        if matches!(self, Operator::Equal | Operator::Unequal) {
            return Ok(Datum::Flag(left.equals(&right) == (self == Operator::Equal)));
        }
        let (left, right) = (left.number()?, right.number()?);
        Ok(match self {
            Operator::Less => Datum::Flag(left < right),
            Operator::LessEqual => Datum::Flag(left <= right),
            Operator::Greater => Datum::Flag(left > right),
            Operator::GreaterEqual => Datum::Flag(left >= right),
            Operator::Plus => Datum::Number(left + right),
            Operator::Minus => Datum::Number(left - right),
            Operator::Times => Datum::Number(left * right),
            Operator::Divide => Datum::Number(left / right),
            _ => Datum::Number(left % right),
        })
    }
}

impl<'a> Datum<'a> {
    fn number(&self) -> Result<f64, String> {
        match self {
            Datum::Number(number) => Ok(*number),
            Datum::Flag(flag) => Ok(f64::from(u8::from(*flag))),
            Datum::Text(text) => text.trim().parse().map_err(|_| format!("{text:?} is no number")),
        }
    }

    fn flag(&self) -> Result<bool, String> {
        match self {
            Datum::Number(number) => Ok(*number != 0.0),
            Datum::Flag(flag) => Ok(*flag),
            Datum::Text(text) => {
                crate::plan::level(text.trim()).ok_or_else(|| format!("{text:?} is neither true nor false"))
            }
        }
    }

    fn text(&self) -> Cow<'a, str> {
        match self {
            Datum::Number(number) => number_text(*number).into(),
            Datum::Flag(flag) => flag.to_string().into(),
            Datum::Text(text) => text.clone(),
        }
    }

    fn equals(&self, other: &Datum<'_>) -> bool {
        match (self.number(), other.number()) {
            (Ok(left), Ok(right)) => left == right,
            _ => self.text() == other.text(),
        }
    }
}

/// A number as people write it: twelve digits, so that 0.1 x 3 is 0.3, and no exponent for what a sensor says.
pub fn number_text(number: f64) -> String {
    let size = number.abs();
    if number == number.trunc() && size < 1e15 {
        return (number as i64).to_string();
    }
    let rounded: f64 = format!("{number:.11e}").parse().unwrap_or(number);
    if (1e-6..1e15).contains(&size) { rounded.to_string() } else { format!("{rounded:e}") }
}

/// Total on any text; what parses evaluates without a panic, and finds the same value twice.
pub fn fuzz_expression(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (source, line) = text.split_once('\n').unwrap_or((&text, "$GPGGA,1,2*4f;T=21.5,{\"a\":[1]}"));
    let Ok(expression) = Expression::parse(source) else { return };
    let given = Given { line, value: Some("21.5") };
    let once = expression.text(&given, false);
    assert_eq!(once, expression.text(&given, false));
    let _ = expression.text(&given, true);
}

#[cfg(test)]
mod tests;
