//! A headless Chromium, driven by the DevTools protocol: JSON messages on a pair of pipes, each
//! ended by a NUL byte.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a browser may take for anything on a machine that is busy with other things.
const BROWSER_PATIENCE: Duration = Duration::from_secs(120);
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
/// It keeps to itself, and needs nothing that a container may lack.
const FLAGS: [&str; 14] = [
    "--headless=new",
    "--remote-debugging-pipe",
    // The sandbox does not start for root, and only this program's own page is opened.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-breakpad",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-default-browser-check",
    "--no-first-run",
];

/// One at a time: several at once only slow each other down.
static TURN: Mutex<()> = Mutex::new(());

/// A browser with one tab; it ends with this value.
pub struct Chromium {
    child: Child,
    requests: ChildStdin,
    messages: Receiver<Value>,
    last_id: u64,
    /// Of the tab.
    session: String,
    /// What the tab sent unasked.
    events: Vec<Value>,
    profile: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Chromium {
    /// Starts one that is installed; `None`, with a message, where none is.
    pub fn start() -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let works = |name: &&str| {
            let version = Command::new(name).arg("--version").stderr(Stdio::null()).output();
            version.is_ok_and(|version| version.status.success())
        };
        let Some(name) = NAMES.into_iter().find(works) else {
            eprintln!("skipped: none of {} is installed", NAMES.join(", "));
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            // The protocol wants the descriptors 3 and 4. What is written to the log shows why a
            // browser did not start.
            .args(["-c", r#"log=$1; shift; exec "$@" 3<&0 4>&1 </dev/null >"$log" 2>&1"#, "sh"])
            .arg(profile.path().join("log"))
            .arg(name)
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            // What it starts is killed with it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let requests = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let (sender, messages) = channel();
        thread::spawn(move || {
            for message in answers.split(0).map_while(Result::ok) {
                if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            child,
            requests,
            messages,
            last_id: 0,
            session: String::new(),
            events: Vec::new(),
            profile,
            _turn: turn,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attached = browser.call(
            "Target.attachToTarget",
            json!({"targetId": target["targetId"], "flatten": true}),
        );
        attached["sessionId"].as_str().unwrap().clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// The answer to a method of the protocol, which has to succeed.
    #[track_caller]
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut request = json!({"id": self.last_id, "method": method, "params": params});
        if !self.session.is_empty() {
            request["sessionId"] = self.session.as_str().into();
        }
        if let Err(error) = self.requests.write_all(format!("{request}\0").as_bytes()) {
            panic!("the browser takes no request: {error}\n{}", self.log());
        }
        let deadline = Instant::now() + BROWSER_PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = match self.messages.recv_timeout(left) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => panic!("{method} has no answer\n{}", self.log()),
                Err(RecvTimeoutError::Disconnected) => panic!("the browser died\n{}", self.log()),
            };
            if message["id"] == self.last_id {
                assert!(message.get("error").is_none(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            if message["method"].is_string() {
                self.events.push(message);
            }
        }
    }

    /// Goes to `url`, and waits until it is loaded.
    #[track_caller]
    pub fn open(&mut self, url: &str) {
        let went = self.call("Page.navigate", json!({"url": url}));
        assert!(went.get("errorText").is_none(), "{url}: {}", went["errorText"]);
        self.wait_until("the page is loaded", "document.readyState === 'complete'");
    }

    /// The value of an expression of JavaScript, once it is settled if it is a promise.
    #[track_caller]
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let evaluated = self.call("Runtime.evaluate", params);
        let exception = evaluated.get("exceptionDetails");
        assert!(exception.is_none(), "{expression}: {}", exception.unwrap());
        evaluated["result"]["value"].clone()
    }

    /// Waits until an expression of JavaScript is true.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, expression: &str) {
        let deadline = Instant::now() + BROWSER_PATIENCE;
        while self.evaluate(expression) != true {
            if Instant::now() > deadline {
                let text = self.evaluate("document.body.innerText");
                panic!("in vain waited until {what}; the page says: {text:#}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Gives the page so many CSS pixels.
    pub fn resize(&mut self, width: u32, height: u32) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// Has the user prefer `light` or `dark`.
    pub fn prefer(&mut self, scheme: &str) {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.call("Emulation.setEmulatedMedia", json!({"features": [feature]}));
    }

    /// A PNG of the whole page at its present width.
    pub fn screenshot(&mut self) -> Vec<u8> {
        let size = self.evaluate(
            "[innerWidth, Math.ceil(document.documentElement.getBoundingClientRect().height)]",
        );
        let [width, height] = [0, 1].map(|side| size[side].as_u64().unwrap());
        let clip = json!({"x": 0, "y": 0, "width": width, "height": height, "scale": 1});
        let shot = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let shot = self.call("Page.captureScreenshot", shot);
        BASE64_STANDARD.decode(shot["data"].as_str().unwrap()).unwrap()
    }

    /// What the tab has sent for `method` so far.
    pub fn events(&self, method: &str) -> Vec<&Value> {
        let reported = self.events.iter().filter(|event| event["method"] == method);
        reported.map(|event| &event["params"]).collect()
    }

    /// What the browser has logged.
    fn log(&self) -> String {
        std::fs::read_to_string(self.profile.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
