//! In a process of its own, because the signals are real.

use std::{future::Future, process::Command, task::Poll};

#[test]
fn both_signals_ask_for_the_end() {
    rt::runtime().unwrap().block_on(async {
        for signal in ["TERM", "INT"] {
            let mut shutdown = std::pin::pin!(rt::shutdown_signal());
            // The first poll installs the handlers; before that a signal would end this process.
            let first = std::future::poll_fn(|ctx| Poll::Ready(shutdown.as_mut().poll(ctx).is_pending()));
            assert!(first.await);
            let kill =
                Command::new("kill").args([format!("-{signal}"), std::process::id().to_string()]).status();
            assert!(kill.unwrap().success());
            assert_eq!(shutdown.await, format!("SIG{signal}"));
        }
    });
}
