//! `--cgroup`: cgroups that differ, each as a line of a scenario file describes it.
//!
//! Owns the flag; leaves the grammar to scenario/.
//! Invariant: what stands behind the flag means what it means behind `cgroup` in a file, and an error names its column.

use super::describe::{bad, utf8};
use super::flags::{Arity, Cmd, FLAG, Flag, Group};
use super::parse::Given;
use crate::error::{Error, Result};
use crate::proto::scenario::CgroupDef;
use crate::scenario;

pub const FLAGS: [Flag; 1] = [Flag {
    long: "cgroup",
    arity: Arity::Value("NAME [SETTING]...[: WORKS]"),
    repeat: true,
    group: Group::Load,
    commands: &[Cmd::Run, Cmd::Image],
    absent: "--cgroups equal ones",
    help: "a cgroup, as in a scenario file: 'a cpuset=cpus:0-3 weight=200: fan-out*2; spin'",
    ..FLAG
}];

/// What the flags say; empty where there are none.
pub(super) fn arguments(given: &Given) -> Result<Vec<CgroupDef>> {
    let lines: Vec<String> = given.all("cgroup").map(|value| utf8("cgroup", value)).collect::<Result<_>>()?;
    if lines.is_empty() {
        return Ok(Vec::new());
    }
    if given.has("scenario") || given.has("cgroups") {
        return Err(Error::usage(
            "--cgroup describes the whole load: it stands neither with --scenario nor with --cgroups",
        ));
    }
    read(&lines)
}

fn read(lines: &[String]) -> Result<Vec<CgroupDef>> {
    /// What stands before the line in the file that it is read as part of.
    const HEAD: &str = "cgroup ";
    if let Some(line) = lines.iter().find(|line| line.contains('\n')) {
        return Err(bad("cgroup", format!("'{}' is more than one line", line.escape_debug())));
    }
    let text = |lines: &[String]| {
        let body: String = lines.iter().map(|line| format!("{HEAD}{line}\n")).collect();
        scenario::parse(&format!("scenario x\nstep\n{body}"))
    };
    let specs = text(lines).map_err(|error| {
        // The first two lines are ours.
        let line = error.line.checked_sub(3).and_then(|index| lines.get(index)).map_or("", String::as_str);
        let column = error.column.saturating_sub(HEAD.len()).max(1);
        let wrong = bad("cgroup", format!("'{line}', column {column}: {}", error.what));
        match &error.nearest {
            Some(word) => wrong.hint(format!("did you mean '{word}'?")),
            None => wrong,
        }
    })?;
    Ok(specs.into_iter().flat_map(|spec| spec.steps).flat_map(|step| step.setup).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Result<Vec<CgroupDef>> {
        read(&lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn lines_are_those_of_a_file() {
        let groups = of(&["a cpuset=cpus:0-3 weight=200: fan-out*2; spin nice=5", "b"]).unwrap();
        assert_eq!(
            (groups.len(), groups[0].name.as_str(), groups[0].weight, groups[0].works.len()),
            (2, "a", Some(200), 2)
        );
        assert!(groups[0].cpuset.is_some() && groups[1].works.is_empty());
    }

    #[test]
    fn mistakes_name_the_column_and_the_nearest_word() {
        let error = of(&["a: spin", "b wieght=2: spin"]).unwrap_err();
        assert!(error.to_string().contains("'b wieght=2: spin', column 3"), "{error}");
        assert_eq!(error.hint_text(), Some("did you mean 'weight'?"));
        assert!(of(&["a: spni"]).unwrap_err().to_string().contains("column 4"));
        assert!(of(&["a: spin", "a: spin"]).unwrap_err().to_string().contains("there is a cgroup 'a' already"));
        assert!(of(&["a: spin\nstep"]).unwrap_err().to_string().contains("more than one line"));
    }
}
