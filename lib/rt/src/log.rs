//! Log lines on stderr: `LEVEL target: message key=value`. One line per event, one write per line.
//!
//! Our own small subscriber instead of tracing-subscriber: we have no spans, and its filter alone brings 350 kB of regex.

use std::{
    error::Error,
    fmt::{self, Write as _},
    io::Write as _,
    sync::Once,
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};

use crate::{error_chain, limits::LOG_LINE_LEN};

/// `info`, or `info,hub=debug,edgecore::twin=trace,rustls=off`: a default level and levels of targets; the longest matching
/// target wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    default: LevelFilter,
    targets: Vec<(String, LevelFilter)>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a log level; write one of off, error, warn, info, debug, trace, or target=level, separated by commas"
)]
pub struct FilterError(String);

impl std::str::FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Filter, FilterError> {
        let mut filter = Filter { default: LevelFilter::INFO, targets: Vec::new() };
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (target, level) = part.split_once('=').unwrap_or(("", part));
            let level = level.parse().map_err(|_| FilterError(part.to_owned()))?;
            match target {
                "" => filter.default = level,
                target => filter.targets.push((target.to_owned(), level)),
            }
        }
        filter.targets.sort_by_key(|(target, _)| std::cmp::Reverse(target.len()));
        Ok(filter)
    }
}

impl Filter {
    fn level(&self, target: &str) -> LevelFilter {
        let matches = |prefix: &str| {
            target.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        self.targets.iter().find(|(prefix, _)| matches(prefix)).map_or(self.default, |(_, level)| *level)
    }

    fn level_max(&self) -> LevelFilter {
        self.targets.iter().map(|(_, level)| *level).fold(self.default, LevelFilter::max)
    }
}

/// Starts logging to stderr. A second call has no effect.
pub fn init(filter: &str) -> Result<(), FilterError> {
    static ONCE: Once = Once::new();
    let filter = filter.parse()?;
    ONCE.call_once(|| {
        // Fails only if a test harness has set another one; then that one gets the lines.
        let _ = tracing::subscriber::set_global_default(Log { filter, write: to_stderr });
    });
    Ok(())
}

fn to_stderr(line: &str) {
    // There is nowhere to report that stderr is gone.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

struct Log {
    filter: Filter,
    write: fn(&str),
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.filter.level(metadata.target())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.filter.level_max())
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let metadata = event.metadata();
        (self.write)(&line.render(*metadata.level(), metadata.target()));
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn render(&self, level: Level, target: &str) -> String {
        let mut line = format!("{level} {target}: {}{}", self.message, self.fields);
        if line.len() > LOG_LINE_LEN {
            line.truncate(line.floor_char_boundary(LOG_LINE_LEN));
            line.push_str("...");
        }
        // What comes from a peer must not be able to forge lines or to drive a terminal.
        let mut line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        line.push('\n');
        line
    }

    fn field(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        // Writing to a String fails only if a Debug or Display does; then the line has what it wrote.
        let _ = match field.name() {
            "message" => write!(self.message, "{value}"),
            name => write!(self.fields, " {name}={value}"),
        };
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() != "message" && (value.is_empty() || value.contains(char::is_whitespace)) {
            true => self.field(field, format_args!("{value:?}")),
            false => self.field(field, format_args!("{value}")),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.field(field, format_args!("{:?}", error_chain(value)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    static LINES: Mutex<String> = Mutex::new(String::new());

    #[test]
    fn lines_name_level_target_message_and_fields() {
        let write = |line: &str| LINES.lock().unwrap().push_str(line);
        let filter = "warn,hub=debug,hub::quiet=off".parse().unwrap();
        tracing::subscriber::with_default(Log { filter, write }, || {
            tracing::info!("below the default level");
            tracing::debug!(target: "hub::link", node = "pi-1", tries = 3, "connecting to {}", "cloud");
            tracing::debug!(target: "hubcap", "another target");
            tracing::error!(target: "hub::quiet", "off");
            let error = anyhow::anyhow!("timed out").context("cannot connect");
            tracing::warn!(target: "x", error = error.as_ref() as &dyn Error, why = "two words", "line\nbreak");
        });
        assert_eq!(
            *LINES.lock().unwrap(),
            "DEBUG hub::link: connecting to cloud node=pi-1 tries=3\n\
             WARN x: line break error=\"cannot connect: timed out\" why=\"two words\"\n"
        );
    }

    #[test]
    fn a_wrong_filter_is_named() {
        assert_eq!(
            "info,hub=loud".parse::<Filter>().unwrap_err().to_string(),
            "\"hub=loud\" is not a log level; write one of off, error, warn, info, debug, trace, or target=level, separated by commas"
        );
    }
}
