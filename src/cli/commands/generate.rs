//! `result-cleaner completions` and `result-cleaner man`: files generated from the definition of the
//! command line.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::{Args, Command, ValueHint};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use result_cleaner::text::{display_path, expand_home};

use crate::cli::{CommandError, command, environment, output};

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell: bash, zsh, fish, elvish or powershell
    shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    // Has no variable: RESULT_CLEANER_DIR would be mistaken for that of the cache directory.
    /// Write a page for each command to this directory instead
    #[arg(long = "dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pages_dir: Option<PathBuf>,
}

const FILES: [(&str, &str); 5] = [
    ("~/.omnimemory/cached_results", "the cache directory, unless another one is given"),
    ("X.result.json.lz4", "a result; it is deleted together with its metadata"),
    (
        "X.metadata.json",
        "the metadata of that result; its field expires_at says when the result expires",
    ),
    (
        ".result-cleaner-*",
        "names that a cleaner uses for an instant while it deletes a file; recovered after a crash",
    ),
    ("/etc/default/result-cleaner", "the variables of the systemd units"),
];

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), CommandError> {
    let mut command = command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, &name, &mut script);
    if args.shell == Shell::Bash {
        script = with_one_spelling(script, &name);
    }
    output::print(|out| out.write_all(&script))?;
    Ok(())
}

/// Corrects a script for bash, which spells a command name with a hyphen in two ways, and so completes nothing after a
/// subcommand (<https://github.com/clap-rs/clap/issues/6421>).
fn with_one_spelling(script: Vec<u8>, name: &str) -> Vec<u8> {
    let script = String::from_utf8_lossy(&script);
    script.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__")).into_bytes()
}

/// Prints one manual page for all commands, or writes a page for each of them.
pub(crate) fn man(args: &ManArgs) -> Result<(), CommandError> {
    let mut command = command().disable_help_subcommand(true);
    command.build();
    let Some(dir) = &args.pages_dir else {
        let page = page_of_all(&command)?;
        output::print(|out| out.write_all(&page))?;
        return Ok(());
    };
    let dir = expand_home(dir)?;
    if !dir.is_dir() {
        return Err(format!("{} is no directory: create it", display_path(&dir)).into());
    }
    for (name, page) in pages(&command)? {
        let path = dir.join(name);
        fs::write(&path, page)
            .map_err(|error| format!("can't write {}: {error}", display_path(&path)))?;
    }
    Ok(())
}

/// The subcommands that have manual pages.
fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set())
}

/// One page in which the subcommands follow the command itself.
fn page_of_all(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let man = Man::new(command.clone());
    render_head(&man, &mut page)?;
    man.render_subcommands_section(&mut page)?;
    man.render_extra_section(&mut page)?;
    for subcommand in shown(command) {
        let man = Man::new(subcommand.clone());
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
        man.render_extra_section(&mut page)?;
    }
    render_common(command, &mut page)?;
    Ok(page)
}

/// The name and the text of the page of each command.
fn pages(command: &Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    let main = command.get_name();
    let names = || shown(command).map(|command| format!("{main}-{}", command.get_name()));
    let mut page = Vec::new();
    let man = Man::new(command.clone());
    render_head(&man, &mut page)?;
    man.render_subcommands_section(&mut page)?;
    man.render_extra_section(&mut page)?;
    render_common(command, &mut page)?;
    render_see_also(names(), &mut page)?;
    let mut pages = vec![(format!("{main}.1"), page)];
    for (subcommand, name) in shown(command).zip(names()) {
        let mut page = Vec::new();
        let man = Man::new(subcommand.clone());
        render_head(&man, &mut page)?;
        man.render_extra_section(&mut page)?;
        render_variables(std::iter::once(subcommand), &mut page)?;
        let others = names().filter(|other| *other != name);
        render_see_also(std::iter::once(main.to_owned()).chain(others), &mut page)?;
        pages.push((format!("{name}.1"), page));
    }
    Ok(pages)
}

fn render_head(man: &Man, page: &mut Vec<u8>) -> io::Result<()> {
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)
}

fn render_common(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    render_variables(shown(command), page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["FILES"]);
    for (name, meaning) in FILES {
        roff.control("TP", []).text([bold(name)]).text([roman(meaning)]);
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in [("0", "success"), ("1", "failure"), ("2", "wrong usage")] {
        roff.control("TP", []).text([bold(status)]).text([roman(meaning)]);
    }
    roff.to_writer(page)
}

fn render_variables<'a>(
    commands: impl Iterator<Item = &'a Command>,
    page: &mut Vec<u8>,
) -> io::Result<()> {
    let variables = environment::variables(commands);
    if variables.is_empty() {
        return Ok(());
    }
    let mut roff = Roff::new();
    roff.control("SH", ["ENVIRONMENT"]).text([roman(environment::RULES)]);
    for (name, variable) in variables {
        roff.control("TP", []).text([bold(name)]).text([roman(variable.meaning())]);
    }
    roff.to_writer(page)
}

fn render_see_also(names: impl Iterator<Item = String>, page: &mut Vec<u8>) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let mut text = Vec::new();
    for name in names {
        if !text.is_empty() {
            text.push(roman(", "));
        }
        text.extend([bold(name), roman("(1)")]);
    }
    roff.text(text).to_writer(page)
}
