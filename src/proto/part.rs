//! One of several scenarios of a run, as a record of its own, and what belongs to none of them as another.
//!
//! Owns which messages belong to which; leaves folding them to `record`.
//! Invariant: a part that ended in order is not touched by what happened after it, and no message is in no record.

use super::message::{Msg, VmEnd};
use super::record::Record;

/// The picture of one scenario of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its place in the plan.
    pub index: u32,
    /// It was over in order, so what came later is not about it.
    pub over: bool,
    pub record: Record,
}

impl Record {
    /// No scenario is open.
    pub fn is_outside(&self) -> bool {
        self.parts.last().is_none_or(|part| part.over)
    }

    pub(super) fn apply_to_parts(&mut self, message: &Msg) {
        self.apply_outside(message);
        match message {
            Msg::ScenarioBegin { index } => self.begin_part(*index),
            Msg::ScenarioOver { index, klog_records, klog_lost } => {
                let open = self.parts.iter_mut().find(|part| part.index == *index && !part.over);
                if let Some(part) = open {
                    part.over = true;
                    part.record.klog_end = Some((*klog_records, *klog_lost));
                    // For this scenario the guest went on in order, whatever becomes of the next one.
                    part.record.bye = true;
                    part.record.vm_end = Some(VmEnd::Reset);
                }
            }
            // Told at the end, and true of all scenarios.
            Msg::Noise { .. } | Msg::ChannelDamage { .. } => {
                self.parts.iter_mut().for_each(|part| part.record.fold(message.clone()))
            }
            _ => {
                if let Some(part) = self.parts.last_mut().filter(|part| !part.over) {
                    part.record.fold(message.clone());
                }
            }
        }
    }

    fn apply_outside(&mut self, message: &Msg) {
        if matches!(message, Msg::ScenarioBegin { .. }) && self.outside.is_none() {
            self.outside = Some(Box::new(self.clone()));
        }
        // How the machine ended is known to the outside even where a scenario was still open.
        let of_all = matches!(
            message,
            Msg::Mark { .. }
                | Msg::Noise { .. }
                | Msg::ChannelDamage { .. }
                | Msg::KlogEnd { .. }
                | Msg::Bye { .. }
                | Msg::VmEnded { .. }
        );
        let is_outside = self.is_outside();
        if let Some(outside) = self.outside.as_mut().filter(|_| of_all || is_outside) {
            outside.fold(message.clone());
        }
    }

    fn begin_part(&mut self, index: u32) {
        // What is known of the machine holds for the part; what was said before it does not.
        let mut plan = self.plan.clone();
        if let Some(plan) = &mut plan {
            plan.scenarios = plan.scenarios.get(index as usize).cloned().into_iter().collect();
        }
        let record = Self {
            host: self.host.clone(),
            plan,
            marks: self.marks.clone(),
            hello: self.hello.clone(),
            ..Self::default()
        };
        self.parts.push(Part { index, over: false, record });
    }

    /// The records to be judged, with the place of each in the plan: the parts, or the whole where it was not divided.
    pub fn scenarios(&self) -> Vec<(usize, &Self)> {
        match self.parts.is_empty() {
            true => vec![(0, self)],
            false => self.parts.iter().map(|part| (part.index as usize, &part.record)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::report::WorkerReport;

    fn note(text: &str) -> Msg {
        Msg::Note { text: text.into() }
    }

    #[test]
    fn each_scenario_has_its_own_picture_and_a_crash_touches_only_the_open_one() {
        let mut record = Record::default();
        let report = |group: &str| Msg::Report { group: group.into(), report: WorkerReport::default() };
        for message in [
            note("boot"),
            Msg::ScenarioBegin { index: 0 },
            note("first"),
            report("a"),
            Msg::ScenarioOver { index: 0, klog_records: 3, klog_lost: 0 },
            note("between"),
            Msg::ScenarioBegin { index: 2 },
            report("b"),
            Msg::VmEnded { end: VmEnd::TripleFault },
            Msg::ChannelDamage { text: "lost".into() },
        ] {
            record.apply(message);
        }
        let parts = record.scenarios();
        assert_eq!(parts.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 2]);
        let (first, second) = (parts[0].1, parts[1].1);
        assert_eq!((first.notes.as_slice(), first.klog_end), (&["first".to_owned()][..], Some((3, 0))));
        assert!(first.bye && first.vm_end == Some(VmEnd::Reset));
        assert_eq!(first.reports[0].0, "a");
        assert!(!second.bye && second.vm_end == Some(VmEnd::TripleFault) && second.notes.is_empty());
        assert_eq!(first.channel_damage, second.channel_damage);
        assert_eq!(record.notes, ["boot", "first", "between"]);
        let outside = record.outside.as_ref().unwrap();
        assert_eq!(outside.notes, ["boot", "between"]);
        assert!(outside.reports.is_empty() && outside.vm_end == Some(VmEnd::TripleFault));
        assert_eq!(outside.channel_damage, ["lost"]);
        assert_eq!(record.reports.len(), 2);
    }

    #[test]
    fn undivided_run_is_its_own_only_scenario() {
        let mut record = Record::default();
        record.apply(note("n"));
        assert_eq!(record.scenarios(), [(0, &record)]);
    }
}
