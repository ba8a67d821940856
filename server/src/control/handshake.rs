//! The first frame of a connection: reads just the Hello, not a byte more, and checks it.
//!
//! What follows the Hello belongs to the shard, so nothing may be read ahead: each read asks for no more than is left of the
//! frame, on a stream without a buffer. Checking is pure and apart from reading.

use futures_lite::AsyncReadExt;
use glommio::net::TcpStream;
use postanalytics_protocol::frames::{ANY_SHARD, HELLO_BODY_BYTES_MAX, Hello};
use postanalytics_protocol::schema::v1::SCHEMA;
use postanalytics_protocol::{
    Assembler, DEFAULT_MAX_BODY_BYTES, ErrorCode, FrameError, FrameHeader, FrameKind, HEADER_BYTES, PROTOCOL_VERSION,
};
use std::time::{Duration, Instant};

/// Time from accept to the end of the Hello.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

/// Why a connection is not handed to a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: ErrorCode,
    pub(super) text: String,
}

impl Refusal {
    pub(super) fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// What reading the Hello came to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A good Hello, and the session in its header.
    Hello(Box<Hello>, u64),
    /// The peer is told why and the connection closes.
    Refused(Refusal),
    /// The peer went away.
    Gone,
}

/// Reads the Hello until `deadline`.
pub(super) async fn read_hello(stream: &mut TcpStream, deadline: Instant) -> Outcome {
    let mut frame = vec![0; HEADER_BYTES];
    if let Some(outcome) = fill(stream, &mut frame, 0, deadline).await {
        return outcome;
    }
    let body_bytes = match check_first_header(&frame) {
        Ok(header) => header.body_bytes as usize,
        Err(refusal) => return Outcome::Refused(refusal),
    };
    frame.resize(HEADER_BYTES + body_bytes, 0);
    if let Some(outcome) = fill(stream, &mut frame, HEADER_BYTES, deadline).await {
        return outcome;
    }
    match decode(&frame) {
        Ok((hello, session)) => Outcome::Hello(Box::new(hello), session),
        Err(refusal) => Outcome::Refused(refusal),
    }
}

/// Fills `frame` from `filled` on; `None` when it is full.
async fn fill(stream: &mut TcpStream, frame: &mut [u8], mut filled: usize, deadline: Instant) -> Option<Outcome> {
    while filled < frame.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        // glommio takes no timeout of zero.
        let _ = stream.set_read_timeout(Some(left.max(Duration::from_millis(1))));
        match stream.read(&mut frame[filled..]).await {
            Ok(0) => return Some(Outcome::Gone),
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut || left.is_zero() => {
                return Some(Outcome::Refused(Refusal::new(
                    ErrorCode::HandshakeTimeout,
                    format!("a Hello must come whole within {} s; {filled} bytes of it came", DEADLINE.as_secs()),
                )));
            }
            Err(_) => return Some(Outcome::Gone),
        }
    }
    None
}

/// The header of a first frame: it must be a Hello of sane size.
fn check_first_header(bytes: &[u8]) -> Result<FrameHeader, Refusal> {
    let bytes: &[u8; HEADER_BYTES] =
        bytes.try_into().map_err(|_| Refusal::new(ErrorCode::BadMagic, "a frame begins with 64 bytes of header"))?;
    let header = FrameHeader::decode(bytes, DEFAULT_MAX_BODY_BYTES)?;
    match header.kind {
        FrameKind::Hello if header.body_bytes > HELLO_BODY_BYTES_MAX => {
            Err(FrameError::BodyTooLong { body_bytes: header.body_bytes, max_body_bytes: HELLO_BODY_BYTES_MAX }.into())
        }
        FrameKind::Hello => Ok(header),
        FrameKind::Challenge | FrameKind::Proof => Err(Refusal::new(
            ErrorCode::AuthenticationUnsupported,
            "authentication is not spoken by this version: connect without a secret",
        )),
        kind => Err(Refusal::new(ErrorCode::UnexpectedKind, format!("the first frame must be a Hello, this is a {kind:?}"))),
    }
}

fn decode(frame: &[u8]) -> Result<(Hello, u64), Refusal> {
    let mut body = Vec::new();
    let mut input = frame;
    let header = Assembler::new(HELLO_BODY_BYTES_MAX).collect(&mut input, &mut body)?;
    let header = header.ok_or_else(|| Refusal::new(ErrorCode::BadBody, "the Hello is not whole"))?;
    Ok((Hello::decode(&body)?, header.session))
}

/// Whether both sides have a protocol and a schema in common, and the wanted shard exists.
pub(super) fn check_hello(hello: &Hello, shard_count: u32) -> Result<(), Refusal> {
    let ours = u16::from(PROTOCOL_VERSION);
    if !(hello.protocol_min..=hello.protocol_max).contains(&ours) {
        return Err(Refusal::new(
            ErrorCode::UnsupportedVersion,
            format!(
                "the client speaks protocol versions {} to {}, this server {ours} to {ours}: upgrade the older of the two",
                hello.protocol_min, hello.protocol_max
            ),
        ));
    }
    if !(hello.schema_min..=hello.schema_max).contains(&SCHEMA) {
        return Err(Refusal::new(
            ErrorCode::UnsupportedSchema,
            format!(
                "the client sends record schemas {} to {}, this server takes {SCHEMA} to {SCHEMA}: upgrade the older of the two",
                hello.schema_min, hello.schema_max
            ),
        ));
    }
    if hello.wanted_shard != ANY_SHARD && hello.wanted_shard >= shard_count {
        return Err(Refusal::new(
            ErrorCode::NoSuchShard,
            format!(
                "shard {} was asked for, this server has 0 to {}: ask for any shard and take the topology from Welcome",
                hello.wanted_shard,
                shard_count - 1
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use postanalytics_protocol::frames::{PackageVersion, Ping};
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            protocol_min: 1,
            protocol_max: 1,
            schema_min: 1,
            schema_max: 1,
            package: PackageVersion::default(),
            node: [7; 16],
            wanted_shard: ANY_SHARD,
            replay: false,
            nonce: [0; 32],
            name: "n1".to_owned(),
        }
    }

    fn encoded(hello: &Hello) -> Vec<u8> {
        let mut frame = Vec::new();
        hello.encode(42, 0, &mut frame);
        frame
    }

    #[test]
    fn a_good_hello_is_taken() {
        let frame = encoded(&hello());
        assert!(check_first_header(&frame[..HEADER_BYTES]).is_ok());
        assert_eq!(decode(&frame), Ok((hello(), 42)));
        assert_eq!(check_hello(&hello(), 1), Ok(()));
    }

    #[test]
    fn refusals_name_both_ranges() {
        let newer = Hello { protocol_min: 2, protocol_max: 3, ..hello() };
        let refusal = check_hello(&newer, 1).expect_err("too new");
        assert_eq!(refusal.code, ErrorCode::UnsupportedVersion);
        assert!(refusal.text.contains("2 to 3") && refusal.text.contains("1 to 1"), "{}", refusal.text);
        let newer = Hello { schema_min: 5, schema_max: 6, ..hello() };
        assert_eq!(check_hello(&newer, 1).expect_err("too new").code, ErrorCode::UnsupportedSchema);
        let elsewhere = Hello { wanted_shard: 2, ..hello() };
        assert_eq!(check_hello(&elsewhere, 2).expect_err("no such shard").code, ErrorCode::NoSuchShard);
        assert_eq!(check_hello(&elsewhere, 3), Ok(()));
    }

    #[test]
    fn other_first_frames_are_named() {
        let mut ping = Vec::new();
        Ping { token: 1 }.encode(1, 0, &mut ping);
        assert_eq!(check_first_header(&ping).expect_err("no Hello").code, ErrorCode::UnexpectedKind);
        let proof = FrameHeader::bare(FrameKind::Proof, 1, 0, 0).encode();
        assert_eq!(check_first_header(&proof).expect_err("no Hello").code, ErrorCode::AuthenticationUnsupported);
        let mut long = FrameHeader::bare(FrameKind::Hello, 1, 0, 0);
        long.body_bytes = HELLO_BODY_BYTES_MAX + 16;
        assert_eq!(check_first_header(&long.encode()).expect_err("too long").code, ErrorCode::BodyTooLong);
    }

    proptest! {
        #[test]
        fn damage_is_named_and_never_taken(at: prop::sample::Index, bit in 0u8..8) {
            let mut frame = encoded(&hello());
            let at = at.index(frame.len());
            frame[at] ^= 1 << bit;
            let result = check_first_header(&frame[..HEADER_BYTES]).and_then(|_| decode(&frame).map(|_| ()));
            prop_assert!(result.is_err());
        }
    }
}
