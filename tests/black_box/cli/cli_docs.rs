//! Shell completions and manual pages: each includes every command and flag in the help.

use crate::support::server::Setup;
use std::collections::BTreeMap;
use std::process::Command;
use tempfile::TempDir;

/// Returns the commands and the flags that a help text lists.
fn read_help(help: &str) -> (Vec<String>, Vec<String>) {
    let (mut commands, mut flags) = (Vec::new(), Vec::new());
    let mut is_among_commands = false;
    for line in help.lines() {
        if !line.starts_with(' ') {
            is_among_commands = line == "Commands:";
        }
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if is_among_commands && indent == 2 {
            commands.extend(text.split(' ').next().map(str::to_owned));
        } else if text.starts_with('-') {
            let words = text.split([' ', ',', '=']);
            flags.extend(
                words
                    .filter(|word| word.starts_with("--"))
                    .map(str::to_owned),
            );
        }
    }
    commands.retain(|command| command != "help");
    (commands, flags)
}

/// Returns the flags of each command, keyed by the words of the command.
async fn flags_by_command() -> BTreeMap<Vec<String>, Vec<String>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![Vec::new()];
    while let Some(words) = waiting.pop() {
        let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = Setup::new().run_only(&arguments).await;
        assert_eq!(help.code, Some(0), "{help:?}");
        let (commands, flags) = read_help(&help.stdout);
        assert!(flags.contains(&"--help".to_owned()), "{words:?}: {flags:?}");
        let children = commands.into_iter().map(|command| {
            let mut child = words.clone();
            child.push(command);
            child
        });
        waiting.extend(children);
        found.insert(words, flags);
    }
    assert!(
        found.len() > 10,
        "only these commands were found: {:?}",
        found.keys()
    );
    found
}

#[tokio::test]
async fn each_command_has_a_man_page_with_all_its_flags() {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().display().to_string();
    let written = Setup::new().run_only(&["manual", &path]).await;
    assert_eq!(written.code, Some(0), "{written:?}");
    let by_command = flags_by_command().await;
    for (words, flags) in &by_command {
        let name = [&["etherply".to_owned()], &words[..]].concat().join("-");
        let page = std::fs::read_to_string(folder.path().join(format!("{name}.1")));
        // A manual page puts a backslash in front of a dash.
        let page = page.expect("the page exists").replace("\\-", "-");
        for flag in flags {
            assert!(page.contains(flag.as_str()), "{name}(1) lacks {flag}");
        }
        let names_a_variable = page.contains("ETHERPLY_DATA_DIR");
        let takes_it = flags.contains(&"--data-dir".to_owned());
        assert_eq!(names_a_variable, takes_it, "{name}(1) and its variables");
    }
    let pages = std::fs::read_dir(folder.path()).expect("the folder exists");
    assert_eq!(pages.count(), by_command.len());
}

#[tokio::test]
async fn completions_include_every_command_and_flag() {
    let by_command = flags_by_command().await;
    for shell in ["bash", "zsh", "fish"] {
        let script = Setup::new().run_only(&["completions", shell]).await;
        assert_eq!(script.code, Some(0), "{script:?}");
        for (words, flags) in &by_command {
            let last = words.last().map_or("etherply", String::as_str);
            assert!(
                script.stdout.contains(last),
                "{shell} completions lack {last}"
            );
            for flag in flags {
                let spelled = match shell {
                    // fish lists a flag without its dashes.
                    "fish" => format!("-l {}", flag.trim_start_matches('-')),
                    _ => flag.clone(),
                };
                assert!(
                    script.stdout.contains(&spelled),
                    "{shell} completions lack {flag}"
                );
            }
        }
    }
}

#[tokio::test]
async fn bash_completes_a_flag() {
    let script = Setup::new().run_only(&["completions", "bash"]).await.stdout;
    let completed = format!(
        "{script}\nCOMP_WORDS=(etherply serve --max-m) COMP_CWORD=2\n\
         _etherply etherply --max-m serve\necho \"${{COMPREPLY[@]}}\""
    );
    let output = Command::new("bash").args(["-c", &completed]).output();
    let output = output.expect("bash runs");
    let words = String::from_utf8_lossy(&output.stdout);
    assert_eq!(words.trim(), "--max-message-bytes", "{output:?}");
}

#[tokio::test]
async fn a_missing_folder_is_reported() {
    let outcome = Setup::new().run_only(&["manual", "/nowhere/at/all"]).await;
    assert!(outcome.expect_refusal().contains("/nowhere/at/all"));
}

#[tokio::test]
async fn the_error_for_an_unknown_shell_lists_the_known_ones() {
    let outcome = Setup::new().run_only(&["completions", "ksh"]).await;
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("bash"), "{}", outcome.stderr);
}
