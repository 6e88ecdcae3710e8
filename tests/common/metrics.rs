//! A metrics service on loopback.

use super::*;

/// A metrics service on loopback that keeps what it is sent.
pub struct MetricsStub {
    pub url: String,
    state: Arc<Mutex<StubState>>,
}

struct StubState {
    /// The status to answer with; `None` to take the report and close without an answer.
    answer: Option<u16>,
    /// The reports that were answered with success.
    delivered: Vec<Value>,
    /// All requests: the first line, and the body.
    requests: Vec<(String, String)>,
}

impl MetricsStub {
    /// One that answers 200.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = StubState { answer: Some(200), delivered: Vec::new(), requests: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                thread::spawn(move || answer(stream, &shared));
            }
        });
        Self { url, state }
    }

    /// What to answer from now on; `None` closes the connection without an answer.
    pub fn answer(&self, status: Option<u16>) {
        self.state.lock().unwrap().answer = status;
    }

    pub fn delivered(&self) -> Vec<Value> {
        self.state.lock().unwrap().delivered.clone()
    }

    pub fn requests(&self) -> Vec<(String, String)> {
        self.state.lock().unwrap().requests.clone()
    }

    /// The sum of a figure over all delivered reports.
    pub fn sum(&self, key: &str) -> u64 {
        self.delivered().iter().map(|report| report[key].as_u64().unwrap()).sum()
    }
}

fn answer(stream: TcpStream, state: &Mutex<StubState>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut request_line = String::new();
    reader.read_line(&mut request_line).ok()?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).ok()?;
    let mut state = state.lock().unwrap();
    state.requests.push((request_line.trim_end().to_owned(), body.clone()));
    let status = state.answer?;
    if (200..300).contains(&status) && !body.is_empty() {
        state.delivered.push(serde_json::from_str(&body).ok()?);
    }
    drop(state);
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok()
}

impl MetricsStub {
    /// One at `address`, which nothing listens on.
    pub fn at(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let state = StubState { answer: Some(200), delivered: Vec::new(), requests: Vec::new() };
        let stub = Self { url: format!("http://{address}"), state: Arc::new(Mutex::new(state)) };
        let shared = Arc::clone(&stub.state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                thread::spawn(move || answer(stream, &shared));
            }
        });
        stub
    }
}
