//! Text to tree, by descent; every step counts against the bounds.

use super::{Node, Operator, functions};
use crate::limits::{EXPRESSION_BYTES_MAX, EXPRESSION_DEPTH_MAX, EXPRESSION_NODES_MAX};

struct Parser<'a> {
    text: &'a str,
    at: usize,
    nodes: usize,
    depth: usize,
}

/// Operators of two sides, loosest first; longer signs before their beginnings.
const LEVELS: [&[(&str, Operator)]; 5] = [
    &[("||", Operator::Or)],
    &[("&&", Operator::And)],
    &[
        ("==", Operator::Equal),
        ("!=", Operator::Unequal),
        ("<=", Operator::LessEqual),
        (">=", Operator::GreaterEqual),
        ("<", Operator::Less),
        (">", Operator::Greater),
    ],
    &[("+", Operator::Plus), ("-", Operator::Minus)],
    &[("*", Operator::Times), ("/", Operator::Divide), ("%", Operator::Remainder)],
];

pub fn parse(text: &str) -> Result<Node, String> {
    if text.len() > EXPRESSION_BYTES_MAX {
        return Err(format!("the expression is longer than {EXPRESSION_BYTES_MAX} bytes"));
    }
    let mut parser = Parser { text, at: 0, nodes: 0, depth: 0 };
    let node = parser.choice()?;
    parser.skip_spaces();
    if parser.at < text.len() { Err(parser.wrong("an operator or the end")) } else { Ok(node) }
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_spaces(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn take(&mut self, sign: &str) -> bool {
        self.skip_spaces();
        let there = self.rest().starts_with(sign);
        if there {
            self.at += sign.len();
        }
        there
    }

    fn want(&mut self, sign: &str) -> Result<(), String> {
        if self.take(sign) { Ok(()) } else { Err(self.wrong(sign)) }
    }

    fn wrong(&self, wanted: &str) -> String {
        let found: String = self.rest().chars().take(12).collect();
        let found = if found.is_empty() { "the end".to_owned() } else { format!("{found:?}") };
        format!("character {}: {wanted} is needed where {found} is", self.at + 1)
    }

    fn count(&mut self, node: Node) -> Result<Node, String> {
        self.nodes += 1;
        if self.nodes > EXPRESSION_NODES_MAX {
            return Err(format!("the expression has more than {EXPRESSION_NODES_MAX} parts"));
        }
        Ok(node)
    }

    fn deeper<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        if self.depth >= EXPRESSION_DEPTH_MAX {
            return Err(format!("the expression is nested deeper than {EXPRESSION_DEPTH_MAX}"));
        }
        self.depth += 1;
        let result = step(self);
        self.depth -= 1;
        result
    }

    fn choice(&mut self) -> Result<Node, String> {
        self.deeper(|parser| {
            let condition = parser.two(0)?;
            if !parser.take("?") {
                return Ok(condition);
            }
            let yes = parser.choice()?;
            parser.want(":")?;
            let no = parser.choice()?;
            parser.count(Node::Choice(Box::new((condition, yes, no))))
        })
    }

    fn two(&mut self, level: usize) -> Result<Node, String> {
        let Some(operators) = LEVELS.get(level) else { return self.one() };
        let mut left = self.two(level + 1)?;
        // A chain nests to the left: it is as deep as it is long.
        let mut chain = 0;
        while let Some((_, operator)) = operators.iter().find(|(sign, _)| self.take(sign)) {
            chain += 1;
            if chain > EXPRESSION_DEPTH_MAX {
                return Err(format!(
                    "the expression has more than {EXPRESSION_DEPTH_MAX} operators in a row"
                ));
            }
            let right = self.two(level + 1)?;
            left = self.count(Node::Two(*operator, Box::new((left, right))))?;
        }
        Ok(left)
    }

    fn one(&mut self) -> Result<Node, String> {
        self.skip_spaces();
        let rest = self.rest();
        match rest.chars().next() {
            Some('-') => self.prefixed(Node::Minus),
            Some('!') => self.prefixed(Node::Not),
            Some('(') => {
                self.at += 1;
                let inner = self.choice()?;
                self.want(")")?;
                Ok(inner)
            }
            Some('"') => self.quoted('"'),
            Some('\'') => self.quoted('\''),
            Some(first) if first.is_ascii_digit() || first == '.' => self.number(),
            Some(first) if first.is_ascii_alphabetic() => self.named(),
            _ => Err(self.wrong("a value")),
        }
    }

    fn prefixed(&mut self, make: fn(Box<Node>) -> Node) -> Result<Node, String> {
        self.at += 1;
        let inner = self.deeper(Self::one)?;
        self.count(make(Box::new(inner)))
    }

    fn quoted(&mut self, quote: char) -> Result<Node, String> {
        let start = self.at + 1;
        let Some(len) = self.text[start..].find(quote) else { return Err(self.wrong("a text with its end")) };
        self.at = start + len + 1;
        let raw = &self.text[start..start + len];
        self.count(Node::Text(raw.replace("\\t", "\t")))
    }

    fn number(&mut self) -> Result<Node, String> {
        let rest = self.rest();
        let digits =
            |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let mut len = digits(rest);
        if let Some(hex) = rest.strip_prefix("0x") {
            let len = hex.len() - hex.trim_start_matches(|c: char| c.is_ascii_hexdigit()).len();
            let number = u32::from_str_radix(&hex[..len], 16)
                .map_err(|_| self.wrong("a number of 1 to 8 hexadecimal digits"))?;
            self.at += 2 + len;
            return self.count(Node::Number(f64::from(number)));
        }
        if let Some(after) = rest[len..].strip_prefix(['e', 'E']) {
            let sign = usize::from(after.starts_with(['+', '-']));
            let exponent = digits(&after[sign..]);
            if exponent > 0 {
                len += 1 + sign + exponent;
            }
        }
        let number: f64 = rest[..len].parse().map_err(|_| self.wrong("a number"))?;
        if !number.is_finite() {
            return Err(self.wrong("a smaller number"));
        }
        self.at += len;
        self.count(Node::Number(number))
    }

    fn named(&mut self) -> Result<Node, String> {
        let rest = self.rest();
        let len = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric()).len();
        let name = &rest[..len];
        let node = match name {
            "line" => Some(Node::Line),
            "value" => Some(Node::Value),
            "true" => Some(Node::Number(1.0)),
            "false" => Some(Node::Number(0.0)),
            _ => None,
        };
        if let Some(node) = node {
            self.at += len;
            return self.count(node);
        }
        let Some(function) = functions::ALL.iter().find(|function| function.name == name) else {
            let known: Vec<&str> = functions::ALL.iter().map(|function| function.name).collect();
            return Err(format!("{name} is unknown; use line, value, {}", known.join(", ")));
        };
        self.at += len;
        self.want("(")?;
        let mut arguments = Vec::new();
        while !self.take(")") {
            if !arguments.is_empty() {
                self.want(",")?;
            }
            arguments.push(self.choice()?);
        }
        let (min, max) = function.arguments;
        if !(min..=max).contains(&arguments.len()) {
            return Err(format!("{name} is written {}", function.form));
        }
        self.count(Node::Call(function, arguments))
    }
}
