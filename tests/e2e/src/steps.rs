//! Named, timed and bounded steps.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a condition is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(100);

/// Waits until `look` gives a value. An error of `look` is final; `None` means: not yet.
pub fn wait_until<T>(within: Duration, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = look().with_context(|| format!("while waiting for {what}"))? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not seen within {} s", within.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

/// As [`wait_until`], but an error of `look` only means: not yet; the last one goes into the message.
pub fn wait_for<T>(within: Duration, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let mut last = None;
    let seen = wait_until(within, what, || match look() {
        Ok(value) => {
            last = None;
            Ok(value)
        }
        Err(error) => {
            last = Some(format!("{error:#}"));
            Ok(None)
        }
    });
    seen.with_context(|| {
        last.map_or("nothing went wrong on the way".into(), |last| format!("last error: {last}"))
    })
}

/// Prints each step when it begins and how long it took when it ends.
pub struct Steps {
    started: Instant,
    quiet: bool,
    pub done: Vec<(String, f64)>,
}

impl Default for Steps {
    fn default() -> Self {
        Steps { started: Instant::now(), quiet: false, done: Vec::new() }
    }
}

impl Steps {
    pub fn quiet() -> Steps {
        Steps { quiet: true, ..Steps::default() }
    }

    /// Runs one step. Its value and the seconds it took.
    pub fn step<T>(&mut self, name: &str, run: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
        let begun = Instant::now();
        if !self.quiet {
            println!("  [{:>4.0} s] {name} ...", self.started.elapsed().as_secs_f64());
        }
        let value = run().with_context(|| name.to_owned())?;
        let took = begun.elapsed().as_secs_f64();
        if !self.quiet {
            println!("  [{:>4.0} s] {name}: {took:.1} s", self.started.elapsed().as_secs_f64());
        }
        self.done.push((name.into(), took));
        Ok((value, took))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_what_was_waited_for_and_the_last_error() {
        let seen = wait_for(Duration::ZERO, "the moon", || -> Result<Option<()>> { bail!("clouds") });
        let text = format!("{:#}", seen.unwrap_err());
        assert!(text.contains("the moon: not seen") && text.contains("clouds"), "{text}");
        let mut looks = 0;
        let third = wait_until(Duration::from_secs(5), "three looks", || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(third.unwrap(), 3);
    }

    #[test]
    fn an_error_is_final_for_wait_until() {
        let error = wait_until(Duration::from_secs(60), "x", || -> Result<Option<()>> { bail!("broken") })
            .unwrap_err();
        assert!(format!("{error:#}").contains("broken"));
    }
}
