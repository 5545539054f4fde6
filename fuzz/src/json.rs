//! JSON for the models of the message targets: `serde_json` extracts the fields, and simd-json's
//! additional refusals are modelled here.

use std::fmt;

use etherply::limits::VALUE_DEPTH_MAX;
use etherply::wire::frame;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The message and its payload add one level each around the value.
pub const DEPTH_MAX: usize = VALUE_DEPTH_MAX + 2;

/// Returns whether a text is valid JSON by the grammar.
#[must_use]
pub fn is_json(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

/// Returns the string in `text`, unescaped.
#[must_use]
pub fn string(text: &str) -> Option<String> {
    serde_json::from_str(text).ok()
}

/// The fields of an object in order, with names and values as sent.
struct RawFields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Deserialize<'a> for RawFields<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'a> Visitor<'a> for Collect {
            type Value = RawFields<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<RawFields<'a>, M::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
                    fields.push((
                        name.get()
                            .strip_prefix('"')
                            .and_then(|name| name.strip_suffix('"'))
                            .expect("a name is a string"),
                        value.get(),
                    ));
                }
                Ok(RawFields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

impl<'a> RawFields<'a> {
    /// Returns the first field of an object that is nested deeper than `levels`.
    fn deeper_than(text: &'a str, levels: usize) -> Option<(&'a str, &'a str)> {
        let fields: RawFields<'_> = serde_json::from_str(text).ok()?;
        fields.0.into_iter().find(|field| depth(field.1) > levels)
    }
}

/// The fields of an object in order, with unescaped names and with values as sent.
pub struct Fields<'a>(pub Vec<(String, &'a str)>);

impl<'a> Deserialize<'a> for Fields<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'a> Visitor<'a> for Collect {
            type Value = Fields<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Fields<'a>, M::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    fields.push((name, value.get()));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

impl<'a> Fields<'a> {
    /// Reads an object.
    #[must_use]
    pub fn of(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Returns the first field with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.0
            .iter()
            .find(|field| field.0 == name)
            .map(|field| field.1)
    }

    /// Returns the only field with this name.
    #[must_use]
    pub fn only(&self, name: &str) -> Option<&'a str> {
        let mut found = self.0.iter().filter(|field| field.0 == name);
        let field = found.next()?;
        found.next().is_none().then_some(field.1)
    }

    /// Returns the path of the first field that appears for the second time. Each name comes with
    /// its path.
    #[must_use]
    pub fn twice(&self, names: &[(&str, &'static str)]) -> Option<&'static str> {
        self.0.iter().enumerate().find_map(|(index, (name, _))| {
            let (_, path) = names.iter().find(|known| known.0 == name)?;
            let is_second = self.0[..index].iter().any(|before| before.0 == *name);
            is_second.then_some(*path)
        })
    }
}

/// Returns the field that is nested too deeply, and its maximum depth, in a text that is JSON;
/// `None` if the text is not an object.
#[must_use]
pub fn deep_field(text: &str) -> Option<(String, usize)> {
    let (name, value) = RawFields::deeper_than(text, DEPTH_MAX - 1)?;
    let in_payload = RawFields::deeper_than(value, DEPTH_MAX - 2).filter(|_| name == "payload");
    let (parent, name, levels_max) = match in_payload {
        Some((name, _)) => ("payload.", name, DEPTH_MAX - 2),
        None => ("", name, DEPTH_MAX - 1),
    };
    let field = format!("{parent}{}", &name[..name.floor_char_boundary(48)]);
    Some((field, levels_max))
}

/// Calls `visit` with each string, number and bracket of a valid JSON text.
fn tokens<'a>(text: &'a str, mut visit: impl FnMut(&'a str)) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(first) = bytes.get(at) {
        let start = at;
        at += 1;
        match first {
            b'"' => {
                while bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let is_number =
                    |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                at += bytes[at..]
                    .iter()
                    .take_while(|byte| is_number(byte))
                    .count();
            }
            b'[' | b']' | b'{' | b'}' => {}
            _ => continue,
        }
        visit(&text[start..at]);
    }
}

/// Returns whether a text has a token that simd-json refuses although it is JSON: a number outside
/// u64, i64 and f64, or a lone surrogate.
#[must_use]
pub fn has_refused_token(text: &str) -> bool {
    let mut is_refused = false;
    tokens(text, |token| {
        is_refused |= match token.as_bytes()[0] {
            b'"' => serde_json::from_str::<String>(token).is_err(),
            b'[' | b']' | b'{' | b'}' => false,
            _ if token.contains(['.', 'e', 'E']) => !token.parse().is_ok_and(f64::is_finite),
            _ => token.parse::<u64>().is_err() && token.parse::<i64>().is_err(),
        };
    });
    is_refused
}

/// Returns the nesting depth of a JSON text.
#[must_use]
pub fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    tokens(text, |token| match token {
        "[" | "{" => {
            depth += 1;
            deepest = deepest.max(depth);
        }
        "]" | "}" => depth -= 1,
        _ => {}
    });
    deepest
}

/// Returns an upper bound on the nesting depth of a text that may not be JSON.
#[must_use]
pub fn brackets(text: &str) -> usize {
    text.bytes()
        .filter(|byte| matches!(byte, b'[' | b'{'))
        .count()
}

/// Returns the payload of the only text frame in `out`.
///
/// # Panics
/// If `out` is not a text frame.
#[must_use]
pub fn payload(out: &[u8]) -> &str {
    let fits =
        |header: &usize| out.len() > *header && frame::header_bytes(out.len() - header) == *header;
    let header_bytes = [2, 4, 10].into_iter().find(fits).expect("a frame");
    str::from_utf8(&out[header_bytes..]).expect("a text frame")
}
