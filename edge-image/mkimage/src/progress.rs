//! One line per long step: a bar on a terminal, plain lines in a log.

use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

#[derive(Debug)]
pub struct Progress {
    name: String,
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    /// A step whose length is not known.
    pub fn step(name: &str) -> Progress {
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.set_style(style("{spinner} {msg} ({elapsed})"));
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        Progress::with(name, bar)
    }

    /// A step that is measured in bytes.
    pub fn bytes(name: &str, total: u64) -> Progress {
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
        bar.set_style(style("  {msg} [{bar:30}] {bytes}/{total_bytes} {eta}"));
        let name = format!("{name} ({:.1} MB)", total as f64 / 1e6);
        Progress::with(&name, bar)
    }

    fn with(name: &str, bar: ProgressBar) -> Progress {
        bar.set_message(name.to_owned());
        Progress { name: name.to_owned(), bar, started: Instant::now() }
    }

    pub fn at(&self, position: u64) {
        self.bar.set_position(position);
    }

    pub fn done(self) {
        self.bar.finish_and_clear();
        eprintln!("  {}: {:.1} s", self.name, self.started.elapsed().as_secs_f64());
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
