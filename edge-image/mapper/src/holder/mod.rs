//! The line-holder: a small process of its own that owns output lines, so that they keep their level while the mapper is
//! restarted, and that applies a fail-safe value when nobody speaks for a line any more.
//!
//! The protocol is in docs/gpio.md. [`Holder`] decides, [`serve`] has the sockets, [`SocketOutputs`] is the mapper's end.

mod activity;
mod answer;
mod client;
mod counter;
pub mod counts;
mod held;
mod request;
mod server;
mod state;

pub use answer::{Answer, State, Why};
pub use client::SocketOutputs;
pub use request::{Target, fuzz_words};
pub use server::serve;
pub use state::{Holder, fuzz_requests};

/// The line-holder as the mapper uses it. Errors are lines for the user.
pub trait Outputs {
    /// One request, one line of answer.
    fn ask(&mut self, request: &str) -> Result<String, String>;

    /// A request about one thing that is held.
    fn about(&mut self, request: &str) -> Result<Answer, String> {
        let text = self.ask(request)?;
        let told = text.strip_prefix("ok ").and_then(Answer::parse);
        told.ok_or_else(|| text.strip_prefix("error ").unwrap_or(&text).to_owned())
    }

    fn request(&mut self, name: &str, target: &Target) -> Result<Answer, String> {
        self.about(&format!("request {name}{}", target.render()))
    }

    /// `due`: in how many milliseconds the fail-safe value is due although somebody speaks, and why.
    fn set(&mut self, name: &str, value: u32, due: Option<(u64, Why)>) -> Result<Answer, String> {
        self.about(&format!("set {name} {value}{}", due_words(due)))
    }

    fn refresh(&mut self, name: &str, due: Option<(u64, Why)>) -> Result<Answer, String> {
        self.about(&format!("refresh {name}{}", due_words(due)))
    }

    fn release(&mut self, name: &str) -> Result<(), String> {
        match self.ask(&format!("release {name}"))?.as_str() {
            "ok" => Ok(()),
            other => Err(other.to_owned()),
        }
    }
}

fn due_words(due: Option<(u64, Why)>) -> String {
    due.map(|(ms, why)| format!(" due-ms={ms} why={}", why.word())).unwrap_or_default()
}

/// The devices of a mapper share one connection.
pub type SharedOutputs = std::rc::Rc<std::cell::RefCell<dyn Outputs>>;

impl<T: Outputs + ?Sized> Outputs for std::rc::Rc<std::cell::RefCell<T>> {
    fn ask(&mut self, request: &str) -> Result<String, String> {
        self.borrow_mut().ask(request)
    }
}

#[cfg(test)]
mod tests;
