//! Writes metric families, samples and histograms in the Prometheus text format.

/// Returns a label in the form used in a sample.
pub(super) fn label(name: &str, number: u64) -> String {
    format!("{name}=\"{number}\"")
}

/// The value of a sample.
#[derive(Clone, Copy)]
pub(super) enum Value {
    Count(u64),
    /// A duration, written in seconds.
    Microseconds(u64),
}

/// The metrics page while it is being written.
pub(super) struct MetricsPage(Vec<u8>);

impl MetricsPage {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn put(&mut self, parts: &[&str]) {
        for part in parts {
            self.0.extend_from_slice(part.as_bytes());
        }
    }

    fn value(&mut self, value: Value) {
        let mut buffer = itoa::Buffer::new();
        match value {
            Value::Count(count) => self.put(&[buffer.format(count)]),
            Value::Microseconds(us) => {
                self.put(&[buffer.format(us / 1_000_000)]);
                let fraction = us % 1_000_000;
                if fraction > 0 {
                    // The fraction has leading zeros but no trailing ones.
                    let digits = buffer.format(1_000_000 + fraction);
                    self.put(&[".", digits[1..].trim_end_matches('0')]);
                }
            }
        }
    }

    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.put(&[
            "# HELP ",
            name,
            " ",
            help,
            "\n# TYPE ",
            name,
            " ",
            kind,
            "\n",
        ]);
    }

    pub(super) fn sample(&mut self, name: &str, suffix: &str, labels: &[&str], value: Value) {
        self.put(&[name, suffix]);
        let mut before = "{";
        for label in labels.iter().filter(|label| !label.is_empty()) {
            self.put(&[before, label]);
            before = ",";
        }
        self.put(&[if before == "," { "} " } else { " " }]);
        self.value(value);
        self.put(&["\n"]);
    }

    /// Appends a histogram. The buckets are cumulative: each one includes all lower ones.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        shard: &str,
        bounds: &[Value],
        counts: &[u64],
        sum: Value,
    ) {
        let (mut count, mut counts) = (0, counts.iter());
        for (bound, of_class) in bounds.iter().zip(&mut counts) {
            count += of_class;
            self.put(&[name, "_bucket{", shard, ",le=\""]);
            self.value(*bound);
            self.put(&["\"} "]);
            self.value(Value::Count(count));
            self.put(&["\n"]);
        }
        count += counts.sum::<u64>();
        self.sample(
            name,
            "_bucket",
            &[shard, "le=\"+Inf\""],
            Value::Count(count),
        );
        self.sample(name, "_sum", &[shard], sum);
        self.sample(name, "_count", &[shard], Value::Count(count));
    }
}

#[cfg(test)]
mod tests;
