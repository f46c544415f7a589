//! Reads scenario files: line by line, with line, column and the nearest word in every error.
//!
//! Owns the grammar of lines and sections; leaves words to `words`, values to `values`, printing to `text`.
//! Invariant: what was read can be printed and read again as the same; nothing is guessed.
//!
//! ```text
//! # a comment
//! scenario NAME                   begins a scenario; properties follow, one a line
//!   category WORD | about TEXT | checks WORD... | needs cpus=N llcs=N nodes=N threads=N
//!   flags WORD... | not-flags WORD... | cpu-controller off | duration TIME | assert NAME=VALUE
//! backdrop                        begins what lives through all steps
//!   cgroup NAME [copies=COUNT] [cpuset=CPUSET] [weight=N] [max=QUOTA/PERIOD] [swappable] [workers=COUNT][: WORKS]
//!   host [workers=COUNT]: WORK
//! step [PART% | TIME | loop TIME] begins a step: first its ops, then its cgroups
//!   OP...                         one a line: see 'ktstr help scenarios'
//! ```

use super::text;
use super::values::{self, Fault};
use super::words::{self, Line, Word};
use crate::proto::scenario::{Backdrop, CgroupDef, Count, DefWork, HoldSpec, Op, ScenarioSpec, Step};
use crate::proto::work::WorkType;
use crate::units::nearest;
use crate::workload::parse_works;
use std::fmt;

/// What is wrong with a scenario file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub what: String,
    /// The nearest valid word, where one is near.
    pub nearest: Option<String>,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.what)?;
        match &self.nearest {
            Some(word) => write!(f, " (did you mean '{word}'?)"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for FileError {}

/// What a scheduler under test may claim to support, or be told not to.
pub const FLAGS: [&str; 6] = ["llc", "borrow", "steal", "rebal", "reject-pin", "no-ctrl"];
const PROPERTIES: [&str; 9] =
    ["category", "about", "checks", "needs", "flags", "not-flags", "cpu-controller", "duration", "assert"];
const SECTIONS: [&str; 3] = ["scenario", "backdrop", "step"];

/// Reads all scenarios of a file.
pub fn parse(text: &str) -> Result<Vec<ScenarioSpec>, FileError> {
    let mut reader = Reader::default();
    for (index, line) in text.lines().enumerate() {
        reader.line = index + 1;
        reader.read(line).map_err(|fault| reader.error(fault))?;
    }
    reader.line += 1;
    reader.close().map_err(|fault| reader.error(fault))?;
    if reader.done.is_empty() {
        return Err(FileError {
            line: 1,
            column: 1,
            what: "there is no scenario in it: a scenario begins with 'scenario NAME'".into(),
            nearest: None,
        });
    }
    Ok(reader.done)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Section {
    #[default]
    None,
    Properties,
    Backdrop,
    Step,
}

/// A cgroup that a line names or makes, to be checked when the order is known.
#[derive(Clone, Debug)]
struct Mention {
    line: usize,
    column: usize,
    name: String,
    what: Use,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Made,
    /// `name0`, `name1` and so on.
    MadeInCopies,
    Named,
    Removed,
}

#[derive(Default)]
struct Reader {
    line: usize,
    section: Section,
    done: Vec<ScenarioSpec>,
    spec: Option<ScenarioSpec>,
    /// Properties seen, which stand once.
    seen: Vec<String>,
    step_loops: bool,
    op_mentions: Vec<Mention>,
    def_mentions: Vec<Mention>,
    /// Cgroups that exist at this point: name, and whether in copies.
    alive: Vec<(String, bool)>,
    commands: Vec<String>,
}

type Read<T> = Result<T, Fault>;

impl Reader {
    fn error(&self, fault: Fault) -> FileError {
        let Fault { line, column, what, nearest } = fault;
        FileError { line: line.unwrap_or(self.line), column, what, nearest }
    }

    fn read(&mut self, raw: &str) -> Read<()> {
        let line = words::line(raw);
        let Some(first) = line.head.first() else {
            return match line.tail {
                Some((column, _)) => Err(Fault::at(column, "a line begins with a word")),
                None => Ok(()),
            };
        };
        if SECTIONS.contains(&first.text.as_str()) {
            return self.begin(&line);
        }
        match self.section {
            Section::None => {
                let near = nearest(&first.text, SECTIONS).map(str::to_owned);
                Err(Fault { nearest: near, ..Fault::at(first.column, "a file begins with 'scenario NAME'") })
            }
            Section::Properties => self.property(&line, raw),
            Section::Backdrop => match first.text.as_str() {
                "cgroup" => self.cgroup(&line),
                "host" => {
                    let works = self.load(&line, 1)?;
                    let works = works.ok_or_else(|| Fault::at(first.column, "host needs a work: 'host: spin'"))?;
                    self.spec_mut()?.backdrop.host.extend(works);
                    Ok(())
                }
                _ => Err(unknown(first, "line of a backdrop", &["cgroup", "host"])),
            },
            Section::Step => match first.text.as_str() {
                "cgroup" => self.cgroup(&line),
                _ => self.op(&line),
            },
        }
    }

    fn spec_mut(&mut self) -> Read<&mut ScenarioSpec> {
        self.spec.as_mut().ok_or_else(|| Fault::at(1, "a file begins with 'scenario NAME'"))
    }

    /// A line that begins a section.
    fn begin(&mut self, line: &Line) -> Read<()> {
        let words = &line.head;
        no_tail(line)?;
        match words[0].text.as_str() {
            "scenario" => {
                self.close()?;
                let [_, name] = words.as_slice() else {
                    return Err(Fault::at(words[0].column, "a scenario has one name: 'scenario NAME'"));
                };
                values::scenario_name(name)?;
                if self.done.iter().any(|spec| spec.name == name.text) {
                    return Err(Fault::at(name.column, format!("there is a scenario '{}' above already", name.text)));
                }
                self.spec = Some(ScenarioSpec { name: name.text.clone(), ..ScenarioSpec::default() });
                self.section = Section::Properties;
            }
            "backdrop" => {
                too_many(words, 1)?;
                if !self.spec_mut()?.steps.is_empty() || self.section == Section::Backdrop {
                    return Err(Fault::at(words[0].column, "the backdrop stands once, before the first step"));
                }
                self.section = Section::Backdrop;
            }
            _ => {
                self.settle()?;
                let hold = values::hold(&words[1..], words[0].column)?;
                self.step_loops = matches!(hold, HoldSpec::Loop { .. });
                self.spec_mut()?.steps.push(Step { ops: Vec::new(), setup: Vec::new(), hold });
                self.section = Section::Step;
            }
        }
        Ok(())
    }

    fn property(&mut self, line: &Line, raw: &str) -> Read<()> {
        let first = &line.head[0];
        let name = first.text.as_str();
        if !PROPERTIES.contains(&name) {
            let hint =
                if values::OPS.contains(&name) || name == "cgroup" { "; ops and cgroups stand in a step" } else { "" };
            let mut fault = unknown(first, "property of a scenario", &PROPERTIES);
            fault.what.push_str(hint);
            return Err(fault);
        }
        if name != "assert" && self.seen.iter().any(|seen| seen == name) {
            return Err(Fault::at(first.column, format!("'{name}' is given twice")));
        }
        self.seen.push(name.to_owned());
        if line.head.len() < 2 && name != "about" {
            return Err(Fault::at(first.column, format!("'{name}' needs a value")));
        }
        let rest = &line.head[1..];
        if name == "about" {
            // A text for people: neither colons nor hashes mean anything in it.
            let text = raw.trim().strip_prefix("about").unwrap_or_default().trim().to_owned();
            self.spec_mut()?.about = text;
            return Ok(());
        }
        no_tail(line)?;
        let texts = || rest.iter().map(|word| word.text.clone()).collect::<Vec<_>>();
        match name {
            "category" => {
                too_many(&line.head, 2)?;
                values::scenario_name(&rest[0])?;
                self.spec_mut()?.category = rest[0].text.clone();
            }
            "checks" => self.spec_mut()?.checks = texts(),
            "needs" => self.spec_mut()?.needs = values::needs(rest)?,
            "flags" => {
                values::flags(rest)?;
                self.spec_mut()?.required_flags = texts();
            }
            "not-flags" => {
                values::flags(rest)?;
                self.spec_mut()?.excluded_flags = texts();
            }
            "cpu-controller" => {
                too_many(&line.head, 2)?;
                if rest[0].text != "off" {
                    return Err(unknown(&rest[0], "setting of the cpu controller", &["off"]));
                }
                self.spec_mut()?.no_cpu_controller = true;
            }
            "duration" => {
                too_many(&line.head, 2)?;
                self.spec_mut()?.duration_ns = Some(values::time(&rest[0])?);
            }
            _ => {
                for word in rest {
                    let (name, value) = values::pair(word)?;
                    self.spec_mut()?.asserts.push((name.into(), value.into()));
                }
            }
        }
        Ok(())
    }

    /// The works behind the colon, with `workers=` before it. None where there is no colon.
    fn load(&mut self, line: &Line, head: usize) -> Read<Option<Vec<DefWork>>> {
        let mut workers = Count::AUTO;
        for word in &line.head[head..] {
            match values::pair(word)? {
                ("workers", value) => workers = values::count(word, value)?,
                (name, _) => return Err(unknown_key(word, name, &["workers"])),
            }
        }
        self.works(line, workers)
    }

    fn works(&self, line: &Line, workers: Count) -> Read<Option<Vec<DefWork>>> {
        let Some((column, tail)) = &line.tail else {
            return match workers == Count::AUTO {
                true => Ok(None),
                false => Err(Fault::at(
                    line.head[0].column,
                    "there are workers, but no work: write it behind a colon, ': spin'",
                )),
            };
        };
        let parsed = parse_works(tail).map_err(|error| Fault {
            line: None,
            column: column + error.column - 1,
            what: error.what,
            nearest: error.nearest,
        })?;
        let own = |mut work: DefWork| {
            if work.workers == Count::AUTO {
                work.workers = whole(&work.work, workers);
            }
            work
        };
        Ok(Some(parsed.into_iter().map(own).collect()))
    }

    fn cgroup(&mut self, line: &Line) -> Read<()> {
        let Some(name) = line.head.get(1) else {
            return Err(Fault::at(line.head[0].column, "a cgroup has a name: 'cgroup NAME: spin'"));
        };
        values::cgroup_name(name)?;
        let mut def = CgroupDef::new(&name.text, WorkType::SpinWait, Count::AUTO);
        let mut workers = Count::AUTO;
        let mut seen: Vec<&str> = Vec::new();
        for word in &line.head[2..] {
            if word.text == "swappable" {
                def.swappable = true;
                continue;
            }
            let (key, value) = values::pair(word)?;
            if seen.contains(&key) {
                return Err(Fault::at(word.column, format!("'{key}' is given twice")));
            }
            seen.push(key);
            match key {
                "copies" => def.copies = values::count(word, value)?,
                "cpuset" => def.cpuset = Some(values::cpuset(word, value)?),
                "weight" => def.weight = Some(values::weight(word, value)?),
                "max" => def.max = Some(values::max(word, value)?),
                "workers" => workers = values::count(word, value)?,
                _ => {
                    return Err(unknown_key(word, key, &["copies", "cpuset", "weight", "max", "workers", "swappable"]));
                }
            }
        }
        def.works = self.works(line, workers)?.unwrap_or_default();
        let copies = def.copies != Count::fixed(1);
        let what = if copies { Use::MadeInCopies } else { Use::Made };
        let mention = Mention { line: self.line, column: name.column, name: name.text.clone(), what };
        match self.section {
            Section::Backdrop => {
                self.check(&mention)?;
                self.spec_mut()?.backdrop.cgroups.push(def);
            }
            _ => {
                self.def_mentions.push(mention);
                if let Some(step) = self.spec_mut()?.steps.last_mut() {
                    step.setup.push(def);
                }
            }
        }
        Ok(())
    }

    fn op(&mut self, line: &Line) -> Read<()> {
        let first = &line.head[0];
        if !values::OPS.contains(&first.text.as_str()) {
            let known: Vec<&str> = values::OPS.iter().copied().chain(["cgroup"]).collect();
            let near = nearest(&first.text, known).map(str::to_owned);
            let what = format!("'{}' is neither an op nor 'cgroup'", first.text);
            return Err(Fault { nearest: near, ..Fault::at(first.column, what) });
        }
        if !self.def_mentions.is_empty() && !self.step_loops {
            return Err(Fault::at(
                first.column,
                "the ops of a step come before its cgroups: they are carried out first",
            ));
        }
        let op = match first.text.as_str() {
            "spawn" => {
                let name = values::argument(line, 1, "a cgroup")?.text.clone();
                Op::Spawn { name, work: self.one_work(line, 2)? }
            }
            "spawn-host" => Op::SpawnHost { work: self.one_work(line, 1)? },
            _ => values::op(line)?,
        };
        self.mention_op(line, &op)?;
        if let Some(step) = self.spec_mut()?.steps.last_mut() {
            step.ops.push(op);
        }
        Ok(())
    }

    fn one_work(&mut self, line: &Line, head: usize) -> Read<DefWork> {
        let first = &line.head[0];
        let mut works = self.load(line, head)?.unwrap_or_default();
        match (works.pop(), works.is_empty()) {
            (Some(work), true) => Ok(work),
            _ => Err(Fault::at(
                first.column,
                format!("'{}' takes one work behind a colon, such as ': spin*2'", first.text),
            )),
        }
    }

    /// Notes the cgroups that an op names, and checks the commands that it names.
    fn mention_op(&mut self, line: &Line, op: &Op) -> Read<()> {
        let at = |index: usize| line.head.get(index).map_or(line.head[0].column, |word| word.column);
        let mut mention = |column: usize, name: &str, what: Use| {
            self.op_mentions.push(Mention { line: self.line, column, name: name.into(), what });
        };
        match op {
            Op::AddCgroup { name } => mention(at(1), name, Use::Made),
            Op::RemoveCgroup { name } => mention(at(1), name, Use::Removed),
            Op::SetCpuset { name, .. }
            | Op::ClearCpuset { name }
            | Op::SetWeight { name, .. }
            | Op::SetMax { name, .. }
            | Op::Spawn { name, .. }
            | Op::StopCgroup { name }
            | Op::SetAffinity { name, .. }
            | Op::FreezeCgroup { name }
            | Op::UnfreezeCgroup { name } => mention(at(1), name, Use::Named),
            Op::SwapCpusets { a, b } => {
                mention(at(1), a, Use::Named);
                mention(at(2), b, Use::Named);
            }
            Op::MoveAllTasks { from, to } => {
                mention(at(1), from, Use::Named);
                mention(at(2), to, Use::Named);
            }
            Op::RunPayload { name, cgroup, .. } => {
                if let Some(cgroup) = cgroup {
                    mention(at(3), cgroup, Use::Named);
                }
                self.commands.push(name.clone());
            }
            Op::WaitPayload { name } | Op::KillPayload { name } if !self.commands.contains(name) => {
                let near = nearest(name, self.commands.iter().map(String::as_str)).map(str::to_owned);
                return Err(Fault { nearest: near, ..Fault::at(at(1), format!("no command '{name}' was run before")) });
            }
            _ => {}
        }
        Ok(())
    }

    /// A step is whole: its cgroups are checked in the order in which it is carried out.
    fn settle(&mut self) -> Read<()> {
        let (ops, defs) = (std::mem::take(&mut self.op_mentions), std::mem::take(&mut self.def_mentions));
        let ordered = if self.step_loops { [defs, ops] } else { [ops, defs] };
        ordered.iter().flatten().try_for_each(|mention| self.check(mention))
    }

    fn check(&mut self, mention: &Mention) -> Read<()> {
        let fault = |what: String, near: Option<String>| Fault {
            line: Some(mention.line),
            column: mention.column,
            what,
            nearest: near,
        };
        let name = mention.name.as_str();
        let fits = |(known, copies): &&(String, bool)| match name.strip_suffix('*') {
            Some(prefix) => known.starts_with(prefix) || (*copies && prefix.starts_with(known.as_str())),
            None => {
                known == name && !copies
                    || *copies
                        && name
                            .strip_prefix(known.as_str())
                            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
            }
        };
        match mention.what {
            Use::Made | Use::MadeInCopies => {
                let copies = mention.what == Use::MadeInCopies;
                if self.alive.iter().any(|(known, _)| known == name) {
                    return Err(fault(format!("there is a cgroup '{name}' already"), None));
                }
                self.alive.push((name.to_owned(), copies));
            }
            Use::Named | Use::Removed => {
                // A level above a cgroup exists because of it.
                let above = self
                    .alive
                    .iter()
                    .any(|(known, _)| known.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')));
                if !above && !self.alive.iter().any(|group| fits(&group)) {
                    let near = nearest(name, self.alive.iter().map(|(known, _)| known.as_str())).map(str::to_owned);
                    return Err(fault(format!("there is no cgroup '{name}' at this point"), near));
                }
                if mention.what == Use::Removed {
                    let below = format!("{name}/");
                    self.alive.retain(|group| !fits(&group) && !group.0.starts_with(&below));
                }
            }
        }
        Ok(())
    }

    /// A scenario is whole.
    fn close(&mut self) -> Read<()> {
        self.settle()?;
        self.seen.clear();
        self.alive.clear();
        self.commands.clear();
        let Some(spec) = self.spec.take() else { return Ok(()) };
        if spec.steps.is_empty() {
            let what = format!("the scenario {} has no step: 'step' begins one", spec.name);
            return Err(Fault::at(1, what));
        }
        if spec.cgroup_defs().next().is_none() && spec.ops().next().is_none() && spec.backdrop == Backdrop::default() {
            return Err(Fault::at(1, format!("the scenario {} does nothing", spec.name)));
        }
        self.done.push(spec);
        Ok(())
    }
}

/// Whole groups of a work type, for a number that somebody wrote.
fn whole(work: &WorkType, workers: Count) -> Count {
    match workers == Count::fixed(workers.times) {
        true => Count::fixed(workers.times.next_multiple_of(work.worker_group_size().max(1))),
        false => workers,
    }
}

fn no_tail(line: &Line) -> Read<()> {
    match &line.tail {
        Some((column, _)) => Err(Fault::at(column.saturating_sub(1), "nothing stands behind a colon here")),
        None => Ok(()),
    }
}

fn too_many(words: &[Word], most: usize) -> Read<()> {
    match words.get(most) {
        Some(word) => Err(Fault::at(word.column, format!("'{}' is left over", word.text))),
        None => Ok(()),
    }
}

fn unknown(word: &Word, what: &str, known: &[&str]) -> Fault {
    let near = nearest(&word.text, known.iter().copied()).map(str::to_owned);
    Fault { nearest: near, ..Fault::at(word.column, format!("'{}' is no {what} ({})", word.text, known.join(", "))) }
}

fn unknown_key(word: &Word, key: &str, known: &[&str]) -> Fault {
    let near = nearest(key, known.iter().copied()).map(str::to_owned);
    Fault { nearest: near, ..Fault::at(word.column, format!("'{key}' is no setting here ({})", known.join(", "))) }
}

/// The scenarios of a file as text again.
pub fn print(specs: &[ScenarioSpec]) -> String {
    specs.iter().map(text::file).collect::<Vec<_>>().join("\n")
}
