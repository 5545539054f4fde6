//! The protocol of redis, as far as the benches need it.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Command;

/// Returns the version that `redis-server` prints; `None` if it is not installed.
pub fn version() -> Option<String> {
    let output = Command::new("redis-server")
        .arg("--version")
        .output()
        .ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Writes a command in the form that redis reads.
pub fn put_command(out: &mut impl Write, words: &[&str]) {
    let mut put = || -> std::io::Result<()> {
        write!(out, "*{}\r\n", words.len())?;
        for word in words {
            write!(out, "${}\r\n{word}\r\n", word.len())?;
        }
        Ok(())
    };
    put().expect("writing to the disk succeeds");
}

/// Sends a command and returns the strings of its answer.
pub fn ask(client: &mut (impl Read + Write), words: &[&str]) -> Vec<String> {
    let mut command = Vec::new();
    put_command(&mut command, words);
    client
        .write_all(&command)
        .expect("redis accepts the commands");
    let mut reader = BufReader::new(client);
    let first = answer_line(&mut reader);
    match first.split_at(1) {
        ("*", count) => (0..count.parse().expect("a number"))
            .map(|_| {
                let line = answer_line(&mut reader);
                assert!(line.starts_with('$'), "redis answered {line}");
                answer_line(&mut reader)
            })
            .collect(),
        ("$", _) => vec![answer_line(&mut reader)],
        ("+" | ":", text) => vec![text.to_owned()],
        _ => panic!("redis answered {first}"),
    }
}

fn answer_line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("redis answers");
    line.trim_end().to_owned()
}
