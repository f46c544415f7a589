//! What the engine says while it works: events for whoever listens, nothing printed here.
//!
//! Owns the event values; leaves showing them to report/ and cli/.
//! Invariant: an event carries facts, not layout.

/// One thing that happened on the host while a run was under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something the user should know, but that does not change the verdict.
    Note(String),
    /// The run has reached this stage.
    Stage(&'static str),
    /// Bytes of the guest's console, as they came.
    Console(Vec<u8>),
    /// Output of the scheduler under test.
    SchedulerOutput(String),
}

/// Takes the events of a run.
pub type Listener<'a> = &'a mut dyn FnMut(Event);
