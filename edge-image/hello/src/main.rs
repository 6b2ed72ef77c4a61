//! The sample pod: a web server of a few hundred kB whose page says which pod answered.
//!
//! `hello` serves on `$PORT` (8080); `hello env`, `hello print FILE`, `hello cat`, `hello sleep SECONDS` and `hello exit CODE` print, repeat, wait or end, so that
//! the tests of the pod path need no second image. Not here: anything a real web server needs.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::ExitCode,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::{SigSet, Signal};

const PORT_DEFAULT: u16 = 8080;
/// More at once are closed without an answer.
const CONNECTIONS_MAX: usize = 16;
/// A request's head that is longer is cut here.
const REQUEST_BYTES_MAX: u64 = 8 * 1024;
const CONNECTION_WAIT: Duration = Duration::from_secs(5);

static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["serve"] => serve(),
        ["env"] => {
            env::vars().for_each(|(name, value)| println!("{name}={value}"));
            ExitCode::SUCCESS
        }
        ["print", path] => print(path),
        ["cat"] => cat(),
        ["sleep", seconds] => {
            thread::sleep(Duration::from_secs(seconds.parse().unwrap_or(1)));
            ExitCode::SUCCESS
        }
        ["exit", code] => {
            println!("exit {code}");
            ExitCode::from(code.parse().unwrap_or(1))
        }
        _ => {
            eprintln!("usage: hello [serve | env | print FILE | cat | sleep SECONDS | exit CODE]");
            ExitCode::from(2)
        }
    }
}

fn print(path: &str) -> ExitCode {
    match fs::read_to_string(path) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("hello: cannot read {path}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says what it hears, piece by piece.
fn cat() -> ExitCode {
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut piece = [0; 4096];
    loop {
        let written = match input.read(&mut piece) {
            Ok(0) => return ExitCode::SUCCESS,
            Ok(n) => output.write_all(&piece[..n]).and_then(|()| output.flush()),
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            eprintln!("hello: cannot pass on what it hears: {error}");
            return ExitCode::FAILURE;
        }
    }
}

fn serve() -> ExitCode {
    // PID 1 of a container never sees a signal whose action is the default one: block it, so that it stays pending, and wait for it.
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTERM);
    stop.add(Signal::SIGINT);
    if let Err(error) = stop.thread_block() {
        eprintln!("hello: cannot block signals: {error}");
        return ExitCode::FAILURE;
    }
    let port = match env::var("PORT").map(|text| text.parse::<u16>()) {
        Ok(Ok(port)) => port,
        Ok(Err(_)) => {
            eprintln!("hello: PORT is not a port number (1 to 65535)");
            return ExitCode::from(2);
        }
        Err(_) => PORT_DEFAULT,
    };
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("hello: cannot listen on port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("listening on port {port}");
    thread::spawn(move || listener.incoming().flatten().for_each(accept));
    let _ = stop.wait();
    println!("stopped by a signal");
    ExitCode::SUCCESS
}

fn accept(stream: TcpStream) {
    if CONNECTIONS.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let worker = thread::Builder::new().stack_size(64 * 1024).spawn(move || {
        // A visitor who leaves early is no fault of the server.
        let _ = answer(stream);
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
    });
    if worker.is_err() {
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(CONNECTION_WAIT))?;
    stream.set_write_timeout(Some(CONNECTION_WAIT))?;
    let mut head = BufReader::with_capacity(1024, Read::take(stream.try_clone()?, REQUEST_BYTES_MAX));
    let mut line = String::new();
    while head.read_line(&mut line)? > 0 && line.trim_end() != "" {
        line.clear();
    }
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let greeting = format!("hello from {}", hostname.trim());
    let page = format!("<!doctype html><title>{greeting}</title><h1>{greeting}</h1><p>{}</p>\n", instance());
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
        page.len()
    )
}

/// What tells this run of the program from any other: a random id made at the first use, the process id and the start time. A
/// restarted container shows another line, so anybody who can fetch the page can see that it was not restarted.
fn instance() -> &'static str {
    static INSTANCE: OnceLock<String> = OnceLock::new();
    INSTANCE.get_or_init(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // Field 22 of proc(5): start time in clock ticks since boot; the name before it may hold spaces, so count from its end.
        let ticks = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)).unwrap_or("?");
        format!("instance {}, process {}, started {ticks} ticks after boot", id.trim(), std::process::id())
    })
}
