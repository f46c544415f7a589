//! What a person, a script or another tool reads about a run.
//!
//! Owns layout only; leaves every number to verdict/ and proto/record.
//! Invariant: the same verdict gives the same text.
