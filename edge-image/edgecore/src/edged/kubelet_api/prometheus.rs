//! Prometheus' text format.

use std::fmt::Write;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

/// One metric and its samples.
pub struct Family<'a> {
    out: &'a mut String,
    name: &'a str,
    time_ms: Option<i64>,
}

impl<'a> Family<'a> {
    /// With `time_ms` every sample says when it was taken.
    pub fn new(
        out: &'a mut String,
        name: &'a str,
        kind: Kind,
        help: &str,
        time_ms: Option<i64>,
    ) -> Family<'a> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { out, name, time_ms }
    }

    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(self.name);
        for (at, (label, value)) in labels.iter().enumerate() {
            self.out.push(if at == 0 { '{' } else { ',' });
            let _ = write!(self.out, "{label}=\"");
            escape(self.out, value);
            self.out.push('"');
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = write!(self.out, " {value}");
        if let Some(time_ms) = self.time_ms {
            let _ = write!(self.out, " {time_ms}");
        }
        self.out.push('\n');
    }
}

pub fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_lines() {
        let mut out = String::new();
        let mut family = Family::new(&mut out, "x_total", Kind::Counter, "What x did.", Some(1700));
        family.sample(&[("pod", "a\"b\\c\nd"), ("ns", "e")], 1.5);
        family.sample(&[], 3_000_000_000.0);
        assert_eq!(
            out,
            "# HELP x_total What x did.\n# TYPE x_total counter\nx_total{pod=\"a\\\"b\\\\c\\nd\",ns=\"e\"} 1.5 1700\nx_total 3000000000 1700\n"
        );
    }
}
