//! `ktstr judge`: a stored run is judged again, without a VM.
//!
//! Owns reading the run, laying the given limits over the stored ones, and telling the verdict; leaves judging to verdict/.
//! Invariant: without limits the verdict on a whole record is the one that the run had; nothing stored is changed.

use super::args::{JsonTarget, JudgeArgs};
use super::cmd_run::{counted, wants_color};
use super::out;
use super::result_file::ResultFile;
use crate::error::{Kind, Result};
use crate::proto::limits::Layers;
use crate::proto::plan::BUILD;
use crate::proto::record::Record;
use crate::report::{self, Style};
use crate::run::rundir;
use crate::verdict::{Verdict, is_whole, judge_by, judge_cut, on_busy_host, stored_layers};

/// Judges, tells, and gives the verdict's exit code.
pub fn cmd_judge(args: &JudgeArgs) -> Result<u8> {
    let (record, complete) = rundir::load(&args.run).map_err(|error| error.with_kind(Kind::Usage))?;
    let mut json_file = ResultFile::of(args.json.as_ref())?;
    let whole = complete && is_whole(&record);
    if !whole {
        let run = args.run.display();
        out::note(&format!(
            "{run} was cut, or is damaged: the run or its writing was killed, or the file changed since; judged is what it holds"
        ));
    }
    if let Some(host) = record.host.as_ref().filter(|host| host.build != BUILD) {
        let (theirs, version) = (&host.build, &host.version);
        out::note(&format!("the run is of build {theirs} ({version}), it is judged by build {BUILD}"));
    }
    let layers = layers(&record, args);
    let verdict = if whole {
        counted(args.bad_on.as_ref(), &record, judge_by(&record, &layers))
    } else {
        let busy = on_busy_host(&record);
        counted(args.bad_on.as_ref(), busy.as_ref().unwrap_or(&record), judge_cut(&record, &layers))
    };
    tell(args, &record, &verdict, json_file.as_mut())?;
    Ok(verdict.exit_code)
}

/// The stored layers with what was given on top.
fn layers(record: &Record, args: &JudgeArgs) -> Layers {
    let stored = stored_layers(record);
    match args.base {
        None => Layers { command_line: stored.command_line.merge(&args.limits), ..stored },
        Some(base) => Layers { base, command_line: args.limits, ..stored },
    }
}

fn tell(args: &JudgeArgs, record: &Record, verdict: &Verdict, json_file: Option<&mut ResultFile>) -> Result<()> {
    let to_stdout = args.json == Some(JsonTarget::Stdout);
    let style = Style { color: wants_color(args.color, to_stdout) };
    let mut text =
        if args.quiet { report::verdict_line(verdict, style) + "\n" } else { report::summary(record, verdict, style) };
    if args.timings {
        text.push_str(&format!("\n{}", report::timings(record)));
    }
    let json = report::result_json(record, verdict);
    match json_file {
        Some(file) => {
            let printed = out::print(&text);
            file.write(json.as_bytes()).and(printed)
        }
        None if to_stdout => {
            out::print_error(&text);
            out::print(&json)
        }
        None => out::print(&text),
    }
}
