//! The engine: one thread per process that runs all cleaners. It starts with the first request.

use std::io;
use std::path::Path;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use result_cleaner::{Cleaner, Config, Error, ResultStore, SweepReport};
use tokio::runtime::{Builder, Handle as Runtime};
use tokio::sync::mpsc;

use crate::hub::{self, CleanerId, Hub, MailboxId, RequestId, Running};
use crate::log;
use crate::message::{Message, json};

/// Threads that read and delete end after this time without work.
const KEEP_ALIVE: Duration = Duration::from_millis(1200);

pub(crate) struct Engine {
    runtime: Runtime,
}

impl Engine {
    fn start() -> io::Result<Self> {
        log::install();
        let mut builder = Builder::new_current_thread();
        builder.enable_all().thread_keep_alive(KEEP_ALIVE).thread_name("result-cleaner");
        let runtime = builder.build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new().name("result-cleaner".to_owned()).spawn(move || {
            leave_signals_to_python();
            runtime.block_on(std::future::pending::<()>());
        })?;
        Ok(Self { runtime: handle })
    }
}

/// Blocks the signals that Python handles, in this thread and those that it starts. A signal that one of
/// them received would not wake the thread that waits in the event loop.
fn leave_signals_to_python() {
    let mut signals = SigSet::all();
    // The faults of a thread are its own.
    for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGABRT]
    {
        signals.remove(fault);
    }
    // It can fail only for an invalid set.
    let _ = signals.thread_block();
}

/// What Python asks of a cleaner.
pub(crate) enum Command {
    /// Stop, and answer once it has ended.
    Stop(Option<(MailboxId, RequestId)>),
    /// Stop, and send once it has ended. It counts as ended, too, once this is dropped.
    Shutdown(std_mpsc::Sender<()>),
}

/// Puts the path of each removed result into a mailbox.
pub(crate) struct RemovedPaths(pub MailboxId);

impl ResultStore for RemovedPaths {
    fn removed(&self, result: &Path) {
        hub::lock().push(self.0, Message::Removed(result.to_owned()));
    }
}

fn runtime(hub: &mut Hub) -> io::Result<Runtime> {
    if hub.engine.is_none() {
        hub.engine = Some(Engine::start()?);
    }
    match &hub.engine {
        Some(engine) => Ok(engine.runtime.clone()),
        None => Err(io::Error::other("the engine has not started")),
    }
}

fn reply(mailbox: MailboxId, request: RequestId, outcome: Result<String, Error>) {
    hub::lock().push(mailbox, Message::Reply(request, outcome));
}

fn report(outcome: Result<SweepReport, Error>) -> Result<String, Error> {
    outcome.map(|report| json(&report))
}

pub(crate) fn start(
    hub: &mut Hub,
    config: Config,
    mailbox: MailboxId,
    request: RequestId,
) -> io::Result<CleanerId> {
    let runtime = runtime(hub)?;
    let id = hub.next_id();
    let (commands, asked) = mpsc::unbounded_channel();
    hub.cleaners.insert(id, Running { commands, handle: None });
    runtime.spawn(run(id, config, mailbox, request, asked));
    Ok(id)
}

/// Runs one cleaner from its start to its end.
async fn run(
    id: CleanerId,
    config: Config,
    mailbox: MailboxId,
    request: RequestId,
    mut asked: mpsc::UnboundedReceiver<Command>,
) {
    let cleaner = match Cleaner::spawn(config).await {
        Ok(cleaner) => cleaner,
        Err(error) => {
            reply(mailbox, request, Err(error));
            return answer_all(None, asked);
        }
    };
    let handle = cleaner.handle();
    {
        let mut hub = hub::lock();
        if let Some(running) = hub.cleaners.get_mut(&id) {
            running.handle = Some(handle.clone());
        }
        hub.push(mailbox, Message::Reply(request, Ok(String::new())));
    }
    let first = tokio::select! {
        _ = handle.closed() => None,
        command = asked.recv() => command,
    };
    let ended = cleaner.stop().await;
    answer_all(first, asked);
    hub::lock().push(mailbox, Message::Closed(ended.err()));
}

/// Answers those who asked a cleaner that has ended to stop.
fn answer_all(first: Option<Command>, mut asked: mpsc::UnboundedReceiver<Command>) {
    asked.close();
    for command in first.into_iter().chain(std::iter::from_fn(|| asked.try_recv().ok())) {
        match command {
            Command::Stop(Some((mailbox, request))) => reply(mailbox, request, Ok(String::new())),
            Command::Stop(None) => {}
            // The process may wait no longer.
            Command::Shutdown(ended) => drop(ended.send(())),
        }
    }
}

pub(crate) fn sweep(
    hub: &mut Hub,
    cleaner: CleanerId,
    mailbox: MailboxId,
    request: RequestId,
) -> io::Result<()> {
    let Some(handle) = hub.handle(cleaner) else {
        hub.push(mailbox, Message::Reply(request, Err(Error::Stopped)));
        return Ok(());
    };
    let sweep = async move { reply(mailbox, request, report(handle.sweep().await)) };
    runtime(hub)?.spawn(sweep);
    Ok(())
}

pub(crate) fn sweep_once(
    hub: &mut Hub,
    config: Config,
    mailbox: MailboxId,
    request: RequestId,
) -> io::Result<()> {
    let sweep = async move {
        reply(mailbox, request, report(result_cleaner::sweep_once(&config).await));
    };
    runtime(hub)?.spawn(sweep);
    Ok(())
}

pub(crate) fn stop(hub: &mut Hub, cleaner: CleanerId, answer_to: Option<(MailboxId, RequestId)>) {
    let running = hub.cleaners.get(&cleaner);
    let asked =
        running.is_some_and(|running| running.commands.send(Command::Stop(answer_to)).is_ok());
    if let (false, Some((mailbox, request))) = (asked, answer_to) {
        hub.push(mailbox, Message::Reply(request, Ok(String::new())));
    }
}

pub(crate) fn subscribe(hub: &mut Hub, cleaner: CleanerId, mailbox: MailboxId) -> io::Result<()> {
    let Some(handle) = hub.handle(cleaner) else {
        hub.push(mailbox, Message::Closed(None));
        return Ok(());
    };
    let mut events = handle.subscribe();
    runtime(hub)?.spawn(async move {
        while let Some(event) = events.next().await {
            if !hub::lock().push(mailbox, Message::Event(event)) {
                return;
            }
        }
        hub::lock().push(mailbox, Message::Closed(None));
    });
    Ok(())
}

/// Stops all cleaners. What is returned ends once each of them has ended.
pub(crate) fn stop_all(hub: &mut Hub) -> std_mpsc::Receiver<()> {
    let (ends, ended) = std_mpsc::channel();
    for running in hub.cleaners.values() {
        let _ = running.commands.send(Command::Shutdown(ends.clone()));
    }
    ended
}

/// Waits until all cleaners have ended, but not longer than `timeout`.
pub(crate) fn wait_for_all(ended: std_mpsc::Receiver<()>, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    while ended.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
}
