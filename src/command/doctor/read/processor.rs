//! Reads which cores and how much memory are available to this process.

use std::path::{Path, PathBuf};

use super::host::HostFiles;
use crate::command::doctor::facts::Processor;

pub fn read(host: &HostFiles) -> Processor {
    let online = host.text("sys/devices/system/cpu/online");
    let cores = core_affinity::get_core_ids().map_or(0, |cores| cores.len());
    Processor {
        cores_online: online.and_then(|list| count_of_list(&list)),
        cores_allowed: cores.max(1),
        quota_millicores: quota_millicores(host),
        governors: governors(host),
        load_percent: load_percent(host),
        memory_max_bytes: memory_max_bytes(host),
        memory_total_bytes: memory_total_bytes(host),
    }
}

/// Returns the number of entries in a list such as `0-3,8`, which has five.
pub fn count_of_list(numbers: &str) -> Option<usize> {
    numbers
        .split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            (last + 1).checked_sub(first)
        })
        .sum()
}

/// Returns the governors in use, sorted.
fn governors(host: &HostFiles) -> Vec<String> {
    let cores = Path::new("sys/devices/system/cpu");
    let names = host.names(cores).into_iter();
    let of_core = |name: String| host.text(cores.join(name).join("cpufreq/scaling_governor"));
    let mut governors: Vec<String> = names.filter_map(of_core).collect();
    governors.sort();
    governors.dedup();
    governors
}

/// Returns the first number of a load average such as `0.52 0.48 0.44 1/123 4567`, in hundredths.
fn load_percent(host: &HostFiles) -> Option<u64> {
    let text = host.text("proc/loadavg")?;
    let (whole, hundredths) = text.split_once(' ')?.0.split_once('.')?;
    let (whole, hundredths): (u64, u64) = (whole.parse().ok()?, hundredths.parse().ok()?);
    Some(whole * 100 + hundredths)
}

fn memory_total_bytes(host: &HostFiles) -> Option<u64> {
    let text = host.text("proc/meminfo")?;
    let mut lines = text.lines();
    let total = lines.find_map(|line| line.strip_prefix("MemTotal:")?.strip_suffix("kB"))?;
    total.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Returns the smallest CPU quota of the control groups of this process.
pub fn quota_millicores(host: &HostFiles) -> Option<u64> {
    // The file contains `max 100000`, or the time per period followed by the period.
    let unified = groups(host, None).filter_map(|group| {
        let text = host.text(group.join("cpu.max"))?;
        let (quota, period) = text.split_once(' ')?;
        millicores(quota, period)
    });
    // `-1` means no quota.
    let old = groups(host, Some("cpu")).filter_map(|group| {
        let quota = host.text(group.join("cpu.cfs_quota_us"))?;
        let period = host.text(group.join("cpu.cfs_period_us"))?;
        millicores(&quota, &period)
    });
    unified.chain(old).min()
}

fn millicores(quota: &str, period: &str) -> Option<u64> {
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota * 1000).checked_div(period)
}

/// Returns the smallest memory limit of the control groups of this process.
pub fn memory_max_bytes(host: &HostFiles) -> Option<u64> {
    /// The smallest value that means no limit: version 1 reports the absence of a limit as a number
    /// larger than any machine's memory.
    const NO_LIMIT: u64 = 1 << 60;
    let unified = groups(host, None).filter_map(|group| host.number(group.join("memory.max")));
    let old = groups(host, Some("memory"))
        .filter_map(|group| host.number(group.join("memory.limit_in_bytes")));
    unified.chain(old).filter(|limit| *limit < NO_LIMIT).min()
}

/// Returns the folders of this process's control group and of the groups above it.
///
/// `controller` selects a version 1 controller; `None` means version 2. A container may see its own
/// group as the root, under the path that it has outside the container, or both.
fn groups(host: &HostFiles, controller: Option<&str>) -> impl Iterator<Item = PathBuf> {
    let table = host.text("proc/self/cgroup").unwrap_or_default();
    let own = table.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let controllers = fields.nth(1)?;
        let is_it = match controller {
            None => controllers.is_empty(),
            Some(name) => controllers.split(',').any(|one| one == name),
        };
        fields.next().filter(|_| is_it).map(str::to_owned)
    });
    let root = Path::new("sys/fs/cgroup").join(controller.unwrap_or_default());
    let own = own.map(|own| root.join(own.trim_start_matches('/')));
    let above = own.map(|own| own.ancestors().map(Path::to_path_buf).collect());
    let above: Vec<PathBuf> = above.unwrap_or_default();
    let end = root.components().count();
    above
        .into_iter()
        .filter(move |group| group.components().count() >= end)
}
