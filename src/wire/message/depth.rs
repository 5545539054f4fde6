//! A search for a message field that is nested too deeply. The parser reports only that such a
//! field exists.

use std::fmt;

use crate::limits::VALUE_DEPTH_MAX;

/// The maximum depth of a message: the message itself and its payload each add one level around the
/// value.
pub(super) const DEPTH_MAX: usize = VALUE_DEPTH_MAX + 2;
/// The maximum length of a reported name. Longer names are truncated.
const NAME_BYTES_MAX: usize = 48;

/// A field that is nested too deeply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeepField {
    name: [u8; NAME_BYTES_MAX],
    name_bytes: usize,
    is_in_payload: bool,
}

impl DeepField {
    fn new(name: &str, is_in_payload: bool) -> Self {
        let name_bytes = name.floor_char_boundary(NAME_BYTES_MAX);
        let mut kept = [0; NAME_BYTES_MAX];
        kept[..name_bytes].copy_from_slice(&name.as_bytes()[..name_bytes]);
        Self {
            name: kept,
            name_bytes,
            is_in_payload,
        }
    }

    /// Returns the maximum nesting depth of the field, in levels.
    #[must_use]
    pub fn levels_max(&self) -> usize {
        DEPTH_MAX - 1 - usize::from(self.is_in_payload)
    }
}

impl fmt::Display for DeepField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = str::from_utf8(&self.name[..self.name_bytes]).map_err(|_| fmt::Error)?;
        let parent = if self.is_in_payload { "payload." } else { "" };
        write!(f, "{parent}{name}")
    }
}

/// Returns the field that is nested deeper than [`DEPTH_MAX`], or `None` if the text is not an
/// object.
///
/// The text must be valid JSON up to that depth. This second pass runs only for refused messages,
/// so it costs other messages nothing.
pub(super) fn deep_field(text: &str) -> Option<DeepField> {
    // The names of the fields that are being read at the first two levels.
    let mut names: [Option<&str>; 2] = [None, None];
    let (mut depth, mut last_string) = (0_usize, "");
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => {
                let mut is_escaped = false;
                let end = bytes.find(|(_, byte)| {
                    let is_end = *byte == b'"' && !is_escaped;
                    is_escaped = *byte == b'\\' && !is_escaped;
                    is_end
                });
                last_string = &text[at + 1..end?.0];
            }
            b':' if (1..=2).contains(&depth) => names[depth - 1] = Some(last_string),
            b'{' | b'[' => {
                depth += 1;
                match depth {
                    1 => names[0] = None,
                    2 => names[1] = None,
                    _ => {}
                }
                if depth > DEPTH_MAX {
                    break;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    if depth <= DEPTH_MAX {
        return None;
    }
    match names {
        [Some("payload"), Some(name)] => Some(DeepField::new(name, true)),
        [Some(name), _] => Some(DeepField::new(name, false)),
        [None, _] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P36.
    #[test]
    fn the_field_is_found_wherever_it_is() {
        let arrays = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let objects = |depth: usize| "{\"a\":".repeat(depth) + "1" + &"}".repeat(depth);
        let long = "é".repeat(60);
        for (text, expected) in [
            (
                format!(r#"{{"payload":{{"key":"k","value":{}}}}}"#, arrays(129)),
                Some(("payload.value", 128)),
            ),
            (
                format!(r#"{{"payload":{{"value":{}}}}}"#, objects(129)),
                Some(("payload.value", 128)),
            ),
            (
                format!(
                    r#"{{"payload":{{"value":[{{"x":1}}],"y":{}}}}}"#,
                    arrays(129)
                ),
                Some(("payload.y", 128)),
            ),
            (
                format!(r#"{{"type":"op","u":{},"payload":{{}}}}"#, arrays(130)),
                Some(("u", 129)),
            ),
            (
                format!(r#"{{"a":{{"b":1}},"u\"{{":{}}}"#, arrays(130)),
                Some(("u\\\"{", 129)),
            ),
            (
                format!(r#"{{"payload":{}}}"#, arrays(130)),
                Some(("payload", 129)),
            ),
            (
                format!(r#"{{"{long}":{}}}"#, arrays(130)),
                Some((&long[..48], 129)),
            ),
            (arrays(131), None),
            (format!(r#"{{"u":{}}}"#, arrays(129)), None),
            ("{\"".to_owned(), None),
            (String::new(), None),
        ] {
            let found = deep_field(&text);
            let found = found.map(|field| (field.to_string(), field.levels_max()));
            let expected = expected.map(|(name, levels)| (name.to_owned(), levels));
            assert_eq!(found, expected, "{text}");
        }
    }
}
