//! A request head in its parts.

use super::answer::Answer;

/// A complete head, as httparse leaves it.
pub(super) struct Head<'a> {
    pub method: &'a str,
    pub target: &'a str,
    pub is_http_1_1: bool,
    pub fields: &'a [httparse::Header<'a>],
}

impl<'a> Head<'a> {
    pub fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    }

    /// The values of a field that is a list, as one.
    pub fn joined(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self.values(name).map(String::from_utf8_lossy).collect();
        (!values.is_empty()).then(|| values.join(","))
    }

    /// Whether a comma-separated list, which may go over several lines, has `token` in it.
    pub fn lists(&self, name: &str, token: &str) -> bool {
        self.values(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|element| element.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    /// The origin of the page that asks (RFC 6454 section 7). What is no text is no origin that anybody allows.
    pub fn origin(&self) -> Option<String> {
        let value = self.values("origin").next()?;
        Some(String::from_utf8_lossy(value).into_owned())
    }

    /// The value of a field that must not be repeated.
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
