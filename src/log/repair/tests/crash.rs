//! A repair that is killed at any step and started again.

use super::kinds::formats;
use super::*;
use crate::log::mortal_disk::MortalDisk;

/// Returns a log that requires everything a repair can do at once: segments with swapped names, a
/// damaged one, a missing one, strays, no `meta.json`.
fn ruined() -> Log {
    let mut log = Log::sample();
    log.segment(0, &[vec!["demo"], vec!["other"]]);
    log.segment(0, &[vec!["demo"], vec!["other"]]);
    log.segment(1, &[vec!["third"], vec!["third", "third"]]);
    log.segment(1, &[vec!["third"]]);
    let spare = log.data().join("shard-00/spare.aof");
    fs::rename(log.path(0, 3), &spare).unwrap();
    fs::rename(log.path(0, 5), log.path(0, 3)).unwrap();
    fs::rename(&spare, log.path(0, 5)).unwrap();
    fs::remove_file(log.path(0, 2)).unwrap();
    flip(&log.path(0, 1), 64 + 28 + 29 + 5);
    flip(&log.path(1, 1), 64 + 28 + 29 + 5);
    fs::write(log.path(1, 3), "no segment").unwrap();
    fs::write(log.data().join(META), "no meta file").unwrap();
    log
}

#[test]
fn a_repair_killed_at_any_step_is_completed_by_the_next_one() {
    let expected = ruined().repair().0;
    for changes in 0.. {
        let log = ruined();
        let before = log.contents();
        let mortal = MortalDisk::new(changes);
        let plan = RepairPlan::new(mortal, log.data().to_path_buf(), [9; 16], |_, _| {});
        let is_done = plan.is_ok_and(|plan| plan.run().is_ok());
        let kept_now = read(log.data());
        let (kept, _) = log.repair();
        assert_eq!(kept, expected, "killed after {changes} changes");
        assert!(
            log.contents().is_superset(&before),
            "killed after {changes} changes"
        );
        if let Ok(kept_now) = kept_now {
            assert_eq!(
                kept_now, expected,
                "the log is not served after {changes} changes"
            );
        }
        if is_done {
            assert!(changes > 20, "only {changes} changes were made");
            return;
        }
    }
}

#[test]
fn a_repair_that_is_killed_at_any_step_leaves_no_segment_of_a_newer_format_than_the_directory() {
    for changes in 0.. {
        let log = Log::sample_of_format_1();
        fs::remove_file(log.path(0, 2)).unwrap();
        let mortal = MortalDisk::new(changes);
        let plan = RepairPlan::new(mortal, log.data().to_path_buf(), [9; 16], |_, _| {});
        let is_done = plan.is_ok_and(|plan| plan.run().is_ok());
        let (format_version, segments) = formats(log.data());
        let newest = segments.into_iter().max().unwrap_or(1);
        assert!(newest <= format_version, "killed after {changes} changes");
        if is_done {
            assert_eq!((format_version, newest), (2, 2));
            return;
        }
    }
}
