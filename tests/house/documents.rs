//! The rules about documents and about every text file of the tree.
//!
//! Owns them; leaves walking the tree to `main`.
//! Invariant: what a document shows as a command line is one that the program accepts.

use ktstr::cli::{parse, split};

/// Places that exist on one machine only.
const MACHINE_PATHS: [&str; 4] = ["/home/", "/root/", "/work/", "/Users/"];

/// Absolute paths of one machine, where they begin a path and do not continue one.
pub fn machine_paths(path: &str, text: &str) -> Vec<String> {
    let begins = |line: &str, at: usize| {
        !line[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '~' | '}' | ')'))
    };
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let named = |place: &str| line.match_indices(place).any(|(index, _)| begins(line, index));
        if MACHINE_PATHS.iter().any(|place| named(place)) {
            found.push(format!("{path}:{}: {}", at + 1, line.trim()));
        }
    }
    found
}

/// Lines of fenced or indented blocks that begin with `ktstr` and do not parse.
pub fn command_lines(document: &str, text: &str) -> Vec<String> {
    let mut violations = Vec::new();
    let mut fenced = false;
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        let shown = line.trim_start();
        let shown = shown.strip_prefix("$ ").unwrap_or(shown);
        let is_block = fenced || line.starts_with("    ");
        let Some(arguments) = shown.strip_prefix("ktstr ").or_else(|| shown.strip_prefix("./ktstr ")) else { continue };
        // Not a command line of ours: `ktstr: error:`, prose outside of a block, or a synopsis.
        if !is_block || arguments.contains('[') || arguments.contains("...") {
            continue;
        }
        let mut arguments = arguments.to_string();
        for next in &lines[at + 1..] {
            let Some(continued) = arguments.strip_suffix('\\') else { break };
            arguments = format!("{continued}{}", next.trim_start());
        }
        // What follows a comment sign, a pipe or a redirection is the shell's, and so is the end of a quoted script.
        let quotes_before = |at: usize| arguments[..at].matches('\'').count();
        let mut signs = arguments.match_indices([';', '|', '&', '>', '#']);
        let end = signs.find(|(at, _)| quotes_before(*at) % 2 == 0).map_or(arguments.len(), |(at, _)| at);
        let arguments = &arguments[..end];
        let quoted_script = arguments.matches('\'').count() % 2 == 1;
        let arguments = if quoted_script { arguments.trim_end_matches('\'') } else { arguments };
        let refused = match split::words(arguments) {
            Ok(words) => parse::parse(words.into_iter().map(Into::into)).err().map(|error| error.to_string()),
            Err(why) => Some(why),
        };
        violations.extend(refused.map(|why| format!("{document}:{}: {}: {why}", at + 1, line.trim())));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_one_machine_fail_and_system_paths_pass() {
        assert_eq!(machine_paths("a", "x\nsee /home/me/kernel\n").len(), 1);
        assert_eq!(machine_paths("a", "\"/work/x\"").len(), 1);
        assert!(machine_paths("a", "/sys/kernel/sched_ext/root/ops ~/work/ guest/root/ $X/work/").is_empty());
    }

    #[test]
    fn wrong_command_lines_in_blocks_fail() {
        assert_eq!(command_lines("a", "```\nktstr --kernl x\n```\n").len(), 1);
        assert_eq!(command_lines("a", "    $ ktstr doctr\n").len(), 1);
        assert!(command_lines("a", "```\nktstr doctor   # what this host can do\n```\n").is_empty());
        assert!(command_lines("a", "ktstr --kernl is prose\n").is_empty());
        assert_eq!(command_lines("a", "```\nktstr -k x \\\n  --sched y --nonsense\n```\n").len(), 1);
        assert!(command_lines("a", "```\nsh -c 'a;\n  ktstr -k x'\n```\n").is_empty());
        assert!(command_lines("a", "```\n./ktstr -k x --json - | jq .\n```\n").is_empty());
    }
}
