//! Starting a service on many directories.

use std::fs;

use crate::measure::{Outcome, Side, check, compare};
use crate::ours::Service;
use crate::tree::Place;
use crate::usage::{Who, charged};
use crate::{Args, floor};
use result_cleaner::WatchState;

const LIMIT: &str = "/proc/sys/fs/inotify/max_user_watches";
const DIRECTORIES_A_GROUP: usize = 100;

pub fn run(args: &Args) -> Outcome {
    let root = Place::new()?;
    for number in 0..args.directories {
        let group = root.path().join(format!("group_{}", number / DIRECTORIES_A_GROUP));
        fs::create_dir_all(group.join(format!("session_{number}")))?;
    }
    let directories = 1 + args.directories.div_ceil(DIRECTORIES_A_GROUP) + args.directories;
    let limit: usize = fs::read_to_string(LIMIT)?.trim().parse()?;
    if limit <= directories {
        println!("\nwatch: {directories} directories are too many for {LIMIT}, which is {limit}");
        return Ok(());
    }
    let sides = vec![
        Side::new("floor: add_watch, open, getdents", || {
            let (cost, (watches, watched)) = charged(Who::Process, || floor::watch(root.path()))?;
            drop(watches);
            check(watched == directories, format_args!("the floor has watched {watched}"))?;
            Ok(cost)
        }),
        Side::new("ours, until the first scan is done", || {
            let (cost, service) = charged(Who::Process, || {
                let service = Service::start(root.path())?;
                service.wait_for_first_scan()?;
                Outcome::Ok(service)
            })?;
            let state = service.stats().watch;
            check(state == WatchState::Active, format_args!("the watch is {state}"))?;
            service.stop()?;
            Ok(cost)
        }),
    ];
    compare(&format!("watch {directories} directories"), directories, args.rounds, sides)?;
    Ok(())
}
