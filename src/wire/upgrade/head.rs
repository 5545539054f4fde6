//! The parts of a request head, and accessors for its fields.

use super::answer::Answer;

/// A complete head, as httparse returns it.
pub(super) struct Head<'a> {
    pub method: &'a str,
    pub target: &'a str,
    pub is_http_1_1: bool,
    pub fields: &'a [httparse::Header<'a>],
}

impl<'a> Head<'a> {
    /// Returns the values of all fields with this name, in order.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    }

    /// Returns the values of a list field, joined by commas. `None` if there is no such field.
    pub fn joined(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self.values(name).map(String::from_utf8_lossy).collect();
        (!values.is_empty()).then(|| values.join(","))
    }

    /// Returns whether a comma-separated list, which may span several fields, contains `token`.
    pub fn lists(&self, name: &str, token: &str) -> bool {
        self.values(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|element| element.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Returns the origin of the requesting page (RFC 6454 section 7). Bytes that are not UTF-8 are
    /// replaced; no allowed origin contains any.
    pub fn origin(&self) -> Option<String> {
        let value = self.values("origin").next()?;
        Some(String::from_utf8_lossy(value).into_owned())
    }

    /// Returns the value of a field that must not be repeated, or an error with the message
    /// `if_repeated`.
    pub fn single(
        &self,
        name: &str,
        if_repeated: &'static str,
    ) -> Result<Option<&'a [u8]>, Answer> {
        let mut values = self.values(name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(Answer::bad_request(if_repeated)),
        }
    }
}
