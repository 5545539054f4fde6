//! `etherply doctor`: checks the host and prints what to change.
//!
//! `read` collects the facts without judging them, and `judge` turns them into findings without
//! accessing the host. Thus the findings for any host can be tested on any other.

use serde::Serialize;

use super::output::{Printer, Stop};
use super::text;
use crate::config::doctor::DoctorArgs;

mod facts;
mod finding;
mod judge;
mod read;

use facts::Facts;
use finding::{Finding, Severity};

/// The report that `--json` prints.
#[derive(Serialize)]
struct DoctorReport<'a> {
    /// Whether no check has failed.
    works: bool,
    checks: &'a [Finding],
    facts: &'a Facts,
}

/// Prints the findings. Returns an error if the server would not work on this host.
pub fn run(settings: &DoctorArgs) -> Result<(), String> {
    let facts = read::facts(settings).map_err(|error| error.to_string())?;
    let findings = judge::judge(&facts);
    match print(settings.json, &facts, &findings) {
        Ok(()) | Err(Stop::OutputClosed) => {}
        Err(Stop::Failed(line)) => return Err(line),
    }
    match count(&findings, Severity::Fail) {
        0 => Ok(()),
        fails => {
            let fails = text::count(fails, "check");
            Err(format!("the server would not work here: {fails} failed"))
        }
    }
}

fn print(is_json: bool, facts: &Facts, findings: &[Finding]) -> Result<(), Stop> {
    let mut output = Printer::new();
    if is_json {
        let report = DoctorReport {
            works: count(findings, Severity::Fail) == 0,
            checks: findings,
            facts,
        };
        output.line(serde_json::to_string(&report)?)?;
    } else {
        output.bytes(lines(findings).as_bytes())?;
    }
    output.flush()
}

fn count(findings: &[Finding], verdict: Severity) -> u64 {
    let found = findings.iter().filter(|found| found.verdict == verdict);
    found.count() as u64
}

fn lines(findings: &[Finding]) -> String {
    let width = findings.iter().map(|found| found.check.len()).max();
    let width = width.unwrap_or(0);
    let mut text = String::new();
    for Finding {
        check,
        verdict,
        found,
        advice,
    } in findings
    {
        let verdict = verdict.name();
        text.extend([format!("{verdict:<4}  {check:<width$}  {found}\n")]);
        if let Some(advice) = advice {
            text.extend([format!("{:width$}        → {advice}\n", "")]);
        }
    }
    let warnings = text::count(count(findings, Severity::Warn), "warning");
    let fails = text::count(count(findings, Severity::Fail), "failure");
    text + &format!("{warnings}, {fails}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_and_its_advice_are_on_separate_lines() {
        let findings = [
            Finding::ok("kernel", "Linux 6.1"),
            Finding::warn("accept queue", "short", "make it longer"),
        ];
        assert_eq!(
            lines(&findings),
            "ok    kernel        Linux 6.1\n\
             warn  accept queue  short\n\
             \u{20}                   → make it longer\n\
             1 warning, 0 failures\n"
        );
    }
}
