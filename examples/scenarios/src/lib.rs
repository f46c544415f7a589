//! Nothing: the scenarios are in tests/scheduler.rs. A scheduler's own crate has its code here.
