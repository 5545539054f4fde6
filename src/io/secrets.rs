//! The secrets of a running server: SIGHUP reads their files again.

use std::path::Path;
use std::sync::Arc;

use crate::config::{SecretError, SecretSources, Secrets};
use crate::io::mailbox::{ShardMessage, ShardSender};

/// The current secrets, which sign tokens.
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
                "{variable} ends in a line break, which is not part of the secret: set it without \
                 one; tokens that were signed with it are accepted too"
            );
        }
        if let (Some(path), None) = (sources.previous, &secrets.previous) {
            tracing::info!(path = %path.display(), "no previous secret: its file does not exist");
        }
        Ok(Self { sources, secrets })
    }

    /// Keeps a secret that was made up in the data directory, which is locked.
    pub fn keep_in(&mut self, folder: &Path) -> Result<(), SecretError> {
        let Some((path, is_public)) = self.secrets.keep_in(folder)? else {
            return Ok(());
        };
        let path = path.display();
        tracing::info!(%path, "tokens are signed with the secret of --dev");
        if is_public {
            tracing::warn!("{path} can be read by other users: chmod 600 {path}");
        }
        Ok(())
    }

    /// The secrets.
    #[must_use]
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Reads the files again and sends the new verifier to the shards. If one is bad, nothing
    /// changes.
    pub fn read_again(&mut self, senders: &[ShardSender]) {
        if !self.sources.has_files() {
            tracing::warn!(
                "SIGHUP changes nothing: no secret came from a file, and the environment of a \
                 process cannot change; use --jwt-secret-file and --jwt-secret-previous-file"
            );
            return;
        }
        let secrets = match self.sources.read_again(&self.secrets) {
            Ok(secrets) => secrets,
            Err(error) => {
                tracing::error!("SIGHUP changes nothing, the secrets stay as they were: {error}");
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
            (true, None) => "as before, since it did not come from a file",
            (true, Some(_)) => "as before",
            (false, _) => "new",
        };
        let previous = match (&self.secrets.previous, &before.previous) {
            (None, _) => "none",
            (Some(now), Some(before)) if now.bytes() == before.bytes() => "as before",
            (Some(_), _) => "new",
        };
        tracing::info!(
            current,
            previous,
            "the secrets were read again; open connections stay"
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
            "every user of this machine can read the secret in {path} (mode {mode:04o}): chmod \
             600 {path}; in Kubernetes, defaultMode: 0440 of its volume"
        );
    }
    for secret in [Some(&secrets.current), secrets.previous.as_ref()]
        .into_iter()
        .flatten()
    {
        if secret.is_short() {
            tracing::warn!(
                "a secret for the tokens has fewer than 32 bytes: it can be guessed; use what \
                 `openssl rand -hex 32` prints"
            );
        }
    }
}
