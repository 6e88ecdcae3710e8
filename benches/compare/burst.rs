//! Many results are published at once, in new directories, while the processors are busy.

use std::fs;
use std::future;
use std::hint;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use result_cleaner::server;

use crate::Args;
use crate::measure::{Latencies, Outcome, check, joined, timed, wait_until};
use crate::ours::Service;
use crate::process::get_stats;
use crate::tree::{self, FAR, Place};

const WRITERS: usize = 2;
const BUSY: usize = 2;
const PAIRS_A_DIRECTORY: usize = 50;
/// Between two requests for the stats.
const PAUSE: Duration = Duration::from_millis(5);

pub fn run(args: &Args) -> Outcome {
    let pairs = args.pairs(6_000);
    let root = Place::new()?;
    let service = Service::start(root.path())?;
    service.wait_for_first_scan()?;
    let listener = service.runtime.block_on(server::bind(([127, 0, 0, 1], 0).into()))?;
    let address = listener.local_addr()?;
    let source = Arc::new(service.cleaner.handle());
    service.runtime.spawn(server::serve(listener, source, Vec::new(), future::pending()));

    let over = AtomicBool::new(false);
    let is_over = || over.load(Ordering::Relaxed);
    let (published, direct, over_http) = thread::scope(|scope| {
        for _ in 0..BUSY {
            scope.spawn(|| {
                while !is_over() {
                    hint::spin_loop();
                }
            });
        }
        let direct = scope.spawn(|| {
            sample(is_over, || {
                hint::black_box(service.stats());
                Ok(())
            })
        });
        let over_http = scope.spawn(|| sample(is_over, || get_stats(address).map(drop)));
        let published = publish(&service, root.path(), pairs);
        over.store(true, Ordering::Relaxed);
        (published, joined(direct), joined(over_http))
    });
    let (writing, until_known) = published?;
    println!("\nburst: {pairs} pairs by {WRITERS} writers, beside {BUSY} busy loops");
    println!(
        "written in {:.2} s, the last one known {:.1} ms later, none lost, no sweep",
        writing.as_secs_f64(),
        until_known.as_secs_f64() * 1e3
    );
    println!("get_stats()                  {}", direct?);
    println!("GET /stats                   {}", over_http?);
    tree::check_files(root.path(), 2 * pairs)?;
    service.stop()
}

/// Publishes so many pairs, and waits until `service` knows all of them without having swept; how
/// long each took.
fn publish(service: &Service, root: &Path, pairs: usize) -> Outcome<(Duration, Duration)> {
    let (writing, ()) = timed(|| {
        thread::scope(|scope| {
            let start = |writer| scope.spawn(move || write(root, writer, pairs));
            let writers: Vec<_> = (0..WRITERS).map(start).collect();
            writers.into_iter().try_for_each(joined)
        })
    })?;
    let (until_known, ()) = timed(|| {
        wait_until("all known", Duration::from_millis(1), || {
            service.stats().heap_size == pairs as u64
        })
    })?;
    let stats = service.stats();
    check(stats.total_cleanups == 1 && stats.total_errors == 0, format_args!("{stats:?}"))?;
    Ok((writing, until_known))
}

/// Writes every so many-th of the pairs, beginning with the one of number `writer`.
fn write(root: &Path, writer: usize, pairs: usize) -> io::Result<()> {
    for (count, number) in (writer..pairs).step_by(WRITERS).enumerate() {
        let session = root.join(format!("writer_{writer}_session_{}", count / PAIRS_A_DIRECTORY));
        if count % PAIRS_A_DIRECTORY == 0 {
            fs::create_dir(&session)?;
        }
        tree::publish(&session, &tree::stem(number), FAR)?;
    }
    Ok(())
}

/// How long each request took, until all is over.
fn sample(
    is_over: impl Fn() -> bool,
    mut request: impl FnMut() -> io::Result<()>,
) -> io::Result<Latencies> {
    let mut latencies = Latencies::default();
    while !is_over() {
        let start = Instant::now();
        request()?;
        latencies.add(start.elapsed());
        thread::sleep(PAUSE);
    }
    Ok(latencies)
}
