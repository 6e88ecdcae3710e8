//! Links, special files, directories with the names of files, reserved names and mounts.

use std::fs;

use super::inputs::{Input, LONG_AGO, calm, expired, fails, live};
use crate::common::{Pair, text};

pub fn inputs() -> Vec<Input> {
    [symbolic_links(), hard_links(), special_files(), directories(), reserved_names(), mounts()]
        .into_iter()
        .flatten()
        .collect()
}

fn symbolic_links() -> Vec<Input> {
    vec![
        calm("a result that is a link to a victim", |place| {
            place.link(place.victim().result, "a.result.json.lz4")?;
            place.metadata("a", expired())
        }),
        calm("metadata that is a link to expired metadata outside", |place| {
            place.result("a")?;
            place.link(place.victim().metadata, "a.metadata.json")
        }),
        calm("both halves links to victims", |place| {
            place.link(place.victim().result, "a.result.json.lz4")?;
            place.link(place.victim().metadata, "a.metadata.json")
        }),
        calm("a relative link to a victim", |place| {
            place.result("a")?;
            place.link("../../victims/a.metadata.json", "a.metadata.json")
        }),
        calm("metadata that is a link to other metadata of the directory", |place| {
            place.result("a")?;
            place.metadata("other", expired())?;
            place.link("other.metadata.json", "a.metadata.json")
        }),
        calm("metadata that is a link to itself", |place| {
            place.result("a")?;
            place.link("a.metadata.json", "a.metadata.json")
        }),
        calm("two links that lead to each other", |place| {
            place.link("a.metadata.json", "a.result.json.lz4")?;
            place.link("a.result.json.lz4", "a.metadata.json")
        }),
        calm("a link to nothing", |place| {
            place.result("a")?;
            place.link("nothing", "a.metadata.json")
        }),
        calm("a link whose target is as long as a path may be", |place| {
            place.result("a")?;
            place.link("x/".repeat(2047), "a.metadata.json")
        }),
        calm("a chain of 60 links to a victim", |place| {
            place.link(place.victims(), "0")?;
            for number in 1..60 {
                place.link((number - 1).to_string(), number.to_string())?;
            }
            place.link("59/a.metadata.json", "a.metadata.json")?;
            place.result("a")
        }),
        calm("a directory that is a link to the victims", |place| place.link(place.victims(), "d")),
        calm("a directory that is a link to the root directory", |place| place.link("/", "d")),
        calm("directories that are links to where they are", |place| {
            place.link(".", "here")?;
            place.link("..", "above")
        }),
        calm("a directory that is a link to a directory beside it", |place| {
            fs::create_dir(place.path("real"))?;
            let pair = Pair::at(&place.path("real"), "a").write(LONG_AGO);
            place.link("real", "link")?;
            place.has_to_go(pair);
            Ok(())
        }),
        calm("a link to the victims with the name of metadata", |place| {
            place.result("a")?;
            place.link(place.victims(), "a.metadata.json")
        }),
        calm("links into /proc that lead out", |place| {
            place.link("/proc/self/root", "d")?;
            place.link("/proc/1/cwd", "e")?;
            place.result("a")?;
            place.link("/proc/self/environ", "a.metadata.json")
        }),
        calm("links to devices", |place| {
            place.result("a")?;
            place.link("/dev/zero", "a.metadata.json")?;
            place.result("b")?;
            place.link("/dev/stdin", "b.metadata.json")
        }),
    ]
}

fn hard_links() -> Vec<Input> {
    vec![
        calm("a result that is another name of a file outside", |place| {
            let victim = place.linked_victim();
            fs::hard_link(victim.result, place.path("a.result.json.lz4"))?;
            place.metadata("a", expired())?;
            place.has_to_go(place.pair("a"));
            Ok(())
        }),
        calm("metadata that is another name of metadata outside", |place| {
            let victim = place.linked_victim();
            place.result("a")?;
            fs::hard_link(victim.metadata, place.path("a.metadata.json"))?;
            place.has_to_go(place.pair("a"));
            Ok(())
        }),
        calm("both halves other names of files outside", |place| {
            let victim = place.linked_victim();
            fs::hard_link(victim.result, place.path("a.result.json.lz4"))?;
            fs::hard_link(victim.metadata, place.path("a.metadata.json"))?;
            place.has_to_go(place.pair("a"));
            Ok(())
        }),
        calm("one file as both halves", |place| {
            place.metadata("a", expired())?;
            fs::hard_link(place.path("a.metadata.json"), place.path("a.result.json.lz4"))?;
            place.has_to_go(place.pair("a"));
            Ok(())
        }),
        calm("one result under a thousand names", |place| {
            place.result("a")?;
            for number in 0..1000 {
                fs::hard_link(place.path("a.result.json.lz4"), place.path(number.to_string()))?;
            }
            place.metadata("a", expired())?;
            place.has_to_go(place.pair("a"));
            Ok(())
        }),
        super::inputs::broken("one broken file as the metadata of two", "cut short", |place| {
            place.result("a")?;
            place.result("b")?;
            place.metadata("a", "{")?;
            fs::hard_link(place.path("a.metadata.json"), place.path("b.metadata.json"))
        })
        .sharing(2),
    ]
}

fn special_files() -> Vec<Input> {
    vec![
        calm("metadata that is a FIFO", |place| {
            place.result("a")?;
            place.special("a.metadata.json", "p", &[])
        }),
        calm("a result that is a FIFO", |place| {
            place.special("a.result.json.lz4", "p", &[])?;
            place.metadata("a", expired())
        }),
        calm("both halves FIFOs, and a directory's name on another", |place| {
            place.special("a.result.json.lz4", "p", &[])?;
            place.special("a.metadata.json", "p", &[])?;
            place.special("session", "p", &[])
        }),
        calm("metadata that is a link to a FIFO", |place| {
            place.special("fifo", "p", &[])?;
            place.result("a")?;
            place.link("fifo", "a.metadata.json")
        }),
        calm("metadata that is a socket", |place| {
            place.result("a")?;
            place.socket("a.metadata.json")
        }),
        calm("a result that is a socket", |place| {
            place.socket("a.result.json.lz4")?;
            place.metadata("a", expired())
        }),
        calm("metadata that is /dev/null", |place| {
            place.result("a")?;
            place.special("a.metadata.json", "c", &["1", "3"])
        })
        .privileged(),
        calm("metadata that is /dev/zero, which has no end", |place| {
            place.result("a")?;
            place.special("a.metadata.json", "c", &["1", "5"])
        })
        .privileged(),
        calm("metadata that is a terminal", |place| {
            place.result("a")?;
            place.special("a.metadata.json", "c", &["5", "0"])
        })
        .privileged(),
        calm("metadata that is a disk, and one that no driver knows", |place| {
            place.result("a")?;
            place.special("a.metadata.json", "b", &["7", "200"])?;
            place.result("b")?;
            place.special("b.metadata.json", "c", &["4000", "1"])
        })
        .privileged(),
        calm("a result that is a device", |place| {
            place.special("a.result.json.lz4", "c", &["1", "3"])?;
            place.metadata("a", expired())
        })
        .privileged(),
        calm("an overlay's whiteout", |place| {
            place.result("a")?;
            place.special("a.metadata.json", "c", &["0", "0"])
        })
        .privileged(),
    ]
}

fn directories() -> Vec<Input> {
    vec![
        calm("a directory with the name of metadata", |place| {
            place.result("a")?;
            fs::create_dir(place.path("a.metadata.json"))
        }),
        calm("a directory with the name of a result", |place| {
            fs::create_dir(place.path("a.result.json.lz4"))?;
            place.metadata("a", expired())
        }),
        calm("directories with both names, and a pair in each", |place| {
            for name in ["a.result.json.lz4", "a.metadata.json"] {
                let pair = Pair::at(&place.dir(name)?, "b").write(LONG_AGO);
                place.has_to_go(pair);
            }
            Ok(())
        }),
        calm("directories with no more than a suffix, or with .tmp", |place| {
            place.dir(".result.json.lz4")?;
            place.dir(".metadata.json")?;
            place.dir("a.metadata.json.tmp")?;
            place.result("a")
        }),
        calm("1,000 files with names that mean nothing", |place| {
            (0..1000).try_for_each(|number| place.write(number.to_string(), ""))
        }),
        calm("a directory in which everything is taken from everybody", |place| {
            use std::os::unix::fs::PermissionsExt;
            let dir = place.dir("d")?;
            let pair = Pair::at(&dir, "a").write(LONG_AGO);
            fs::set_permissions(&pair.metadata, fs::Permissions::from_mode(0o000))?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o000))?;
            // Root is not bound by permissions.
            fs::read_dir(&dir)?;
            place.has_to_go(pair);
            Ok(())
        })
        .privileged(),
    ]
}

fn reserved_names() -> Vec<Input> {
    const BLOCKED: &str = "another file has the reserved name";
    vec![
        fails("a directory under the reserved name of a result", BLOCKED, |place| {
            fs::create_dir(place.path(".result-cleaner-a.r"))?;
            place.stays("a", expired())
        }),
        fails("a directory under the reserved name of metadata", BLOCKED, |place| {
            fs::create_dir(place.path(".result-cleaner-a.m"))?;
            place.stays("a", expired())
        }),
        fails("a link to a victim under a reserved name", BLOCKED, |place| {
            place.link(place.victim().result, ".result-cleaner-a.r")?;
            place.link(place.victim().metadata, ".result-cleaner-a.m")?;
            place.stays("a", expired())
        }),
        fails("a FIFO under a reserved name", BLOCKED, |place| {
            place.special(".result-cleaner-a.r", "p", &[])?;
            place.stays("a", expired())
        }),
        calm("a file under the reserved name of a live result", |place| {
            place.stays("a", live())?;
            place.write(".result-cleaner-a.r", "planted")?;
            place.leftover(".result-cleaner-a.r");
            Ok(())
        }),
        calm("expired metadata under the reserved name of a live pair", |place| {
            place.stays("a", live())?;
            place.write(".result-cleaner-a.m", expired())?;
            place.leftover(".result-cleaner-a.m");
            Ok(())
        }),
        calm("reserved names that mean nothing", |place| {
            for name in ["", "a", ".r.x", "a.metadata.json.tmp", "canary"] {
                place.write(format!(".result-cleaner-{name}"), "")?;
            }
            place.write("x.result-cleaner-a.r", "")
        }),
        calm("pairs whose own names look reserved", |place| {
            place.goes(".result-cleaner-a", expired())?;
            place.goes(".result-cleaner-a.r", expired())
        }),
    ]
}

fn mounts() -> Vec<Input> {
    vec![
        calm("a file system mounted inside", |place| {
            let dir = place.dir("mounted")?;
            place.mount(&["-t", "tmpfs", "none"], "mounted")?;
            Pair::at(&dir, "a").write(LONG_AGO);
            Pair::at(&dir.join("deeper"), "a").write(LONG_AGO);
            Ok(())
        })
        .privileged(),
        calm("the victims mounted inside", |place| {
            place.dir("mounted")?;
            let victims = place.victims();
            place.mount(&["--bind", text(&victims)], "mounted")
        })
        .privileged(),
        calm("the directory itself mounted inside, without end", |place| {
            place.dir("loop")?;
            let above = place.dir.parent().unwrap().to_owned();
            place.mount(&["--bind", text(&above)], "loop")
        })
        .privileged(),
        calm("/proc mounted inside", |place| {
            place.dir("loop")?;
            place.mount(&["-t", "proc", "none"], "loop")
        })
        .privileged(),
        calm("a file system that hangs", |place| place.mount_that_hangs("hangs")).privileged(),
        fails("a victim mounted over a result", "busy", |place| {
            place.stays("a", expired())?;
            let victim = place.victim().result;
            place.mount(&["--bind", text(&victim)], "a.result.json.lz4")
        })
        .privileged(),
        fails("a victim mounted over metadata", "busy", |place| {
            place.stays("a", live())?;
            let victim = place.victim().metadata;
            place.mount(&["--bind", text(&victim)], "a.metadata.json")
        })
        .privileged(),
        calm("a FIFO mounted over metadata", |place| {
            place.stays("a", expired())?;
            place.special("fifo", "p", &[])?;
            let fifo = place.path("fifo");
            place.mount(&["--bind", text(&fifo)], "a.metadata.json")
        })
        .privileged(),
        fails("a result that may not be changed", "not permitted", |place| {
            place.stays("a", expired())?;
            place.flag('i', place.path("a.result.json.lz4"))
        })
        .privileged(),
        fails("metadata that may only grow", "not permitted", |place| {
            place.stays("a", expired())?;
            place.flag('a', place.path("a.metadata.json"))
        })
        .privileged(),
        fails("a directory that may only grow", "not permitted", |place| {
            place.stays("a", expired())?;
            place.flag('a', place.dir.clone())
        })
        .privileged(),
    ]
}
