//! The secrets of a running server. SIGHUP makes the server read their files again.

use std::path::Path;
use std::sync::Arc;

use crate::config::{SecretError, SecretSources, Secrets};
use crate::io::mailbox::{ShardMessage, ShardSender};

/// The secrets that tokens are currently checked against, and their sources.
pub struct SecretStore<'a> {
    sources: SecretSources<'a>,
    secrets: Secrets,
}

impl<'a> SecretStore<'a> {
    /// Reads the secrets for the first time.
    pub fn new(sources: SecretSources<'a>) -> Result<Self, SecretError> {
        let secrets = sources.read()?;
        warn_of(&secrets, &sources);
        for (variable, _) in &secrets.with_line_breaks {
            tracing::warn!(
                "{variable} ends in a line break, which is not part of the secret: remove it; \
                 tokens signed with the line break are accepted too"
            );
        }
        if let (Some(path), None) = (sources.previous, &secrets.previous) {
            tracing::info!(path = %path.display(), "no previous secret: its file does not exist");
        }
        Ok(Self { sources, secrets })
    }

    /// Stores a generated secret in the data directory, which must be locked.
    pub fn keep_in(&mut self, folder: &Path) -> Result<(), SecretError> {
        let Some((path, is_public)) = self.secrets.keep_in(folder)? else {
            return Ok(());
        };
        let path = path.display();
        tracing::info!(%path, "tokens are signed with the secret that --dev keeps in this file");
        if is_public {
            tracing::warn!("other users can read the secret in {path}: run chmod 600 {path}");
        }
        Ok(())
    }

    /// Returns the current secrets.
    #[must_use]
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Reads the files again and sends a new verifier to the shards. If a file is invalid, nothing
    /// changes.
    pub fn read_again(&mut self, senders: &[ShardSender]) {
        if !self.sources.has_files() {
            tracing::warn!(
                "SIGHUP has no effect: no secret came from a file, and the environment of a \
                 process cannot change; use --jwt-secret-file and --jwt-secret-previous-file"
            );
            return;
        }
        let secrets = match self.sources.read_again(&self.secrets) {
            Ok(secrets) => secrets,
            Err(error) => {
                tracing::error!("SIGHUP has no effect, and the secrets are unchanged: {error}");
                return;
            }
        };
        let before = std::mem::replace(&mut self.secrets, secrets);
        let verifier = Arc::new(self.secrets.verifier());
        for sender in senders {
            sender.send(ShardMessage::Verify(Arc::clone(&verifier)));
        }
        warn_of(&self.secrets, &self.sources);
        self.tell(&before);
    }

    fn tell(&self, before: &Secrets) {
        let is_same = self.secrets.current.bytes() == before.current.bytes();
        let current = match (is_same, self.sources.current) {
            (true, None) => "unchanged, because it did not come from a file",
            (true, Some(_)) => "unchanged",
            (false, _) => "new",
        };
        let previous = match (&self.secrets.previous, &before.previous) {
            (None, _) => "none",
            (Some(now), Some(before)) if now.bytes() == before.bytes() => "unchanged",
            (Some(_), _) => "new",
        };
        tracing::info!(
            current,
            previous,
            "the secrets were reread; connections stay open"
        );
        if !self.secrets.accept(&before.current) {
            tracing::warn!(
                "tokens signed with the previous secret are refused from now on; to accept them \
                 for a while, put it into the file of --jwt-secret-previous-file and send SIGHUP \
                 again"
            );
        }
    }
}

fn warn_of(secrets: &Secrets, sources: &SecretSources<'_>) {
    for (path, mode) in sources.exposed() {
        let path = path.display();
        tracing::warn!(
            "every user of this machine can read the secret in {path} (mode {mode:04o}): run chmod \
             600 {path}; in Kubernetes, set defaultMode: 0440 on its volume"
        );
    }
    for secret in [Some(&secrets.current), secrets.previous.as_ref()]
        .into_iter()
        .flatten()
    {
        if secret.is_short() {
            tracing::warn!(
                "a token secret is shorter than 32 bytes and could be guessed: use the output of \
                 `openssl rand -hex 32`"
            );
        }
    }
}
