//! A metrics service on loopback that behaves as requested, and knows what it has acknowledged.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::common::{PATIENCE, own_host, wait_until};

/// How a report is treated.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// As in "the metrics service …".
    pub name: &'static str,
    /// Whether anything listens.
    pub accepts: bool,
    /// Whether the connection is kept open, so that the report is on its way until its time-out.
    pub holds: bool,
    /// Whether the first thing that it sends is the complete head of a 2xx.
    acknowledges: bool,
    takes: Takes,
    sends: &'static [Part],
}

/// How much of the request is read.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Takes {
    All,
    Nothing,
    /// So that closing the connection resets it.
    AllButAByte,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Text(&'static str),
    /// A byte a second.
    Drip(&'static str),
    /// Over and over, for ten mebibytes.
    Flood(&'static str),
    /// A redirect of this status to another host.
    Redirect(u16),
}

use Part::{Drip, Flood, Redirect, Text};

const OK: Part = Text("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");

impl Manner {
    pub const GOOD: Self = acknowledging("answers 200", &[OK]);

    const fn resetting(self) -> Self {
        Self { takes: Takes::AllButAByte, ..self }
    }
}

const fn acknowledging(name: &'static str, sends: &'static [Part]) -> Manner {
    let takes = Takes::All;
    Manner { name, accepts: true, holds: false, acknowledges: true, takes, sends }
}

const fn failing(name: &'static str, sends: &'static [Part]) -> Manner {
    Manner { acknowledges: false, ..acknowledging(name, sends) }
}

const fn holding(name: &'static str, sends: &'static [Part]) -> Manner {
    Manner { holds: true, ..failing(name, sends) }
}

const REFUSING: Manner = Manner { accepts: false, ..failing("refuses", &[]) };
const DEAF: Manner = Manner { takes: Takes::Nothing, ..holding("hangs after it accepts", &[]) };

/// What takes no report.
pub const FAILING: &[Manner] = &[
    REFUSING,
    DEAF,
    holding("hangs after the request", &[]),
    holding("trickles the head of a 200", &[Drip("HTTP/1.1 200 OK\r\n\r\n")]),
    holding(
        "trickles headers after the status 200",
        &[Text("HTTP/1.1 200 OK\r\n"), Drip("Content-Length: 0\r\n\r\n")],
    ),
    holding(
        "says 100 over and over",
        &[Flood("HTTP/1.1 100 Continue\r\n\r\n"), Drip("HTTP/1.1 100 Continue\r\n\r\n")],
    ),
    failing("sends 10 MiB of one header", &[Text("HTTP/1.1 200 OK\r\nX: "), Flood("xxxxxxxxxx")]),
    failing("sends 10 MiB of headers", &[Text("HTTP/1.1 200 OK\r\n"), Flood("Name: value\r\n")]),
    failing("resets the connection", &[]).resetting(),
    failing("resets within the head", &[Text("HTTP/1.1 200 OK\r\nContent-Le")]).resetting(),
    failing("closes within the head", &[Text("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n")]),
    failing("redirects by 301", &[Redirect(301)]),
    failing("redirects by 302", &[Redirect(302)]),
    failing("redirects by 303", &[Redirect(303)]),
    failing("redirects by 307", &[Redirect(307)]),
    failing("redirects by 308", &[Redirect(308)]),
    failing("answers 500", &[Text("HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")]),
    failing(
        "answers 503 and 10 MiB",
        &[Text("HTTP/1.1 503 X\r\nContent-Length: 10485760\r\n\r\n"), Flood("sorry ")],
    ),
    failing("answers 304", &[Text("HTTP/1.1 304 X\r\n\r\n")]),
    failing("switches protocols", &[Text("HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n")]),
    failing("speaks SSH", &[Text("SSH-2.0-OpenSSH_9.2p1\r\n")]),
    failing("sends noise", &[Flood("\u{7ff}\0\r\n")]),
];

/// What takes every report.
pub const ACKNOWLEDGING: &[Manner] = &[
    Manner::GOOD,
    acknowledging("answers 204", &[Text("HTTP/1.1 204 X\r\n\r\n")]),
    acknowledging("answers 299 in HTTP/1.0", &[Text("HTTP/1.0 299 X\r\n\r\n")]),
    acknowledging(
        "says 103 before 200",
        &[Text("HTTP/1.1 103 X\r\nLink: <x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")],
    ),
    acknowledging(
        "trickles the body of a 200",
        &[Text("HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n"), Drip("{\"status\": \"ok\"}")],
    ),
    acknowledging(
        "holds back the body of a 200",
        &[Text("HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n"), Drip("")],
    ),
    acknowledging(
        "sends a body of 10 MiB",
        &[Text("HTTP/1.1 200 OK\r\nContent-Length: 10485760\r\n\r\n"), Flood("thanks ")],
    ),
    acknowledging(
        "sends chunks without end",
        &[Text("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), Flood("1\r\nx\r\n")],
    ),
    acknowledging(
        "sends chunks that are none",
        &[Text("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), Text("thanks")],
    ),
    acknowledging(
        "sends less than it announced",
        &[Text("HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\nthanks")],
    ),
    acknowledging(
        "sends more than it announced",
        &[Text("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 X\r\n\r\n")],
    ),
    acknowledging(
        "resets within the body",
        &[Text("HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\nthanks")],
    )
    .resetting(),
];

/// The metrics service.
pub struct Rogue {
    pub url: String,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Where redirects lead to.
    elsewhere: TcpListener,
}

struct State {
    manner: Manner,
    /// The reports whose acknowledgement was sent.
    acknowledged: Vec<Value>,
    connections: u64,
    /// The cleaner's side of the last of them.
    last: Option<SocketAddr>,
    /// Connections from which nothing is read.
    unread: Vec<TcpStream>,
}

impl Rogue {
    /// One that answers 200.
    pub fn start() -> Self {
        let listener = TcpListener::bind((own_host(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let elsewhere = TcpListener::bind((own_host(), 0)).unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        let state = State {
            manner: Manner::GOOD,
            acknowledged: Vec::new(),
            connections: 0,
            last: None,
            unread: Vec::new(),
        };
        let url = format!("http://{address}");
        let rogue = Self { url, address, state: Arc::new(Mutex::new(state)), elsewhere };
        rogue.listen(listener);
        rogue
    }

    /// How it treats reports from now on.
    pub fn behave(&self, manner: Manner) {
        let accepted = std::mem::replace(&mut self.state().manner, manner).accepts;
        if manner.accepts && !accepted {
            let mut listener = None;
            wait_until("its address is free", || {
                listener = TcpListener::bind(self.address).ok();
                listener.is_some()
            });
            self.listen(listener.unwrap());
        }
        if accepted && !manner.accepts {
            wait_until("it refuses", || TcpStream::connect(self.address).is_err());
        }
    }

    /// Accepts until it is to refuse.
    fn listen(&self, listener: TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let state = Arc::clone(&self.state);
        let elsewhere = self.elsewhere.local_addr().unwrap();
        thread::spawn(move || {
            while state.lock().unwrap().manner.accepts {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        stream.set_nonblocking(false).unwrap();
                        let mut locked = state.lock().unwrap();
                        locked.connections += 1;
                        locked.last = Some(peer);
                        let manner = locked.manner;
                        drop(locked);
                        let state = Arc::clone(&state);
                        thread::spawn(move || treat(stream, manner, &state, elsewhere));
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        thread::sleep(Duration::from_millis(5));
                    }
                }
            }
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The sum of a figure over all acknowledged reports.
    pub fn acknowledged(&self, figure: &str) -> u64 {
        self.state().acknowledged.iter().map(|report| report[figure].as_u64().unwrap()).sum()
    }

    /// How many reports were acknowledged.
    pub fn delivered(&self) -> u64 {
        self.state().acknowledged.len() as u64
    }

    /// How often it was connected to.
    pub fn connections(&self) -> u64 {
        self.state().connections
    }

    /// The last connection, if the cleaner has not closed it.
    pub fn open_report(&self) -> Option<SocketAddr> {
        let last = self.state().last;
        last.filter(|last| self.is_open(*last))
    }

    /// Whether the cleaner has not closed this connection.
    pub fn is_open(&self, connection: SocketAddr) -> bool {
        const ESTABLISHED: &str = "01";
        let hex = |address: SocketAddr| {
            let SocketAddr::V4(address) = address else { panic!("{address} is IPv6") };
            format!("{:08X}:{:04X}", address.ip().to_bits().swap_bytes(), address.port())
        };
        let sought = [hex(connection), hex(self.address), ESTABLISHED.to_owned()];
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        table.lines().any(|line| line.split_whitespace().skip(1).take(3).eq(&sought))
    }

    /// Whether anybody went where its redirects lead to.
    pub fn was_redirected_to(&self) -> bool {
        self.elsewhere.accept().is_ok()
    }
}

fn treat(
    mut stream: TcpStream,
    manner: Manner,
    state: &Mutex<State>,
    elsewhere: SocketAddr,
) -> Option<()> {
    if manner.takes == Takes::Nothing {
        state.lock().unwrap().unread.push(stream);
        return None;
    }
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let report = read_report(&stream, manner.takes)?;
    for (n, part) in manner.sends.iter().enumerate() {
        match part {
            Text(text) => stream.write_all(text.as_bytes()).ok()?,
            Drip(text) => {
                for byte in text.bytes() {
                    stream.write_all(&[byte]).ok()?;
                    thread::sleep(Duration::from_secs(1));
                }
            }
            Flood(text) => {
                let block = text.repeat(1024);
                for _ in 0..(10 << 20) / block.len() {
                    stream.write_all(block.as_bytes()).ok()?;
                }
            }
            Redirect(status) => {
                let head = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n");
                write!(stream, "{head}Location: http://{elsewhere}/track/cleanup\r\n\r\n").ok()?;
            }
        }
        if n == 0 && manner.acknowledges {
            state.lock().unwrap().acknowledged.push(report.clone());
        }
    }
    if manner.holds || manner.sends.iter().any(|part| matches!(part, Drip(_))) {
        // Until the cleaner leaves.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    Some(())
}

/// Reads a request as far as it is to be taken; its body.
fn read_report(stream: &TcpStream, takes: Takes) -> Option<Value> {
    // Unbuffered where a byte has to be left to the kernel.
    let capacity = if takes == Takes::All { 4096 } else { 1 };
    let mut reader = BufReader::with_capacity(capacity, stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim_end().is_empty() {
            break;
        }
    }
    let left = usize::from(takes == Takes::AllButAByte);
    let mut body = vec![0; length - left];
    reader.read_exact(&mut body).ok()?;
    body.extend(&b"}"[..left]);
    serde_json::from_slice(&body).ok()
}
