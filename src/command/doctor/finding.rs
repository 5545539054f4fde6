//! The result of one check of a host.

use serde::Serialize;

/// The severity of a finding, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// There is nothing to change.
    Ok,
    /// The server works, but something could be better.
    Warn,
    /// The server would not work.
    Fail,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The name of the check. Scripts rely on it.
    pub check: &'static str,
    pub verdict: Severity,
    /// The state that the check found.
    pub found: String,
    /// The advice: what to change, or where to read more.
    pub advice: Option<String>,
}

impl Finding {
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Severity::Ok,
            found: found.into(),
            advice: None,
        }
    }

    pub fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Severity::Warn,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    pub fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Severity::Fail,
            ..Self::warn(check, found, advice)
        }
    }
}
