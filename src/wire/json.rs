//! The building blocks of encoded messages: strings, numbers and literal text.

/// A destination of JSON text: a buffer, or a counter of its bytes.
///
/// The header of a frame needs the length of the payload before the payload is encoded. A message
/// that is written to a [`ByteCount`] first and to the buffer then has exactly that length.
pub(super) trait JsonSink {
    /// Appends text unchanged.
    fn text(&mut self, text: &str);
    /// Appends a string, quoted and escaped.
    fn string(&mut self, string: &str);
    /// Appends a number in decimal digits.
    fn number(&mut self, number: u64);
}

impl JsonSink for Vec<u8> {
    fn text(&mut self, text: &str) {
        self.extend_from_slice(text.as_bytes());
    }

    fn string(&mut self, string: &str) {
        put_json_string(self, string);
    }

    fn number(&mut self, number: u64) {
        put_number(self, number);
    }
}

/// The number of bytes that were appended.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ByteCount(pub usize);

impl JsonSink for ByteCount {
    fn text(&mut self, text: &str) {
        self.0 += text.len();
    }

    fn string(&mut self, string: &str) {
        self.0 += json_string_bytes(string);
    }

    fn number(&mut self, number: u64) {
        self.0 += digits(number);
    }
}

pub(super) fn put_json_string(out: &mut Vec<u8>, string: &str) {
    serde_json::to_writer(out, string).expect("a string serializes into memory");
}

/// Returns the number of bytes that [`put_json_string`] appends.
pub(super) fn json_string_bytes(string: &str) -> usize {
    let escapes: usize = string
        .bytes()
        .map(|byte| match byte {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 1,
            0..0x20 => 5,
            _ => 0,
        })
        .sum();
    string.len() + escapes + 2
}

pub(super) fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Returns the number of decimal digits of `number`.
#[must_use]
pub fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_length_of_a_json_string_is_correct(string in any::<String>()) {
            let mut out = Vec::new();
            put_json_string(&mut out, &string);
            prop_assert_eq!(out.len(), json_string_bytes(&string));
        }

        #[test]
        fn a_count_equals_the_buffered_length(
            text: String,
            string: String,
            number: u64,
            shift in 0..64_u32,
        ) {
            let write = |sink: &mut dyn JsonSink| {
                sink.text(&text);
                sink.string(&string);
                sink.number(number >> shift);
            };
            let (mut count, mut out) = (ByteCount::default(), Vec::new());
            write(&mut count);
            write(&mut out);
            prop_assert_eq!(count.0, out.len());
            let expected = format!("{text}{}{}", serde_json::json!(string), number >> shift);
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
