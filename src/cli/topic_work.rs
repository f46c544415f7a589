//! The prose of `ktstr help work`: how work is written.
//!
//! Owns the sentences and examples; leaves the grammar itself to workload/grammar.
//! Invariant: every example parses, which a test checks; no line is wider than 80 columns.

use super::topics::Topic;

/// Examples of the topic, which all parse.
#[cfg(test)]
pub const EXAMPLES: [&str; 8] = [
    "spin",
    "bursty(burst=5ms, sleep=10ms)*4",
    "fan-out(fan_out=8)*2",
    "spin*2 policy=fifo:10",
    "spin*2 nice=5 affinity=llc; bursty*1 policy=batch",
    "sequence(spin 2ms, sleep 1ms, yield 500us)",
    "cache(size_kb=512) affinity=cpus:0-1 mem=bind:0",
    "pipe*1 clone=thread",
];

pub const WORK: Topic = Topic {
    name: "work",
    help: "how work is written: types, parameters, classes, CPUs, memory",
    text: "\
--work TEXT         what the workers of each cgroup do. 'ktstr list works' lists
                    the types, 'ktstr help work NAME' explains one.

A type, its parameters in brackets, how many groups of it, and options:

  spin                                    as many workers as CPUs
  bursty(burst=5ms, sleep=10ms)*4         four of them
  fan-out(fan_out=8)*2                    two groups of nine
  spin*2 policy=fifo:10
  spin*2 nice=5 affinity=llc; bursty*1 policy=batch
  sequence(spin 2ms, sleep 1ms, yield 500us)
  cache(size_kb=512) affinity=cpus:0-1 mem=bind:0
  pipe*1 clone=thread

A semicolon separates works that share the cgroup. Quote the text for the shell.
*N counts whole groups: pipe*3 is three pairs. Without it --workers counts.

policy=normal|batch|idle|fifo:P|rr:P|deadline:RUNTIME:DEADLINE:PERIOD|ext
nice=-20..19
affinity=inherit    whatever the cgroup allows (the default)
         llc        the last-level cache that has most of it
         single     its first CPU            each    a CPU each, in turn
         smt        the threads of one core  cross   every CPU there is
         cpus:LIST  these
         random[:N][@LIST]   N of LIST for each worker, drawn by the seed
mem=default|local|preferred:NODE|bind:NODES|interleave:NODES
    |preferred-many:NODES|weighted:NODES
mpol=static|relative|balancing, several joined by +
clone=fork|thread   a process each, or threads of one process

What the kernel refuses of this stands in the result, and the run fails.

The io types write to the guest's disk where --disk SIZE gives it one that
nobody else needs; else each worker has a temporary file in memory.

--seed N repeats every random choice. With --work the whole is one line; what is
more belongs into a scenario.
",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_parses_and_is_shown() {
        for example in EXAMPLES {
            crate::workload::parse_works(example).unwrap_or_else(|error| panic!("{example}: {error}"));
            assert!(WORK.text.lines().any(|line| line.trim().starts_with(example)), "{example}");
        }
    }
}
