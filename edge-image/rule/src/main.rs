//! The sample application of a device node: a pod that closes a loop over the node's MQTT broker, with or without a cloud.
//!
//!     rule "default/button-1 pressed =true => default/led-1 lit toggle"
//!
//! The broker is $MQTT (127.0.0.1:1883: a pod with hostNetwork). Values come and wishes go on KubeEdge's twin topics, so it works on a
//! stock KubeEdge node too. Not here: a language of rules. A real application is a program of its own with the same five topics.

mod rules;

use std::{
    env,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use mqtt::{
    Qos,
    client::{Client, Event, Options},
};

use rules::{Message, Rules};

const BROKER: &str = "127.0.0.1:1883";
const KEEP_ALIVE_S: u16 = 30;
/// Longest twin message; a longer one closes the connection.
const PACKET_BYTES_MAX: usize = 64 * 1024;
/// How long a turn waits for the broker, which is also how late a keep-alive can be.
const TURN: Duration = Duration::from_millis(500);
/// Twins may know a device later than this program: it is asked again until every source is known.
const ASK_AGAIN: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let texts: Vec<String> = env::args().skip(1).collect();
    let rules = match Rules::new(&texts) {
        Ok(rules) => rules,
        Err(error) => {
            eprintln!("rule: {error}");
            return ExitCode::from(2);
        }
    };
    run(&env::var("MQTT").unwrap_or_else(|_| BROKER.into()), rules)
}

fn run(broker: &str, mut rules: Rules) -> ! {
    let start = Instant::now();
    let mut client = Client::new(Options {
        // One session per pod: the host's name is the node's, as it uses the host's network.
        client_id: format!("rule-{}", std::process::id()),
        username: None,
        password: None,
        clean_session: true,
        will: None,
        keep_alive_s: KEEP_ALIVE_S,
        packet_bytes_max: PACKET_BYTES_MAX,
    });
    for filter in rules.filters() {
        client.subscribe(&filter);
    }
    let mut said = false;
    loop {
        let lost = match TcpStream::connect(broker) {
            Ok(stream) => {
                println!("rule: connected to {broker}");
                said = false;
                talk(&mut client, stream, &mut rules, start)
            }
            Err(error) => error.to_string(),
        };
        if !std::mem::replace(&mut said, true) {
            eprintln!("rule: no broker at {broker}: {lost}; it is tried again");
        }
        thread::sleep(Duration::from_millis(client.closed()));
    }
}

/// Until the connection ends; returns why.
fn talk(client: &mut Client, mut stream: TcpStream, rules: &mut Rules, start: Instant) -> String {
    let now_ms = || start.elapsed().as_millis() as u64;
    if let Err(error) = stream.set_read_timeout(Some(TURN)).and_then(|()| stream.set_nodelay(true)) {
        return error.to_string();
    }
    client.opened(now_ms());
    let mut asked: Option<Instant> = None;
    let mut buffer = [0; 4096];
    loop {
        if client.deadline_ms().is_some_and(|at| at <= now_ms())
            && let Err(error) = client.tick(now_ms())
        {
            return error.to_string();
        }
        let is_late = |at: Instant| !rules.is_informed() && at.elapsed() >= ASK_AGAIN;
        if client.is_up() && asked.is_none_or(is_late) {
            asked = Some(Instant::now());
            rules.questions().iter().for_each(|question| publish(client, question));
        }
        let output = client.output();
        if !output.is_empty() {
            if let Err(error) = stream.write_all(output) {
                return error.to_string();
            }
            output.clear();
            client.wrote(now_ms());
        }
        match stream.read(&mut buffer) {
            Ok(0) => return "it closed the connection".into(),
            Ok(len) => client.receive(&buffer[..len]),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(error) => return error.to_string(),
        }
        let mut wishes = Vec::new();
        loop {
            match client.next_event() {
                Ok(Some(Event::Message { topic, payload, .. })) => {
                    wishes.extend(rules.handle(topic, payload))
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => return error.to_string(),
            }
        }
        for wish in wishes {
            println!("rule: {} {}", wish.topic, wish.payload);
            publish(client, &wish);
        }
    }
}

fn publish(client: &mut Client, message: &Message) {
    if let Err(error) = client.publish(&message.topic, message.payload.as_bytes(), Qos::AtLeastOnce, false) {
        eprintln!("rule: {} is lost: {error}", message.topic);
    }
}
