//! A state that is written into a workspace before anything is measured.

use std::error::Error;
use std::io::Write as _;
use std::time::Duration;

use serde_json::{Map, Value};

use super::endpoint::Endpoint;
use super::first_state::FirstState;
use super::join::read_more;
use super::joiner::first_message;
use super::op::put_client_frame;
use super::state_parts::ExpectedEntries;

/// The time that an op may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// An arbitrary time in the past.
const TIMESTAMP_US: u64 = 1_700_000_000_000_000;

/// A number of keys, with values of equal length.
#[derive(Debug, Clone, Copy)]
pub struct State {
    pub keys: u32,
    pub value_bytes: usize,
}

impl State {
    /// Returns the state of a workspace.
    pub fn of(&self, workspace: &str) -> Map<String, Value> {
        let fields = (0..self.keys).map(|key| {
            let value = format!("{workspace} {key} ");
            let padding = ".".repeat(self.value_bytes.saturating_sub(value.len()));
            (format!("key-{key:04}"), (value + &padding).into())
        });
        fields.collect()
    }

    /// Returns the length of the first message that carries the state.
    pub fn init_bytes(&self, workspace: &str) -> usize {
        let data = Value::Object(self.of(workspace)).to_string();
        r#"{"type":"init","data":}"#.len() + data.len()
    }

    /// Returns the entries of the state in the order in which they are written.
    pub fn entries(&self, workspace: &str) -> ExpectedEntries {
        let entries = self.of(workspace).into_iter();
        let entries = entries.map(|(key, value)| (Value::from(key).to_string(), value.to_string()));
        ExpectedEntries::new(entries, TIMESTAMP_US)
    }

    /// Writes the state and waits until another client has received it. Returns the state that a
    /// client receives when it joins afterwards.
    pub fn put(&self, endpoint: &Endpoint, workspace: &str) -> Result<FirstState, String> {
        self.try_put(endpoint, workspace)
            .map_err(|error| format!("workspace {workspace}: {error}"))
    }

    fn try_put(&self, endpoint: &Endpoint, workspace: &str) -> Result<FirstState, Box<dyn Error>> {
        let (mut reader, _) = endpoint.join(workspace)?;
        let (mut writer, _) = endpoint.join(workspace)?;
        let state = self.of(workspace);
        let mut frames = Vec::new();
        for (key, value) in &state {
            let payload =
                format!(r#"{{"key":"{key}","value":{value},"timestamp":{TIMESTAMP_US}}}"#);
            let text = format!(r#"{{"type":"op","payload":{payload}}}"#);
            put_client_frame(&mut frames, text.as_bytes());
        }
        writer.write_all(&frames)?;
        reader.set_read_timeout(Some(PATIENCE))?;
        let (mut ops, mut seen) = (0, Vec::new());
        while ops < state.len() {
            read_more(&mut reader, &mut seen)?;
            while let Some((_, end)) = first_message(&seen)? {
                seen.drain(..end);
                ops += 1;
            }
        }
        let (_, joined) = endpoint.join(workspace)?;
        if !joined.holds(&state) {
            return Err("a client that joins receives another state than was written".into());
        }
        Ok(joined)
    }
}
