//! `etherply log repair`: plans a repair of the log, prints the plan, asks for confirmation and
//! carries it out.

use std::io::{self, IsTerminal};
use std::path::Path;

use super::verify::{self, VerifyOutcome};
use crate::command::output::{Printer, Stop};
use crate::command::progress::Bar;
use crate::command::text;
use crate::config::log::RepairArgs;
use crate::log::disk::HostDisk;
use crate::log::repair::RepairPlan;
use crate::log::repair::plan::{PlannedChange, SegmentRewrite};

/// The maximum number of gaps that are listed.
const GAPS_LISTED: usize = 20;

/// Repairs the log after asking for confirmation, unless `--yes` is given. The server must be
/// stopped.
pub fn run(data: &Path, settings: &RepairArgs) -> Result<VerifyOutcome, Stop> {
    let mut epoch = [0; 16];
    getrandom::fill(&mut epoch)?;
    let bar = Bar::new("reading the log", 0);
    let repair = RepairPlan::new(HostDisk, data.to_path_buf(), epoch, |done, total| {
        bar.set(done, total);
    })?;
    drop(bar);
    let mut output = Printer::new();
    if repair.is_empty() {
        output.line("nothing to repair")?;
        let verdict = verify::check(data, &mut output)?;
        output.flush()?;
        return Ok(verdict);
    }
    print_plan(data, &repair, &mut output)?;
    output.flush()?;
    if !settings.yes {
        ask(&mut output)?;
    }
    repair.run()?;
    output.line("repaired")?;
    let verdict = verify::check(data, &mut output)?;
    output.flush()?;
    Ok(verdict)
}

fn ask(output: &mut Printer) -> Result<(), Stop> {
    if !io::stdin().is_terminal() {
        let line = "nothing was changed: stdin is not a terminal; pass --yes to repair without \
                    confirmation";
        return Err(Stop::Failed(line.to_owned()));
    }
    output.bytes(b"Continue? [y/N] ")?;
    output.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Stop::Failed("nothing was changed".to_owned()))
}

fn print_plan(
    data: &Path,
    repair: &RepairPlan<HostDisk>,
    output: &mut Printer,
) -> Result<(), Stop> {
    let short = |path: &Path| {
        path.strip_prefix(data)
            .unwrap_or(path)
            .display()
            .to_string()
    };
    if repair.is_meta_lost() {
        output.line("meta.json: lost or damaged\n  will be rewritten")?;
    }
    for stray in repair.strays() {
        let (path, what) = (short(&stray.path), &stray.what);
        output.line(format_args!("{path}: {what}\n  will be set aside"))?;
    }
    for step in repair.moves() {
        let (path, home) = (short(&step.path), short(&step.home));
        output.line(format_args!("{path}: this is {home}\n  will be renamed"))?;
    }
    for change in repair.changes() {
        match change {
            PlannedChange::Fill { path, header } => {
                let count = header.index - header.first_index() + 1;
                output.line(format_args!(
                    "{}: missing{}\n  its ops are lost; will be replaced by an empty segment",
                    short(path),
                    if count > 1 {
                        format!(", and so are the {} before it", count - 1)
                    } else {
                        String::new()
                    }
                ))?;
            }
            PlannedChange::Rewrite(rewritten) => {
                output.line(format_args!("{}: damaged", short(&rewritten.path)))?;
                print_rewritten(rewritten, output)?;
            }
        }
    }
    print_gaps(repair, output)?;
    output.line(format_args!(
        "Files that are set aside, and the originals of rewritten files, are kept in {}. Nothing \
         is deleted.",
        repair.aside().display()
    ))
}

fn print_rewritten(rewritten: &SegmentRewrite, output: &mut Printer) -> Result<(), Stop> {
    let recovery = &rewritten.recovery;
    output.line(format_args!("  {}", rewritten.what))?;
    for lost in &recovery.lost {
        let is_lost = if lost.is_torn {
            "are a torn tail, left by an interrupted write"
        } else {
            "are lost"
        };
        output.line(format_args!(
            "  bytes {} to {} {is_lost}: {}",
            lost.bytes.start,
            lost.bytes.end - 1,
            lost.what
        ))?;
    }
    output.line(format_args!(
        "  will be rewritten with its {}, {} of them after the damage",
        text::count(recovery.ops, "intact op"),
        recovery.ops_after_loss
    ))
}

fn print_gaps(repair: &RepairPlan<HostDisk>, output: &mut Printer) -> Result<(), Stop> {
    let gaps = repair.missing();
    if gaps.is_empty() {
        return output.line("The intact part does not show which workspaces are missing ops.");
    }
    output.line("At least these ops are missing, sorted by workspace:")?;
    for gap in gaps.iter().take(GAPS_LISTED) {
        let workspace = serde_json::Value::from(gap.workspace.as_str());
        let (first, last) = (gap.seqs.start(), gap.seqs.end());
        if first == last {
            output.line(format_args!("  workspace {workspace}: seq {first}"))?;
        } else {
            output.line(format_args!(
                "  workspace {workspace}: seq {first} to {last}"
            ))?;
        }
    }
    match gaps.len().saturating_sub(GAPS_LISTED) {
        0 => Ok(()),
        more => output.line(format_args!(
            "  and {}",
            text::count(more as u64, "more gap")
        )),
    }
}
