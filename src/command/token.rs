//! `etherply token`: prints a token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::output::{Printer, Stop};
use crate::config::TokenArgs;
use crate::wire::auth;

/// Prints a token. On failure, returns one line that says what to do.
pub fn run(settings: &TokenArgs) -> Result<(), String> {
    let secret = settings.secret().map_err(|error| error.to_string())?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let ttl_s = Some(settings.ttl.as_secs());
    let token = auth::mint(&secret, &settings.sub, now.as_secs(), ttl_s);
    let mut output = Printer::new();
    match output.line(token).and_then(|()| output.flush()) {
        Ok(()) | Err(Stop::OutputClosed) => Ok(()),
        Err(Stop::Failed(line)) => Err(line),
    }
}
