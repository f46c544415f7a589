//! End-to-end tests: everything here goes through the binary.
//!
//! Owns what a user sees; leaves the modules' own rules to the unit tests beside the code.
//! Invariant: a test that cannot run on this machine says so in the list of tests not run; it never just passes.

mod acpi;
mod bisect;
mod boot;
mod cli;
mod code;
mod disk;
mod faults;
mod floods;
mod guest;
mod hang;
mod host;
mod image;
mod judge;
mod lab;
mod left;
mod library;
mod many;
mod meter;
mod placement;
mod queues;
mod scenarios;
mod stages;
mod topology;
mod util;
