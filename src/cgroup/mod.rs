//! Cgroup v2: directories, knobs, statistics.
//!
//! Owns every file of a cgroup; each function takes its directory; leaves which groups exist to scenario/.
//! Invariant: a refused write is an error that names file, data and errno.
