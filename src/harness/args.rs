//! The command line of a test binary, as Rust's own test harness has it.
//!
//! Owns the words and the choice of cases; leaves running them to `suite`.
//! Invariant: a word that the harness does not know is refused, not passed over.

use super::Case;
use crate::error::{Error, Result};
use std::ffi::OsString;

/// How a list is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Pretty,
    Terse,
}

/// Which cases of those that match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ignored {
    #[default]
    No,
    Only,
    Too,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    pub help: bool,
    pub list: bool,
    pub format: Format,
    pub exact: bool,
    pub ignored: Ignored,
    /// What a case prints is shown as it comes.
    pub nocapture: bool,
    /// What passing cases printed is shown too.
    pub show_output: bool,
    /// VMs at a time.
    pub threads: usize,
    pub skip: Vec<String>,
    pub filters: Vec<String>,
}

pub const HELP: &str = "\
Scenarios for ktstr as tests. Each boots a kernel in a VM of its own.

Usage: TEST-BINARY [FILTER...] [flags]

  FILTER                   only cases whose name contains it
  --exact                  only cases whose name is it
  --skip TEXT              not those whose name contains it
  --list                   print the names, and leave; --format terse: nothing else
  --ignored                only the cases that are ignored else
  --include-ignored        these too
  --nocapture              show what a run prints as it comes
  --show-output            show what passing cases printed, too
  --test-threads N         VMs at a time (default: RUST_TEST_THREADS, or 1)
  -q, --quiet; --color WHEN; -Z WHAT: accepted, without effect

Environment:
  KTSTR_KERNEL             the kernel to boot: bzImage or ELF vmlinux
  KTSTR_ARGS               more flags of 'ktstr run', split as a shell does;
                           they win over those of a case
";

/// Reads the words behind the program's name. `threads`: what RUST_TEST_THREADS says.
pub fn parse(words: &[OsString], threads: Option<&str>) -> Result<Args> {
    let mut args = Args {
        help: false,
        list: false,
        format: Format::Pretty,
        exact: false,
        ignored: Ignored::No,
        nocapture: false,
        show_output: false,
        threads: threads.map_or(Ok(1), |text| count("RUST_TEST_THREADS", text))?,
        skip: Vec::new(),
        filters: Vec::new(),
    };
    let mut words = words.iter().map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = words.next() {
        let (flag, inline) = match word.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (flag.to_owned(), Some(value.to_owned())),
            _ => (word.clone(), None),
        };
        let mut value = || {
            let value = inline.clone().or_else(|| words.next());
            value.ok_or_else(|| Error::usage(format!("{flag} needs a value")))
        };
        match flag.as_str() {
            "-h" | "--help" => args.help = true,
            "--list" => args.list = true,
            "--exact" => args.exact = true,
            "--ignored" => args.ignored = Ignored::Only,
            "--include-ignored" => args.ignored = Ignored::Too,
            "--nocapture" | "--no-capture" => args.nocapture = true,
            "--show-output" => args.show_output = true,
            "-q" | "--quiet" | "--test" => {}
            "--color" | "-Z" => drop(value()?),
            "--skip" => args.skip.push(value()?),
            "--test-threads" => args.threads = count("--test-threads", &value()?)?,
            "--format" => {
                args.format = match value()?.as_str() {
                    "pretty" => Format::Pretty,
                    "terse" => Format::Terse,
                    other => return Err(Error::usage(format!("--format: '{other}' is neither pretty nor terse"))),
                }
            }
            other if other.starts_with('-') => {
                return Err(Error::usage(format!("unknown flag '{other}'"))
                    .hint("flags of 'ktstr run' go into the variable KTSTR_ARGS; --help lists the others"));
            }
            _ => args.filters.push(word),
        }
    }
    Ok(args)
}

fn count(what: &str, text: &str) -> Result<usize> {
    let number = text.parse().ok().filter(|count| *count > 0);
    number.ok_or_else(|| Error::usage(format!("{what}: '{text}' is no number above zero")))
}

impl Args {
    /// Whether the name is asked for.
    fn names(&self, name: &str) -> bool {
        let matches = |filter: &String| if self.exact { name == filter } else { name.contains(filter.as_str()) };
        (self.filters.is_empty() || self.filters.iter().any(matches)) && !self.skip.iter().any(matches)
    }

    /// The cases that are asked for, ignored ones among them.
    pub fn choose<'a>(&self, cases: &'a [Case]) -> Vec<&'a Case> {
        let asked =
            |case: &&Case| self.names(case.coded.name) && (self.ignored != Ignored::Only || case.ignored.is_some());
        cases.iter().filter(asked).collect()
    }

    /// Whether a chosen case is only named.
    pub fn passes_over(&self, case: &Case) -> bool {
        case.ignored.is_some() && self.ignored == Ignored::No
    }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;
    use crate::proto::asserted::AssertResult;

    fn parsed(text: &str) -> Args {
        parse(&text.split_whitespace().map(OsString::from).collect::<Vec<_>>(), None).unwrap()
    }

    fn chosen(text: &str) -> Vec<&'static str> {
        let case = |name| Case::new(name, |_| Ok(AssertResult::pass()));
        let slow = case("share_slowly").with(Options::new().ignored("slow"));
        let cases = [case("share"), case("share_under_fifo"), case("starve"), slow];
        parsed(text).choose(&cases).iter().map(|case| case.coded.name).collect()
    }

    #[test]
    fn filters_choose_by_part_or_whole_name() {
        assert_eq!(chosen(""), ["share", "share_under_fifo", "starve", "share_slowly"]);
        assert_eq!(chosen("share --skip slow"), ["share", "share_under_fifo"]);
        assert_eq!(chosen("share --exact"), ["share"]);
        assert_eq!(chosen("--exact share starve"), ["share", "starve"]);
        assert_eq!(chosen("--ignored"), ["share_slowly"]);
        assert_eq!(chosen("nothing"), [""; 0]);
    }

    #[test]
    fn words_of_cargo_and_nextest_are_understood() {
        let list = parsed("--list --format terse --ignored");
        assert!(list.list && list.format == Format::Terse && list.ignored == Ignored::Only);
        let one = parsed("share --exact --nocapture");
        assert!(one.exact && one.nocapture && one.filters == ["share"]);
        let more = parsed("--test-threads=3 --color always -q -Z unstable-options --include-ignored --show-output");
        assert!(more.threads == 3 && more.ignored == Ignored::Too && more.show_output && more.filters.is_empty());
        assert_eq!(parse(&[], Some("2")).unwrap().threads, 2);
    }

    #[test]
    fn unknown_words_are_refused_with_the_way_out() {
        let refused = |text: &str| {
            parse(&text.split_whitespace().map(OsString::from).collect::<Vec<_>>(), None).unwrap_err().to_string()
        };
        assert!(refused("--kernel x").contains("KTSTR_ARGS"));
        assert!(refused("--format json").contains("neither pretty nor terse"));
        assert!(refused("--test-threads 0").contains("no number above zero"));
        assert!(refused("--skip").contains("needs a value"));
        assert!(parse(&[], Some("many")).is_err());
    }
}
