//! A reader of frames for the tests of the encoders.

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Data, OpCode};

/// Returns the payload of the only text frame in `out`, whose header must match it.
pub(super) fn payload(out: &[u8]) -> &str {
    let mut cursor = std::io::Cursor::new(out);
    let (header, payload_bytes) = FrameHeader::parse(&mut cursor).unwrap().expect("a header");
    assert_eq!(header.opcode, OpCode::Data(Data::Text));
    assert!(header.is_final && header.mask.is_none());
    let payload = &out[usize::try_from(cursor.position()).unwrap()..];
    assert_eq!(payload.len() as u64, payload_bytes);
    str::from_utf8(payload).unwrap()
}
