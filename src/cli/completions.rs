//! Completion scripts for bash, zsh and fish, from the table of `flags`.
//!
//! Owns the three shells' syntax; leaves names to the table.
//! Invariant: a script offers exactly the shown commands and flags, and needs nothing but the shell.

use super::args::Shell;
use super::flags::{self, Arity, Cmd, CommandSpec, Complete, Flag, Operand};
use super::topics::TOPICS;

/// The script for one shell.
pub fn script(shell: Shell) -> String {
    match shell {
        Shell::Bash => bash(),
        Shell::Zsh => zsh(),
        Shell::Fish => fish(),
    }
}

/// Words that may follow a command.
fn operands(spec: &CommandSpec) -> Vec<&'static str> {
    match spec.operand {
        Operand::Required(_, choices) => choices.to_vec(),
        Operand::Optional(_) => {
            flags::shown_commands().map(|spec| spec.name).chain(TOPICS.iter().map(|topic| topic.name)).collect()
        }
        Operand::Nothing | Operand::Two(..) => Vec::new(),
    }
}

fn command_names() -> String {
    flags::shown_commands().map(|spec| spec.name).collect::<Vec<_>>().join(" ")
}

fn bash() -> String {
    let mut text = String::from(
        "_ktstr() {\n    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} cmd=run\n    \
         # readline splits --flag=value at the sign.\n    \
         if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi\n    \
         COMPREPLY=()\n    if (( COMP_CWORD > 1 )); then\n        case ${COMP_WORDS[1]} in\n",
    );
    text.push_str(&format!(
        "            {}) cmd=${{COMP_WORDS[1]}} ;;\n        esac\n    fi\n    case $cmd:$prev in\n",
        command_names().replace(' ', "|")
    ));
    for spec in flags::shown_commands() {
        for flag in flags::shown_flags(spec.cmd).filter(|flag| matches!(flag.arity, Arity::Value(_))) {
            let short = flag.short.map(|letter| format!("|{}:-{letter}", spec.name)).unwrap_or_default();
            let pattern = format!("{}:{}{short}", spec.name, flag.dashed());
            let offer = match flag.complete {
                Complete::File => "compgen -f -- \"$cur\"".to_string(),
                Complete::Directory => "compgen -d -- \"$cur\"".to_string(),
                Complete::Nothing => format!("compgen -W '{}' -- \"$cur\"", flag.choices.join(" ")),
            };
            text.push_str(&format!("        {pattern}) mapfile -t COMPREPLY < <({offer}); return ;;\n"));
        }
    }
    text.push_str("    esac\n    local words=\n    case $cmd in\n");
    for spec in flags::shown_commands() {
        let dashed: Vec<String> = flags::shown_flags(spec.cmd).map(Flag::dashed).collect();
        let words = operands(spec).join(" ");
        text.push_str(&format!("        {}) words='{words} {}' ;;\n", spec.name, dashed.join(" ")));
    }
    text.push_str(&format!(
        "    esac\n    if (( COMP_CWORD == 1 )); then words=\"{} $words\"; fi\n    \
         mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n    \
         # `image --list` takes a file, or none.\n    \
         if [[ $cmd:$prev == image:--list ]]; then mapfile -t -O ${{#COMPREPLY[@]}} COMPREPLY < <(compgen -f -- \"$cur\"); fi\n\
         }}\ncomplete -o filenames -F _ktstr ktstr\n",
        command_names()
    ));
    text
}

/// Inside single quotes, and inside the brackets and colons of `_arguments`.
fn zsh_text(text: &str) -> String {
    text.replace('\'', "'\\''").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:")
}

fn zsh() -> String {
    let mut text = String::from("#compdef ktstr\n\n");
    for spec in flags::shown_commands() {
        text.push_str(&format!("_ktstr_{}() {{\n    _arguments -s", spec.name));
        for flag in flags::shown_flags(spec.cmd) {
            let help = zsh_text(flag.help);
            let (long, more) = (flag.dashed(), if flag.repeat { "*" } else { "" });
            let action = match flag.complete {
                Complete::File => "_files".to_string(),
                Complete::Directory => "_files -/".to_string(),
                Complete::Nothing => format!("({})", flag.choices.join(" ")),
            };
            let (sign, value) = match flag.arity {
                Arity::Switch => ("", String::new()),
                Arity::Value(name) => ("=", format!(":{}:{action}", zsh_text(name))),
                Arity::Optional(name) => ("=-", format!("::{}:{action}", zsh_text(name))),
            };
            text.push_str(&format!(" \\\n        '{more}{long}{sign}[{help}]{value}'"));
            if let Some(letter) = flag.short {
                let plus = if sign.is_empty() { "" } else { "+" };
                text.push_str(&format!(" \\\n        '{more}-{letter}{plus}[{help}]{value}'"));
            }
        }
        let words = operands(spec).join(" ");
        if !words.is_empty() {
            text.push_str(&format!(" \\\n        '1:word:({words})'"));
        }
        text.push_str("\n}\n\n");
    }
    text.push_str("_ktstr() {\n    local -a commands=(\n");
    for spec in flags::shown_commands() {
        text.push_str(&format!("        '{}:{}'\n", spec.name, zsh_text(spec.help)));
    }
    text.push_str(
        "    )\n    if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then\n        _describe command commands\n    \
         elif (( $+functions[_ktstr_$words[2]] )); then\n        shift words\n        (( CURRENT-- ))\n        \
         _ktstr_$words[1]\n    else\n        _ktstr_run\n    fi\n}\n\n_ktstr \"$@\"\n",
    );
    text
}

/// Inside single quotes of fish, where a backslash escapes itself and the quote.
fn fish_text(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\'', "\\'")
}

fn fish() -> String {
    let names = command_names();
    let mut text = String::from("complete -c ktstr -f\n");
    for spec in flags::shown_commands() {
        text.push_str(&format!(
            "complete -c ktstr -n __fish_use_subcommand -a {} -d '{}'\n",
            spec.name,
            fish_text(spec.help)
        ));
    }
    for spec in flags::shown_commands() {
        // The command that need not be named is the one where no other is.
        let condition = match spec.cmd {
            Cmd::Run => {
                let others: Vec<_> = names.split(' ').filter(|name| *name != spec.name).collect();
                format!("not __fish_seen_subcommand_from {}", others.join(" "))
            }
            _ => format!("__fish_seen_subcommand_from {}", spec.name),
        };
        let words = operands(spec).join(" ");
        if !words.is_empty() {
            text.push_str(&format!("complete -c ktstr -n '{condition}' -a '{words}'\n"));
        }
        for flag in flags::shown_flags(spec.cmd) {
            let short = flag.short.map(|letter| format!(" -s {letter}")).unwrap_or_default();
            let value = match (flag.arity, flag.complete) {
                (Arity::Switch, _) => String::new(),
                (Arity::Optional(_), _) => " -F".into(),
                (_, Complete::File) => " -r -F".into(),
                (_, Complete::Directory) => " -x -a '(__fish_complete_directories)'".into(),
                (_, Complete::Nothing) => format!(" -x -a '{}'", flag.choices.join(" ")),
            };
            text.push_str(&format!(
                "complete -c ktstr -n '{condition}' -l {}{short}{value} -d '{}'\n",
                flag.long,
                fish_text(flag.help)
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

    #[test]
    fn every_shown_flag_and_command_is_offered_in_every_shell() {
        for shell in ALL {
            let text = script(shell);
            for flag in flags::all().filter(|flag| !flag.hidden) {
                let name = if shell == Shell::Fish { format!("-l {}", flag.long) } else { flag.dashed() };
                assert!(text.contains(&name), "{shell:?}: {name}");
            }
            for spec in flags::shown_commands() {
                assert!(text.contains(spec.name), "{shell:?}: {}", spec.name);
            }
            assert!(text.contains("kvm qemu"), "{shell:?} knows no choices");
            assert!(!text.contains("__vm") && !text.contains("__probe"), "{shell:?} offers a hidden command");
        }
    }

    #[test]
    fn quotes_in_help_cannot_end_a_string() {
        assert_eq!(fish_text("the kernel's"), "the kernel\\'s");
        assert_eq!(zsh_text("a's [b]: c"), "a'\\''s \\[b\\]\\: c");
        // Each quote of a shell string is paired.
        for (shell, escape) in [(Shell::Zsh, "'\\''"), (Shell::Fish, "\\'")] {
            for line in script(shell).lines() {
                assert_eq!(line.replace(escape, "").matches('\'').count() % 2, 0, "{shell:?}: {line}");
            }
        }
    }

    /// What bash offers at the end of these words; none where there is no bash.
    fn offered(words: &[&str]) -> Option<String> {
        let listed: String = words.iter().map(|word| format!(" '{word}'")).collect();
        let ask = format!("COMP_WORDS=({listed} ); COMP_CWORD={}; _ktstr; echo \"${{COMPREPLY[*]}}\"", words.len() - 1);
        let run = std::process::Command::new("bash").args(["--norc", "-c", &format!("{}\n{ask}", bash())]).output();
        match run {
            Ok(output) => {
                assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
                Some(String::from_utf8(output.stdout).unwrap().trim().to_string())
            }
            Err(error) => {
                println!("not run: bash: {error}");
                None
            }
        }
    }

    #[test]
    fn bash_offers_commands_flags_and_choices() {
        for (words, expected) in [
            (&["ktstr", "do"][..], "doctor"),
            (&["ktstr", "--acc"], "--accel"),
            (&["ktstr", "--accel", ""], "auto kvm qemu"),
            (&["ktstr", "--accel", "=", "k"], "kvm"),
            (&["ktstr", "run", "--color", "n"], "never"),
            (&["ktstr", "list", "w"], "works"),
            (&["ktstr", "help", "bis"], "bisect-check bisect-help bisect"),
            (&["ktstr", "image", "--out"], "--output"),
            (&["ktstr", "doctor", "--k"], ""),
        ] {
            if let Some(found) = offered(words) {
                assert_eq!(found, expected, "{words:?}");
            }
        }
    }
}
