//! Parsing a message with simd-json, and a cursor over its fields.
//!
//! simd-json's first stage yields the byte offsets of all structural characters, and its second
//! stage the tape of unescaped nodes. A [`Walk`] goes through both in lockstep, so it provides a
//! field's node as well as its text as sent.

use simd_json::{Buffers, INPUT_PADDING, Node, StaticNode, Tape};

use super::depth;
use super::error::MessageError;
use crate::limits::TIMESTAMP_MAX_US;

/// A parser of messages. Each shard has one, and reuses its buffers for every message.
pub struct Parser {
    buffers: Buffers,
    // Always empty between calls, so that no node outlives the text that it points into.
    tape: Vec<Node<'static>>,
    scratch: Vec<u8>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// Creates a parser with small buffers, which grow with the messages.
    #[must_use]
    pub fn new() -> Self {
        let buffers = Buffers::with_max_depth(1024, depth::DEPTH_MAX);
        Self {
            buffers,
            tape: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Parses the text of one message and calls `read` with a cursor at its start, or with the
    /// reason why it cannot be parsed.
    ///
    /// The result of `read` may borrow from the text and from the parser, but not from the cursor.
    pub(super) fn read<'a, T>(
        &'a mut self,
        text: &'a str,
        read: impl FnOnce(Result<Walk<'a, '_>, MessageError>) -> T,
    ) -> T {
        let Self {
            buffers,
            tape,
            scratch,
        } = self;
        // simd-json unescapes strings in place, but the value is needed as sent, so it is given a
        // copy.
        scratch.clear();
        scratch.extend_from_slice(text.as_bytes());
        scratch.resize(text.len() + INPUT_PADDING, b' ');
        let mut nodes = Tape(std::mem::take(tape)).reset();
        let outcome = match simd_json::fill_tape_padded(scratch, text.len(), buffers, &mut nodes) {
            Ok(()) => read(Ok(Walk {
                text,
                structurals: buffers.structural_indexes(),
                nodes: &nodes.0,
                structural: 0,
                node: 0,
            })),
            Err(error) if matches!(error.error(), simd_json::ErrorType::DepthLimitExceeded) => {
                let field = depth::deep_field(text);
                read(Err(
                    field.map_or(MessageError::NotAnObject, MessageError::Depth)
                ))
            }
            Err(_) => read(Err(MessageError::Json)),
        };
        *tape = nodes.reset().0;
        outcome
    }
}

/// A cursor over a parsed text: the next node of the tape and its structural character, in
/// lockstep.
#[derive(Clone, Copy)]
pub(super) struct Walk<'a, 'n> {
    text: &'a str,
    structurals: &'n [u32],
    nodes: &'n [Node<'a>],
    structural: usize,
    node: usize,
}

impl<'a> Walk<'a, '_> {
    /// Returns the next node.
    pub fn node(&self) -> Node<'a> {
        self.nodes[self.node]
    }

    /// Steps into an object and returns its number of fields, or `None` if the node is not an
    /// object.
    pub fn enter(&mut self) -> Option<usize> {
        let Node::Object { len, .. } = self.nodes[self.node] else {
            return None;
        };
        self.node += 1;
        self.structural += 1;
        Some(len)
    }

    /// Returns a field's unescaped name and steps to its value.
    pub fn name(&mut self) -> &'a str {
        let Node::String(name) = self.nodes[self.node] else {
            unreachable!("the tape holds a string before each value of an object");
        };
        self.node += 1;
        // The opening quote and the colon; a closing quote is not structural.
        self.structural += 2;
        name
    }

    /// Steps over a value and the comma or bracket after it, and returns the value's text as sent.
    pub fn skip(&mut self) -> &'a str {
        let start = self.structurals[self.structural] as usize;
        self.node += match self.nodes[self.node] {
            Node::Object { count, .. } | Node::Array { count, .. } => count + 1,
            Node::String(_) | Node::Static(_) => 1,
        };
        // A scalar has one structural character; an object or array ends at its matching bracket.
        let mut depth = 0_usize;
        loop {
            match self.text.as_bytes()[self.structurals[self.structural] as usize] {
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.structural += 1;
            if depth == 0 {
                break;
            }
        }
        let end = self.structurals[self.structural] as usize;
        self.structural += 1;
        self.text[start..end].trim_end_matches([' ', '\t', '\n', '\r'])
    }
}

/// Reads a timestamp: an integer from 0 to [`TIMESTAMP_MAX_US`], in Unix microseconds.
pub(super) fn timestamp_us(node: Option<Node<'_>>) -> Result<u64, MessageError> {
    match node {
        Some(Node::Static(StaticNode::U64(timestamp))) if timestamp <= TIMESTAMP_MAX_US => {
            Ok(timestamp)
        }
        Some(Node::Static(StaticNode::I64(timestamp))) => {
            u64::try_from(timestamp).map_err(|_| MessageError::TimestampRange)
        }
        Some(Node::Static(StaticNode::U64(_))) => Err(MessageError::TimestampRange),
        _ => Err(MessageError::Timestamp),
    }
}
