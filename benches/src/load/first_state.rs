//! The state that a client receives when it joins, as the messages that carried it. Pure.

use serde_json::{Map, Value};

use super::protocol::ClientProtocol;

/// The start of the message that ends a version 2 state.
const SYNCED: &str = r#"{"type":"synced""#;

/// The messages up to the end of the state: one in version 1; `welcome`, the parts and `synced` in
/// version 2.
#[derive(Debug)]
pub struct FirstState {
    protocol: ClientProtocol,
    messages: Vec<String>,
}

impl FirstState {
    pub fn new(protocol: ClientProtocol) -> Self {
        Self {
            protocol,
            messages: Vec::new(),
        }
    }

    pub fn push(&mut self, message: String) {
        self.messages.push(message);
    }

    /// Returns whether the last message was the end of the state.
    pub fn is_complete(&self) -> bool {
        let last = self.messages.last();
        last.is_some_and(|last| !self.protocol.is_v2() || last.starts_with(SYNCED))
    }

    /// Returns the length of all messages.
    pub fn bytes(&self) -> usize {
        self.messages.iter().map(String::len).sum()
    }

    /// Returns the messages, to be quoted.
    pub fn text(&self) -> String {
        self.messages.join("\n           ")
    }

    /// Returns whether the state is exactly this one.
    pub fn holds(&self, data: &Map<String, Value>) -> bool {
        self.data().is_some_and(|held| held == *data)
    }

    /// Returns the values by key, or `None` if the messages do not form a full state.
    pub fn data(&self) -> Option<Map<String, Value>> {
        if !self.protocol.is_v2() {
            let [init] = &self.messages[..] else {
                return None;
            };
            let init: Value = serde_json::from_str(init).ok()?;
            return (init["type"] == "init").then(|| init["data"].as_object().cloned())?;
        }
        let messages = self.messages.iter();
        let messages: Result<Vec<Value>, _> =
            messages.map(|text| serde_json::from_str(text)).collect();
        let messages = messages.ok()?;
        let [welcome, parts @ .., synced] = &messages[..] else {
            return None;
        };
        let is_full = welcome["type"] == "welcome" && welcome["payload"]["state"] == "full";
        let (mut data, mut seq) = (Map::new(), 0);
        for part in parts {
            let entries = part["payload"]["entries"].as_array()?;
            let has_no_deletes = part["payload"]["deleted"].as_array()?.is_empty();
            let part_seq = part["seq"].as_u64()?;
            // Nothing is deleted, and every part has entries that are newer than those before it.
            let is_next = part_seq > seq && !entries.is_empty();
            if part["type"] != "state" || !has_no_deletes || !is_next {
                return None;
            }
            seq = part_seq;
            for entry in entries {
                let (key, value) = (entry[0].as_str()?, entry[1].clone());
                // Each key has exactly one last change.
                if data.insert(key.to_owned(), value).is_some() {
                    return None;
                }
            }
        }
        (is_full && synced["seq"] == seq).then_some(data)
    }

    /// Returns the parameters with which a version 2 client resumes after this state, as if it had
    /// missed the last `missed` changes.
    pub fn resume_query(&self, missed: u64) -> Option<String> {
        let message = |text: &String| serde_json::from_str::<Value>(text).ok();
        let welcome = message(self.messages.first()?)?;
        let synced = message(self.messages.last()?)?;
        let generation = welcome["payload"]["generation"].as_str()?;
        let since = synced["seq"].as_u64()?.checked_sub(missed)?;
        Some(format!("since={since}&generation={generation}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELCOME: &str =
        r#"{"type":"welcome","payload":{"state":"full","generation":"00000000000000ff"}}"#;
    const FIRST: &str =
        r#"{"type":"state","payload":{"entries":[["a",1,7]],"deleted":[]},"seq":1}"#;
    const SECOND: &str =
        r#"{"type":"state","payload":{"entries":[["b",2,8]],"deleted":[]},"seq":2}"#;
    const SYNCED: &str = r#"{"type":"synced","payload":{},"seq":2}"#;

    fn state(messages: &[&str]) -> FirstState {
        let mut state = FirstState::new(ClientProtocol::V2);
        for message in messages {
            assert!(!state.is_complete());
            state.push((*message).to_owned());
        }
        state
    }

    #[test]
    fn version_2_parts_form_one_state() {
        let state = state(&[WELCOME, FIRST, SECOND, SYNCED]);
        assert!(state.is_complete());
        assert_eq!(
            Value::from(state.data().unwrap()).to_string(),
            r#"{"a":1,"b":2}"#
        );
        let query = state.resume_query(1).unwrap();
        assert_eq!(query, "since=1&generation=00000000000000ff");
    }

    #[test]
    fn an_incomplete_state_is_none() {
        let resumed = WELCOME.replace("full", "changes");
        for messages in [
            &[WELCOME, FIRST, SYNCED][..],
            &[WELCOME, SECOND, FIRST, SYNCED],
            &[WELCOME, FIRST, FIRST, SECOND, SYNCED],
            &[FIRST, SECOND, SYNCED],
            &[&resumed, FIRST, SECOND, SYNCED],
        ] {
            assert_eq!(state(messages).data(), None, "{messages:?}");
        }
    }
}
