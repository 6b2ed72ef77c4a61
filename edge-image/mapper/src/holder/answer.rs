//! What the line-holder answers about one thing that it holds.

use std::fmt;

/// Why an output is at its fail-safe value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nobody spoke for it: the mapper or the agent is dead.
    Silence,
    /// The link to the cloud is gone.
    Link,
    /// The desired value is too old.
    Stale,
}

impl Why {
    pub fn word(self) -> &'static str {
        match self {
            Why::Silence => "silence",
            Why::Link => "link",
            Why::Stale => "stale",
        }
    }

    pub fn parse(word: &str) -> Option<Why> {
        [Why::Silence, Why::Link, Why::Stale].into_iter().find(|why| why.word() == word)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Steady,
    /// The line changes by itself; a pulse ends in so many milliseconds.
    Pulse {
        left_ms: u64,
    },
    Blink,
    FailSafe(Why),
    Count {
        lost: u64,
        millihertz: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 0 or 1, millionths of a duty cycle, or a count.
    pub value: u64,
    pub state: State,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.value)?;
        match self.state {
            State::Steady => f.write_str("held"),
            State::Pulse { left_ms } => write!(f, "pulse {left_ms}"),
            State::Blink => f.write_str("blink"),
            State::FailSafe(why) => write!(f, "failsafe {}", why.word()),
            State::Count { lost, millihertz } => write!(f, "count {lost} {millihertz}"),
        }
    }
}

impl Answer {
    /// What stands after `ok `.
    pub fn parse(text: &str) -> Option<Answer> {
        let mut words = text.split_ascii_whitespace();
        let value = words.next()?.parse().ok()?;
        let state = match words.next()? {
            "held" => State::Steady,
            "pulse" => State::Pulse { left_ms: words.next()?.parse().ok()? },
            "blink" => State::Blink,
            "failsafe" => State::FailSafe(Why::parse(words.next()?)?),
            "count" => {
                State::Count { lost: words.next()?.parse().ok()?, millihertz: words.next()?.parse().ok()? }
            }
            _ => return None,
        };
        Some(Answer { value, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        for state in [
            State::Steady,
            State::Pulse { left_ms: 7 },
            State::Blink,
            State::FailSafe(Why::Silence),
            State::FailSafe(Why::Link),
            State::FailSafe(Why::Stale),
            State::Count { lost: 3, millihertz: 12_500 },
        ] {
            let answer = Answer { value: 41, state };
            assert_eq!(Answer::parse(&answer.to_string()), Some(answer));
        }
        for odd in ["", "1", "x held", "1 dance", "1 pulse", "1 failsafe moon", "1 count 1"] {
            assert_eq!(Answer::parse(odd), None, "{odd}");
        }
    }
}
