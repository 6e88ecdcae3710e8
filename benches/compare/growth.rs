//! How the time for scanning and deleting grows with the tree.

use crate::measure::{Measured, Outcome, Side, WALL, alternate};
use crate::peers::Peer;
use crate::tree::{Form, Tree};
use crate::{Args, delete, ours, plot, scan};

/// What the sides need for one work, at each size.
pub struct Growth {
    pub work: &'static str,
    pub sizes: Vec<(usize, Vec<Measured>)>,
}

pub fn run(args: &Args) -> Outcome {
    let mut scans = Growth { work: "scan", sizes: Vec::new() };
    let mut deletions = Growth { work: "delete", sizes: Vec::new() };
    for pairs in args.sizes(&[1_000, 10_000, 100_000]) {
        let form = args.form(pairs);
        scans.sizes.push((pairs, scan(args, &form)?));
        deletions.sizes.push((pairs, delete(args, &form)?));
    }
    let growths = [scans, deletions];
    println!("\nSeconds, medians of {} rounds, and their ratios to the floor:\n", args.rounds);
    print_table(&growths);
    plot::draw(&args.plot, &growths)?;
    println!("\ndrawn to {}", args.plot.display());
    Ok(())
}

fn scan(args: &Args, form: &Form) -> Outcome<Vec<Measured>> {
    let tree = Tree::waiting(form)?;
    let sides = vec![
        Side::new("floor", || scan::by_floor(&tree)),
        Side::new("result-cleaner", || ours::look_by_command(ours::BINARY.as_ref(), &tree)),
        Peer::Find.side(|peer| peer.look(&tree)),
        Peer::Python.side(|peer| peer.look(&tree)),
    ];
    let measured = alternate(args.rounds, sides)?;
    tree.check_whole()?;
    Ok(measured)
}

fn delete(args: &Args, form: &Form) -> Outcome<Vec<Measured>> {
    let state = args.state();
    let sides = vec![
        delete::side("floor", form, state, delete::by_floor),
        delete::side("result-cleaner", form, state, ours::delete_by_command),
        delete::peer(Peer::Find, form, state),
        delete::peer(Peer::Python, form, state),
    ];
    alternate(args.rounds, sides)
}

/// As it can be put into a document.
fn print_table(growths: &[Growth]) {
    let Some((_, sides)) = growths.iter().find_map(|growth| growth.sizes.first()) else {
        return;
    };
    let names: Vec<&str> = sides.iter().map(|side| side.name).collect();
    println!("| work | pairs | {} |", names.join(" | "));
    println!("| --- | ---: |{}", " ---: |".repeat(names.len()));
    for growth in growths {
        for (pairs, sides) in &growth.sizes {
            let cells = sides.iter().map(|side| cell(side, &sides[0]));
            let cells: Vec<String> = cells.collect();
            println!("| {} | {pairs} | {} |", growth.work, cells.join(" | "));
        }
    }
}

fn cell(side: &Measured, floor: &Measured) -> String {
    match (side.median(WALL), side.ratio_to(floor, WALL)) {
        (Some(seconds), Some(ratio)) => format!("{seconds:.4} ({:.2})", ratio.median),
        _ => "not installed".to_owned(),
    }
}
