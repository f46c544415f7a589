//! One of several scenarios of a run, as a record of its own, and what belongs to none of them as another.
//!
//! Owns which messages belong to which; leaves folding them to `record`.
//! Invariant: a part that ended in order is not touched by what happened after it, and no message is in no record.

use super::message::{Msg, Stage, VmEnd};
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

impl Part {
    /// The first and the last time that it was the subject; without an end while it is open.
    fn lasted(&self) -> Option<(u64, u64)> {
        let own = || self.record.marks.iter().filter(|(stage, _)| is_of_scenario(*stage)).map(|(_, at_ns)| *at_ns);
        let last_ns = if self.over { own().max() } else { Some(u64::MAX) };
        Some((own().min()?, last_ns?))
    }

    /// For this scenario the guest went on in order, whatever becomes of the next one.
    fn close(&mut self) {
        self.over = true;
        self.record.bye = true;
        self.record.vm_end = Some(VmEnd::Reset);
    }
}

/// The stages that each scenario has of its own.
fn is_of_scenario(stage: Stage) -> bool {
    (Stage::SchedulerEnabled..=Stage::ScenarioEnd).contains(&stage)
}

impl Record {
    /// No scenario is open.
    pub fn is_outside(&self) -> bool {
        self.parts.last().is_none_or(|part| part.over)
    }

    /// The stage has no time yet: in the scenario that is open, or in the run where none is.
    pub fn lacks_mark(&self, stage: Stage) -> bool {
        let open = self.parts.last().filter(|part| !part.over);
        open.map_or(self, |part| &part.record).mark(stage).is_none()
    }

    pub(super) fn apply_to_parts(&mut self, message: &Msg) {
        self.apply_outside(message);
        match message {
            Msg::ScenarioBegin { index } => self.begin_part(*index),
            Msg::ScenarioOver { index, klog_records, klog_lost } => {
                let open = self.parts.iter_mut().find(|part| part.index == *index && !part.over);
                if let Some(part) = open {
                    part.record.klog_end = Some((*klog_records, *klog_lost));
                    part.close();
                }
            }
            // Told at the end, and true of all scenarios: of the noise, each has what was about its time.
            Msg::Noise { noise } => {
                let times: Vec<(u64, u64)> = self.parts.iter().filter_map(Part::lasted).collect();
                if let Some(outside) = &mut self.outside {
                    outside.noise = Some(noise.without(times));
                }
                for (place, (from_ns, to_ns)) in self.times().into_iter().enumerate() {
                    self.parts[place].record.noise = Some(noise.only_between(from_ns, to_ns));
                }
            }
            Msg::ChannelDamage { .. } => self.parts.iter_mut().for_each(|part| part.record.fold(message.clone())),
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
            Msg::Mark { .. } | Msg::ChannelDamage { .. } | Msg::KlogEnd { .. } | Msg::Bye { .. } | Msg::VmEnded { .. }
        );
        let is_outside = self.is_outside();
        if let Some(outside) = self.outside.as_mut().filter(|_| of_all || is_outside) {
            // What comes behind a scenario comes behind the last one.
            if let Msg::Mark { stage, .. } = message {
                outside.marks.retain(|(known, _)| known != stage || !is_of_scenario(*stage));
            }
            outside.fold(message.clone());
        }
    }

    /// From when to when each part may have been the subject: from the last mark of the one before to the first of the next.
    fn times(&self) -> Vec<(u64, u64)> {
        let own: Vec<Option<(u64, u64)>> = self.parts.iter().map(Part::lasted).collect();
        let mut times = vec![(0, u64::MAX); own.len()];
        let mut from_ns = 0;
        for (time, own) in times.iter_mut().zip(&own) {
            time.0 = from_ns;
            from_ns = own.map_or(from_ns, |(_, last)| from_ns.max(last));
        }
        let mut to_ns = u64::MAX;
        for (time, own) in times.iter_mut().zip(&own).rev() {
            time.1 = to_ns;
            to_ns = own.map_or(to_ns, |(first, _)| to_ns.min(first));
        }
        times
    }

    fn begin_part(&mut self, index: u32) {
        // One more than was planned shows that the guest is not to be believed; more would only fill the host.
        let planned = self.plan.as_ref().map_or(1, |plan| plan.scenarios.len());
        if self.parts.len() > planned {
            return;
        }
        // The guest went on, but has not seen the end of the log of the scenario before: that is what it lacks.
        if let Some(open) = self.parts.last_mut().filter(|part| !part.over) {
            open.close();
        }
        // What is known of the machine holds for the part; what was said before it does not.
        let plan = self.plan.as_mut().map(|plan| {
            // Of all scenarios only this one is copied: there may be thousands.
            let all = std::mem::take(&mut plan.scenarios);
            let mut own = plan.clone();
            own.scenarios.extend(all.get(index as usize).cloned());
            plan.scenarios = all;
            own
        });
        let record = Self {
            host: self.host.clone(),
            plan,
            marks: self.marks.iter().filter(|(stage, _)| *stage < Stage::SchedulerEnabled).copied().collect(),
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

    fn mark(stage: Stage, at_ns: u64) -> Msg {
        Msg::Mark { stage, at_ns }
    }

    #[test]
    fn each_scenario_has_its_own_times_and_the_whole_keeps_the_first() {
        let mut record = Record::default();
        [mark(Stage::Hello, 1), Msg::ScenarioBegin { index: 0 }].into_iter().for_each(|message| record.apply(message));
        record.apply(mark(Stage::ScenarioStart, 10));
        assert!(!record.lacks_mark(Stage::ScenarioStart) && record.lacks_mark(Stage::ScenarioEnd));
        record.apply(mark(Stage::ScenarioEnd, 20));
        record.apply(Msg::ScenarioOver { index: 0, klog_records: 0, klog_lost: 0 });
        assert!(!record.lacks_mark(Stage::ScenarioStart), "between two, the run's count");
        record.apply(Msg::ScenarioBegin { index: 1 });
        assert!(record.lacks_mark(Stage::ScenarioStart) && !record.lacks_mark(Stage::Hello));
        record.apply(mark(Stage::ScenarioStart, 30));
        record.apply(mark(Stage::VmEnd, 40));
        let whole =
            [Stage::Hello, Stage::ScenarioStart, Stage::ScenarioEnd, Stage::VmEnd].into_iter().zip([1, 10, 20, 40]);
        assert_eq!(record.marks, whole.collect::<Vec<_>>());
        let parts: Vec<_> = record.parts.iter().map(|part| part.record.marks.clone()).collect();
        assert_eq!(parts[0], [(Stage::Hello, 1), (Stage::ScenarioStart, 10), (Stage::ScenarioEnd, 20)]);
        assert_eq!(parts[1], [(Stage::Hello, 1), (Stage::ScenarioStart, 30), (Stage::VmEnd, 40)]);
        assert_eq!(record.times(), [(0, 30), (20, u64::MAX)]);
    }

    #[test]
    fn scenario_whose_log_has_no_end_is_closed_by_the_next_and_lacks_only_that() {
        let mut record = Record::default();
        for message in [Msg::ScenarioBegin { index: 0 }, note("a"), Msg::ScenarioBegin { index: 1 }, note("b")] {
            record.apply(message);
        }
        record.apply(Msg::VmEnded { end: VmEnd::TimedOut });
        let (first, second) = (&record.parts[0], &record.parts[1]);
        assert!(first.over && first.record.bye && !second.over);
        assert_eq!((&first.record.vm_end, first.record.klog_end), (&Some(VmEnd::Reset), None));
        assert_eq!(
            (first.record.notes.as_slice(), &second.record.vm_end),
            (&["a".to_owned()][..], &Some(VmEnd::TimedOut))
        );
    }

    #[test]
    fn undivided_run_is_its_own_only_scenario() {
        let mut record = Record::default();
        record.apply(note("n"));
        assert_eq!(record.scenarios(), [(0, &record)]);
    }
}
