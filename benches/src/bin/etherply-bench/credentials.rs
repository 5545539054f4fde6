//! The token of a run. Invariant: neither a token nor a secret is ever in an error.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etherply::wire::auth::{Secret, mint};

use crate::options::Options;

const VARIABLE: &str = "ETHERPLY_TOKEN";
/// A token signed here is valid for this long after the run should have ended.
const SPARE: Duration = Duration::from_mins(10);

/// Returns the token that the options specify; `run` is the time for which it is needed.
pub fn token(options: &Options, run: Duration) -> Result<String, String> {
    let (token, source) = if let Some(token) = &options.token {
        (token.clone(), "--token".to_owned())
    } else if let Some(file) = &options.token_file {
        let token = read(file, "--token-file")?;
        (token, format!("--token-file {}", file.display()))
    } else if let Some(file) = &options.secret_file {
        let secret = Secret::new(read(file, "--secret-file")?.into_bytes());
        let secret =
            secret.ok_or_else(|| format!("--secret-file {}: it is empty", file.display()))?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let ttl = (run + SPARE).as_secs();
        let token = mint(&secret, "etherply-bench", now.as_secs(), Some(ttl));
        (token, String::new())
    } else if let Some(token) = std::env::var_os(VARIABLE) {
        (token.to_string_lossy().into_owned(), VARIABLE.to_owned())
    } else {
        return Err(format!(
            "no token: set {VARIABLE}, or name a file with --token-file, or the server's secret \
             with --secret-file"
        ));
    };
    // Anything else would break the header in which the token is sent.
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{source}: it holds no token"));
    }
    Ok(token)
}

/// Reads a file without its trailing line breaks, as the server reads its secrets.
fn read(file: &Path, flag: &str) -> Result<String, String> {
    let text = fs::read_to_string(file);
    let text = text.map_err(|error| format!("{flag} {}: {error}", file.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
