//! The completions and the manual page: complete, and right for the programs that read them.

use std::fs;
use std::process::Command;

use crate::common::{call, stdout, succeed};

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
fn the_manual_page_knows_every_flag_and_its_variable_and_is_sound_roff() {
    let output = succeed(&["man"]);
    let page = stdout(&output).replace("\\-", "-");
    for flag in flags() {
        assert!(page.contains(&flag), "{flag}");
    }
    for words in ["RESULT_CLEANER_CHECK_INTERVAL", "Exit status"] {
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
