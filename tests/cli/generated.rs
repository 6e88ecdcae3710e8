//! The completions and the manual page: complete, and right for the programs that read them.

use std::fs;
use std::process::Command;

use crate::common::{call, result_cleaner, stderr, stdout, succeed, text};

const COMMANDS: [&str; 8] =
    ["run", "sweep", "list", "explain", "status", "doctor", "completions", "man"];

/// All flags, by what `--help` says of them.
fn flags() -> Vec<String> {
    let mut flags = Vec::new();
    for command in COMMANDS {
        let help = succeed(&[command, "--help"]);
        let words = stdout(&help).split_whitespace().map(|word| word.trim_end_matches(','));
        flags.extend(words.filter(|word| word.starts_with("--")).map(str::to_owned));
    }
    flags.retain(|flag| {
        flag.trim_start_matches('-').chars().all(|c| c.is_ascii_lowercase() || c == '-')
    });
    assert!(flags.len() > 20, "{flags:?}");
    flags
}

#[test]
fn completions_know_every_command_and_flag_and_the_shell_can_read_them() {
    for shell in ["bash", "zsh", "fish"] {
        let output = succeed(&["completions", shell]);
        let script = stdout(&output);
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
        for flag in flags() {
            // fish has them without their dashes.
            assert!(script.contains(flag.trim_start_matches('-')), "{shell}: {flag}");
        }
        let temp = tempfile::NamedTempFile::new().unwrap();
        fs::write(temp.path(), script).unwrap();
        match Command::new(shell).arg("-n").arg(temp.path()).output() {
            Ok(output) => assert!(output.status.success(), "{shell}: {output:?}"),
            Err(error) => eprintln!("skipped: {shell} can't be run: {error}"),
        }
    }
    let wrong = call(&["completions", "tcsh"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn bash_completes_the_flags_of_a_subcommand() {
    let temp = tempfile::NamedTempFile::new().unwrap();
    fs::write(temp.path(), succeed(&["completions", "bash"]).stdout).unwrap();
    let completed = |words: &str, last: &str, before: &str| {
        let script = format!(
            "source {}; COMP_WORDS=({words} {last}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            function=$(complete -p result-cleaner | sed 's/.*-F \\([^ ]*\\).*/\\1/')
            $function result-cleaner {last} {before}; echo \"${{COMPREPLY[*]}}\"",
            text(temp.path())
        );
        Command::new("bash").args(["-c", &script]).output()
    };
    match completed("result-cleaner sweep", "--dr", "sweep") {
        Ok(output) => assert_eq!(stdout(&output), "--dry-run\n", "{output:?}"),
        Err(error) => return eprintln!("skipped: bash can't be run: {error}"),
    }
    let output = completed("result-cleaner run --log-format", "''", "--log-format").unwrap();
    assert_eq!(stdout(&output), "text json\n", "{output:?}");
}

#[test]
fn a_set_of_pages_has_one_for_each_command_and_each_is_sound_roff() {
    let temp = tempfile::tempdir().unwrap();
    succeed(&["man", "--dir", text(temp.path())]);
    let read = |name: &str| {
        let page = fs::read_to_string(temp.path().join(name)).unwrap();
        page.replace("\\-", "-")
    };
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), COMMANDS.len() + 1);
    let main = read("result-cleaner.1");
    for section in ["NAME", "SYNOPSIS", "ENVIRONMENT", "FILES", "\"EXIT STATUS\"", "\"SEE ALSO\""] {
        assert!(main.contains(&format!(".SH {section}")), "{section}");
    }
    for command in COMMANDS {
        let name = format!("result-cleaner-{command}");
        assert!(main.contains(&name), "{name}");
        let page = read(&format!("{name}.1"));
        assert!(page.contains(&format!(".TH {name}")) && page.contains("SEE ALSO"), "{page}");
    }
    let run = read("result-cleaner-run.1");
    assert!(run.contains("RESULT_CLEANER_LISTEN"));
    for entry in fs::read_dir(temp.path()).unwrap() {
        let path = entry.unwrap().path();
        match Command::new("groff").args(["-man", "-Tutf8", "-ww"]).arg(&path).output() {
            Ok(output) => {
                assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
            }
            Err(error) => return eprintln!("skipped: groff can't be run: {error}"),
        }
    }
}

#[test]
fn no_example_is_wrapped_on_a_terminal_of_80_columns() {
    for command in
        [&[][..], &["run"], &["sweep"], &["list"], &["explain"], &["status"], &["doctor"]]
    {
        let output = result_cleaner().args(command).arg("--help").env("COLUMNS", "80").output();
        let help = output.unwrap();
        let lines = stdout(&help).lines();
        for line in lines.filter(|line| line.trim_start().starts_with("result-cleaner ")) {
            assert!(line.len() <= 80, "{line}");
        }
        let mut examples = stdout(&help).lines().skip_while(|line| *line != "Examples:").skip(1);
        let wrapped = examples.find(|line| !line.starts_with("  result-cleaner "));
        assert!(wrapped.is_none_or(str::is_empty), "{command:?}: {}", stdout(&help));
    }
}

#[test]
fn wrong_usage_shows_the_usage_of_the_command() {
    for args in [
        &["run", "--chek-interval", "1h"][..],
        &["run", "-v", "-q"],
        &["run", "--metrics-url", "ftp://x"],
        &["status", "--url", "nowhere"],
        &["explain"],
    ] {
        let output = call(args);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let usage = format!("Usage: result-cleaner {}", args[0]);
        assert!(stderr(&output).contains(&usage), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn the_variables_are_listed_in_one_place() {
    let output = succeed(&["help", "environment"]);
    let line = "  RESULT_CLEANER_CHECK_INTERVAL     --check-interval (run)";
    assert!(stdout(&output).lines().any(|listed| listed == line), "{}", stdout(&output));
    assert!(!stdout(&succeed(&["run", "--help"])).contains("RESULT_CLEANER_"));
}

#[test]
fn the_manual_page_knows_every_flag_and_its_variable_and_is_sound_roff() {
    let output = succeed(&["man"]);
    let page = stdout(&output).replace("\\-", "-");
    for flag in flags() {
        assert!(page.contains(&flag), "{flag}");
    }
    for words in ["RESULT_CLEANER_CHECK_INTERVAL", "EXIT STATUS"] {
        assert!(page.contains(words), "{words}");
    }
    let temp = tempfile::NamedTempFile::new().unwrap();
    fs::write(temp.path(), stdout(&output)).unwrap();
    match Command::new("groff").args(["-man", "-Tutf8", "-ww"]).arg(temp.path()).output() {
        Ok(output) => {
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
            assert!(String::from_utf8_lossy(&output.stdout).contains("explain"));
        }
        Err(error) => eprintln!("skipped: groff can't be run: {error}"),
    }
}
