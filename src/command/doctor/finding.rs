//! What is said about one thing of a host.

use serde::Serialize;

/// How bad it is. In the order of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Fine.
    Ok,
    /// The server works, and something is worse than it could be.
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

/// What is said about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The thing. Scripts know it by this name.
    pub check: &'static str,
    pub verdict: Severity,
    /// What is so.
    pub found: String,
    /// What to do, or where to read more.
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
