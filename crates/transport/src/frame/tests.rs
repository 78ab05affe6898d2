use super::*;
use plinth_protocol::Role;
use plinth_protocol::buffer::BLOCK_BYTES;
use proptest::prelude::*;

#[path = "../../../../tests/format/golden.rs"]
mod golden;

const GOLDEN: &str = "transport_frames.hex";

fn bytes_of(frame: &OutFrame) -> Vec<u8> {
    let mut bytes = frame.prefix.to_vec();
    bytes.extend_from_slice(&frame.header);
    frame.payload.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// Decodes everything that is in `input`, fed in pieces of `step` bytes.
fn decode_all(input: &[u8], step: usize, bounds: Bounds) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::new(bounds, BufferPool::new());
    let mut frames = Vec::new();
    for mut piece in input.chunks(step.max(1)) {
        while let Some(frame) = decoder.decode(&mut piece)? {
            frames.push(frame);
        }
        assert!(piece.is_empty(), "the decoder takes all that it is given");
    }
    Ok(frames)
}

fn request(id: u64, header: &[u8], payload: Vec<Bytes>) -> OutFrame {
    let head = FrameHead { kind: FrameKind::Request, method: Some(Method::Storage), deadline_ms: 1500, id };
    OutFrame::new(head, Bytes::copy_from_slice(header), payload)
}

fn samples() -> Vec<(&'static str, OutFrame)> {
    let hello = Hello {
        version: HELLO_VERSION,
        cluster: ClusterId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
        node: NodeId(7),
        incarnation: Incarnation(3),
        lane: Lane::Bulk,
        peer_incarnation: Some(Incarnation(2)),
    };
    let response = FrameHead { kind: FrameKind::Response, method: None, deadline_ms: 0, id: 0x1_0000_0002 };
    let failure = Failure { retry_after_ms: Some(20), ..Failure::new(FailureKind::Busy, "queue is full") };
    vec![
        ("hello", OutFrame::hello(&hello)),
        ("request", request(0x1_0000_0001, b"header", vec![Bytes::from_static(b"pay"), Bytes::from_static(b"load")])),
        ("response", OutFrame::new(response, Bytes::from_static(b"reply"), vec![Bytes::from_static(b"bytes")])),
        ("failure", OutFrame::failure(0x1_0000_0003, &failure)),
        ("cancel", OutFrame::cancel(0x1_0000_0004)),
        ("ping", OutFrame::ping()),
        ("goodbye", OutFrame::goodbye(FailureKind::Unavailable, "node is shutting down")),
    ]
}

fn samples_text() -> String {
    samples().iter().map(|(name, frame)| format!("# {name}\n{}", to_hex(&bytes_of(frame)))).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.chunks(32).map(|line| line.concat() + "\n").collect()
}

#[test]
fn frames_are_those_of_the_golden_file() {
    golden::assert_golden(GOLDEN, &samples_text());
}

#[test]
fn golden_bytes_decode_to_what_was_meant() {
    let text = golden::golden(GOLDEN, &samples_text());
    let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    let bytes: Vec<u8> =
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
    let frames = decode_all(&bytes, 5, Bounds::NODE).unwrap();
    assert_eq!(frames.len(), 7);
    let hello = Hello::decode(&frames[0].header).unwrap();
    assert_eq!((hello.node, hello.lane, hello.peer_incarnation), (NodeId(7), Lane::Bulk, Some(Incarnation(2))));
    let expected =
        FrameHead { kind: FrameKind::Request, method: Some(Method::Storage), deadline_ms: 1500, id: 0x1_0000_0001 };
    assert_eq!(frames[1].head, expected);
    assert_eq!((&frames[1].header[..], &frames[1].payload[..]), (&b"header"[..], &b"payload"[..]));
    assert_eq!(Failure::decode(&frames[3].header).unwrap().retry_after_ms, Some(20));
    // The words of the role table are part of the conversation.
    assert_eq!(Role::ALL.len(), 5);
}

#[test]
fn every_flipped_bit_shows() {
    let bytes = bytes_of(&request(9, b"some header", vec![Bytes::from(vec![0xa5; 300])]));
    assert_eq!(decode_all(&bytes, 7, Bounds::NODE).unwrap().len(), 1);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        match decode_all(&flipped, bytes.len(), Bounds::NODE) {
            Err(_) => {}
            // A longer length waits for bytes that never come.
            Ok(frames) => assert!(frames.is_empty(), "bit {bit}"),
        }
    }
}

#[test]
fn lengths_above_their_bounds_are_refused_at_the_prefix() {
    let claim = |kind: FrameKind, header: u32, payload: u32, bounds| {
        let mut bytes = bytes_of(&request(1, b"", vec![]));
        bytes[1] = kind as u8;
        bytes[2] = if kind == FrameKind::Request { Method::Meta as u8 } else { 0 };
        bytes[16..20].copy_from_slice(&header.to_le_bytes());
        bytes[20..24].copy_from_slice(&payload.to_le_bytes());
        decode_all(&bytes, 32, bounds)
    };
    let (header_max, payload_max) = (HEADER_BYTES_MAX as u32, PAYLOAD_BYTES_MAX as u32);
    for kind in FrameKind::ALL.iter().copied() {
        assert_eq!(claim(kind, header_max + 1, 0, Bounds::NODE), Err(FrameError::Length), "{kind:?}");
        assert_eq!(claim(kind, 0, payload_max + 1, Bounds::NODE), Err(FrameError::Length), "{kind:?}");
        assert_eq!(claim(kind, u32::MAX, u32::MAX, Bounds::NODE), Err(FrameError::Length), "{kind:?}");
    }
    assert_eq!(claim(FrameKind::Ping, 0, 1, Bounds::NODE), Err(FrameError::Length));
    assert_eq!(claim(FrameKind::Hello, 4097, 0, Bounds::NODE), Err(FrameError::Length));
    assert_eq!(claim(FrameKind::Request, 0, 1, Bounds::STRANGER), Err(FrameError::Length));
    assert_eq!(claim(FrameKind::Request, (64 << 10) + 1, 0, Bounds::STRANGER), Err(FrameError::Length));
    // Within the bounds, a header is awaited as it comes: nothing is decided yet.
    assert_eq!(claim(FrameKind::Request, header_max, payload_max, Bounds::NODE), Ok(vec![]));
}

#[test]
fn unknown_words_are_refused_by_name() {
    let with = |at: usize, value: u8| {
        let mut bytes = bytes_of(&request(1, b"", vec![]));
        bytes[at] = value;
        decode_all(&bytes, 32, Bounds::NODE)
    };
    assert_eq!(with(0, 2), Err(FrameError::Version(2)));
    assert_eq!(with(1, 99), Err(FrameError::Kind(99)));
    assert_eq!(with(2, 99), Err(FrameError::Method(99)));
    assert_eq!(with(2, 0), Err(FrameError::Method(0)));
    assert_eq!(with(3, 1), Err(FrameError::Flags(1)));
    // An ignorable flag passes, once the checksum covers it.
    let mut bytes = bytes_of(&request(1, b"", vec![]));
    bytes[3] = 0x10;
    let prefix: [u8; PREFIX_BYTES] = bytes[..].try_into().unwrap();
    bytes[28..].copy_from_slice(&head_sum(&prefix, b"").to_le_bytes());
    assert_eq!(decode_all(&bytes, 32, Bounds::NODE).unwrap().len(), 1);
}

proptest! {
    #[test]
    fn frames_return_however_they_are_cut(
        frames in prop::collection::vec((any::<u64>(), prop::collection::vec(any::<u8>(), 0..300),
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..4)), 1..8),
        step in 1usize..6000,
    ) {
        let mut bytes = Vec::new();
        for (id, header, parts) in &frames {
            let parts = parts.iter().cloned().map(Bytes::from).collect();
            bytes.extend(bytes_of(&request(*id, header, parts)));
        }
        let decoded = decode_all(&bytes, step, Bounds::NODE).unwrap();
        prop_assert_eq!(decoded.len(), frames.len());
        for (frame, (id, header, parts)) in decoded.iter().zip(&frames) {
            prop_assert_eq!(frame.head.id, *id);
            prop_assert_eq!(&frame.header[..], &header[..]);
            prop_assert_eq!(&frame.payload[..], &parts.concat()[..]);
            prop_assert!(frame.payload.is_empty() || (frame.payload.as_ptr() as usize).is_multiple_of(BLOCK_BYTES));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(input: Vec<u8>, step in 1usize..64) {
        let _ = decode_all(&input, step, Bounds::NODE);
        let _ = decode_all(&input, step, Bounds::STRANGER);
    }

    /// A valid prefix in front reaches the deeper states; a wrong checksum must stop before a payload
    /// buffer is made.
    #[test]
    fn damaged_prefixes_allocate_nothing_large(
        mut prefix in prop::array::uniform32(any::<u8>()),
        rest in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        (prefix[0], prefix[1], prefix[2], prefix[3]) = (FRAME_VERSION, FrameKind::Request as u8, 1 + prefix[2] % 6, 0);
        (prefix[18], prefix[19], prefix[23]) = (0, 0, 0);
        let mut decoder = Decoder::new(Bounds::NODE, BufferPool::new());
        let mut input = &[&prefix[..], &rest].concat()[..];
        let result = decoder.decode(&mut input);
        prop_assert!(!matches!(decoder.stage, Stage::Payload { .. }), "made a payload buffer: {:?}", result);
        if let Stage::Header { header, .. } = &decoder.stage {
            prop_assert!(header.capacity() <= HEADER_BYTES_AT_ONCE.max(2 * rest.len()));
        }
    }
}
