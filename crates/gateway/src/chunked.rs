//! Decodes `aws-chunked` bodies: bytes in, verified pieces out; no I/O.
//!
//! | part    | unsigned                      | signed                                              |
//! |---------|-------------------------------|-----------------------------------------------------|
//! | chunk   | `hex-size CRLF data CRLF`     | `hex-size;chunk-signature=hex CRLF data CRLF`       |
//! | last    | `0 CRLF`                      | `0;chunk-signature=hex CRLF`                        |
//! | trailer | `name:value CRLF` …           | the same, then `x-amz-trailer-signature:hex CRLF`   |
//! | end     | `CRLF`                        | `CRLF`                                              |
//!
//! minio-go ends its trailers in LF alone and sets them off with an empty line (K6):
//!
//! | part    | unsigned                      | signed                                              |
//! |---------|-------------------------------|-----------------------------------------------------|
//! | trailer | `name:value LF` …, `CRLF`     | the same, then `x-amz-trailer-signature:hex CRLF`   |
//! | end     | `CRLF`, or nothing            | `CRLF`                                              |
//!
//! Only trailers may end so; a value never holds a CR. HTTP's own framing says where the body ends, and nothing but one
//! empty line is accepted behind the trailers, so that no byte is left for anybody to read as something else.
//!
//! A signed chunk is held back until its signature has matched (K7), as slices of what was
//! received; only small pieces are copied, together. Source: "Signature calculations: transferring payload in multiple
//! chunks" of the S3 API.

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Buf, Bytes, BytesMut};

use crate::error::{Code, S3Error, S3Result};
use crate::pieces::Pieces;
use crate::signature::ChunkSigner;

/// Largest signed chunk: it waits in memory for its signature.
pub const SIGNED_CHUNK_BYTES_MAX: u64 = 16 << 20;
/// Longest line that opens a chunk.
const CHUNK_LINE_BYTES_MAX: usize = 1 << 10;
/// All trailers together.
const TRAILER_BYTES_MAX: usize = 4 << 10;
const TRAILER_SIGNATURE: &str = "x-amz-trailer-signature";

enum State {
    /// Before a chunk's line.
    Line,
    /// Inside a chunk's data.
    Data { left: u64, hash: Option<Box<Context>>, signature: String },
    /// Before the line end behind a chunk's data.
    DataEnd,
    /// Behind the last chunk.
    Trailer,
    /// Behind trailers in LF and the empty line that ends them, before the signature of signed ones.
    TrailerSignature,
    /// Everything has been read and verified; after trailers in LF one more empty line may follow.
    LastLineEnd,
    /// Everything has been read and verified.
    Done,
}

/// How a line of the framing ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LineEnd {
    CrLf,
    /// LF alone, as trailers may.
    Lf,
}

/// A decoder of one body.
pub struct Decoder {
    state: State,
    signer: Option<ChunkSigner>,
    expects_trailer: bool,
    declared: Vec<String>,
    decoded_bytes: u64,
    decoded_left: u64,
    input: BytesMut,
    held: Pieces,
    held_bytes: u64,
    ready: Pieces,
    trailers: Vec<(String, String)>,
    trailer_bytes: usize,
    trailer_text: Vec<u8>,
    /// Whether a trailer ended in LF alone.
    ends_in_lf: bool,
}

fn malformed(text: &'static str) -> S3Error {
    Code::InvalidRequest.with(text)
}

impl Decoder {
    /// Makes a decoder. `declared` are the trailer names of `x-amz-trailer`; `decoded_bytes` is
    /// `x-amz-decoded-content-length`.
    pub fn new(signer: Option<ChunkSigner>, expects_trailer: bool, declared: Vec<String>, decoded_bytes: u64) -> Self {
        Decoder {
            state: State::Line,
            signer,
            expects_trailer,
            declared,
            decoded_bytes,
            decoded_left: decoded_bytes,
            input: BytesMut::new(),
            held: Pieces::default(),
            held_bytes: 0,
            ready: Pieces::default(),
            trailers: Vec::new(),
            trailer_bytes: 0,
            trailer_text: Vec::new(),
            ends_in_lf: false,
        }
    }

    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// Whatever is wrong with framing, sizes, signatures or trailers; nothing of the chunk at fault
    /// comes out then.
    pub fn handle_bytes(&mut self, mut bytes: Bytes) -> S3Result<()> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Data { .. } => self.take_data(&mut bytes)?,
                State::Done => return Err(malformed("The body goes on behind its last chunk.")),
                _ => {
                    if let Some((line, end)) = self.take_line(&mut bytes)? {
                        self.handle_line(&line, end)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the next verified piece of the object.
    pub fn poll_piece(&mut self) -> Option<Bytes> {
        self.ready.pop()
    }

    /// Returns how many bytes wait for a signature.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Ends the body and returns its trailers, names in lower case.
    ///
    /// # Errors
    /// `IncompleteBody` where the last chunk has not come or the length differs,
    /// `MalformedTrailerError` where a declared trailer has not.
    pub fn finish(&mut self) -> S3Result<Vec<(String, String)>> {
        let is_whole = matches!(self.state, State::Done | State::LastLineEnd) && self.input.is_empty();
        if !is_whole {
            return Err(Code::IncompleteBody.into());
        }
        if self.decoded_left != 0 {
            return Err(Code::IncompleteBody.into());
        }
        Ok(std::mem::take(&mut self.trailers))
    }

    fn take_data(&mut self, bytes: &mut Bytes) -> S3Result<()> {
        let State::Data { left, hash, .. } = &mut self.state else {
            unreachable!("called inside a chunk's data only");
        };
        let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
        let piece = bytes.split_to(count);
        *left -= count as u64;
        let (is_last, is_signed) = (*left == 0, hash.is_some());
        if let Some(hash) = hash {
            hash.update(&piece);
        }
        match is_signed {
            true => {
                self.held_bytes += count as u64;
                self.held.push(piece);
            }
            false => self.ready.push(piece),
        }
        if is_last {
            self.end_chunk()?;
            self.state = State::DataEnd;
        }
        Ok(())
    }

    /// Verifies a signed chunk and releases it.
    fn end_chunk(&mut self) -> S3Result<()> {
        let State::Data { hash: Some(hash), signature, .. } = std::mem::replace(&mut self.state, State::DataEnd) else {
            return Ok(());
        };
        let signer = self.signer.as_mut().expect("chunks are hashed for a signer only");
        if !signer.accepts_chunk(hash.finish().as_ref(), &signature) {
            self.held.clear();
            self.held_bytes = 0;
            return Err(Code::SignatureDoesNotMatch.with("The signature of a chunk does not match its content."));
        }
        self.ready.append(&mut self.held);
        self.held_bytes = 0;
        Ok(())
    }

    /// Returns whether what comes next are trailers, or what follows them.
    fn is_behind_chunks(&self) -> bool {
        matches!(self.state, State::Trailer | State::TrailerSignature | State::LastLineEnd)
    }

    /// Takes bytes up to a line end. Returns the line and how it ended, or nothing where it is not whole.
    fn take_line(&mut self, bytes: &mut Bytes) -> S3Result<Option<(Vec<u8>, LineEnd)>> {
        let limit = if self.is_behind_chunks() { TRAILER_BYTES_MAX } else { CHUNK_LINE_BYTES_MAX };
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let count = end.map_or(bytes.len(), |at| at + 1);
        if self.input.len() + count > limit + 2 {
            return Err(match self.is_behind_chunks() {
                true => Code::MalformedTrailerError.into(),
                false => malformed("The line of a chunk is too long."),
            });
        }
        self.input.extend_from_slice(&bytes[..count]);
        bytes.advance(count);
        if end.is_none() {
            return Ok(None);
        }
        let line = self.input.split();
        if let Some(line) = line.strip_suffix(b"\r\n") {
            return Ok(Some((line.to_vec(), LineEnd::CrLf)));
        }
        match line.strip_suffix(b"\n") {
            Some(line) if matches!(self.state, State::Trailer) && !line.is_empty() => {
                Ok(Some((line.to_vec(), LineEnd::Lf)))
            }
            _ if self.is_behind_chunks() => Err(Code::MalformedTrailerError.into()),
            _ => Err(malformed("A line of the body's framing does not end in CRLF.")),
        }
    }

    fn handle_line(&mut self, line: &[u8], end: LineEnd) -> S3Result<()> {
        match self.state {
            State::Line => self.handle_chunk_line(line),
            State::DataEnd if line.is_empty() => {
                self.state = State::Line;
                Ok(())
            }
            State::DataEnd => Err(malformed("A chunk is longer than its line says.")),
            State::Trailer if line.is_empty() && self.ends_in_lf => self.end_lf_trailers(),
            State::Trailer | State::TrailerSignature if line.is_empty() => self.end_trailers(),
            State::Trailer | State::TrailerSignature => self.handle_trailer_line(line, end),
            State::LastLineEnd if line.is_empty() => {
                self.state = State::Done;
                Ok(())
            }
            State::LastLineEnd => Err(malformed("The body goes on behind its last chunk.")),
            State::Data { .. } | State::Done => unreachable!("these states take no lines"),
        }
    }

    fn handle_chunk_line(&mut self, line: &[u8]) -> S3Result<()> {
        let line = std::str::from_utf8(line).map_err(|_| malformed("The line of a chunk is not text."))?;
        let (size, extension) = line.split_once(';').unwrap_or((line, ""));
        let is_size = (1..=16).contains(&size.len()) && size.bytes().all(|byte| byte.is_ascii_hexdigit());
        let size = u64::from_str_radix(size, 16).ok().filter(|_| is_size);
        let size = size.ok_or_else(|| malformed("The size of a chunk is not a hexadecimal number."))?;
        if size > self.decoded_left {
            return Err(Code::IncompleteBody.with(format!(
                "The body is longer than x-amz-decoded-content-length says: {} bytes.",
                self.decoded_bytes
            )));
        }
        self.decoded_left -= size;
        let (mut hash, mut signature) = (None, String::new());
        if self.signer.is_some() {
            if size > SIGNED_CHUNK_BYTES_MAX {
                return Err(Code::InvalidChunkSizeError.into());
            }
            let text = extension.strip_prefix("chunk-signature=");
            signature = text.ok_or_else(|| malformed("A chunk has no signature."))?.to_owned();
            hash = Some(Box::new(Context::new(&SHA256)));
        }
        self.state = State::Data { left: size, hash, signature };
        if size == 0 {
            // The last chunk has no data and no line end of its own: trailers or the end follow.
            self.end_chunk()?;
            self.state = State::Trailer;
        }
        Ok(())
    }

    fn handle_trailer_line(&mut self, line: &[u8], end: LineEnd) -> S3Result<()> {
        let bad = || S3Error::from(Code::MalformedTrailerError);
        if line.contains(&b'\r') {
            return Err(bad());
        }
        self.trailer_bytes += line.len();
        if self.trailer_bytes > TRAILER_BYTES_MAX {
            return Err(bad());
        }
        let text = std::str::from_utf8(line).map_err(|_| bad())?;
        let (name, value) = text.split_once(':').ok_or_else(bad)?;
        let (name, value) = (name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned());
        let last_is_signature = self.trailers.last().is_some_and(|(name, _)| name == TRAILER_SIGNATURE);
        if !self.expects_trailer || last_is_signature {
            return Err(bad());
        }
        if name == TRAILER_SIGNATURE {
            // It has a line of its own kind: behind trailers in LF it comes after the empty line.
            let is_its_place = matches!(self.state, State::TrailerSignature) == self.ends_in_lf;
            if self.signer.is_none() || !is_its_place || end != LineEnd::CrLf {
                return Err(bad());
            }
        } else if matches!(self.state, State::TrailerSignature) {
            return Err(bad());
        } else {
            let known = self.declared.contains(&name) && !self.trailers.iter().any(|(seen, _)| *seen == name);
            if !known {
                return Err(Code::MalformedTrailerError.with("A trailer that x-amz-trailer does not declare."));
            }
            self.trailer_text.extend_from_slice(format!("{name}:{value}\n").as_bytes());
        }
        self.ends_in_lf |= end == LineEnd::Lf;
        self.trailers.push((name, value));
        Ok(())
    }

    /// Takes the empty line behind trailers in LF.
    fn end_lf_trailers(&mut self) -> S3Result<()> {
        if self.signer.is_some() {
            self.state = State::TrailerSignature;
            return Ok(());
        }
        self.end_trailers()?;
        self.state = State::LastLineEnd;
        Ok(())
    }

    fn end_trailers(&mut self) -> S3Result<()> {
        let signature = match self.trailers.last() {
            Some((name, _)) if name == TRAILER_SIGNATURE => self.trailers.pop().map(|(_, value)| value),
            _ => None,
        };
        for name in &self.declared {
            if !self.trailers.iter().any(|(seen, _)| seen == name) {
                return Err(Code::MalformedTrailerError.with("A trailer that x-amz-trailer declares is missing."));
            }
        }
        if let Some(signer) = self.signer.as_mut().filter(|_| self.expects_trailer) {
            let signature = signature
                .ok_or_else(|| Code::MalformedTrailerError.with("The signature of the trailer is missing."))?;
            if !signer.accepts_trailer(&self.trailer_text, &signature) {
                return Err(Code::SignatureDoesNotMatch.with("The signature of the trailer does not match."));
            }
        }
        self.state = State::Done;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Decoded = (Vec<u8>, Vec<(String, String)>);

    fn decode(body: &[u8], declared: &[&str], length: u64, step: usize) -> S3Result<Decoded> {
        let declared: Vec<String> = declared.iter().map(|name| (*name).to_owned()).collect();
        let mut decoder = Decoder::new(None, !declared.is_empty(), declared, length);
        let mut out = Vec::new();
        for piece in body.chunks(step.max(1)) {
            decoder.handle_bytes(Bytes::copy_from_slice(piece))?;
            while let Some(piece) = decoder.poll_piece() {
                out.extend_from_slice(&piece);
            }
        }
        let trailers = decoder.finish()?;
        Ok((out, trailers))
    }

    const CRC: &str = "x-amz-checksum-crc32";

    #[test]
    fn k5_chunk_framing_never_reaches_the_object() {
        let body = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nX-Amz-Checksum-CRC32: abc=\r\n\r\n";
        for step in 1..body.len() {
            let (out, trailers) = decode(body, &[CRC], 11, step).expect("well-formed");
            assert_eq!(out, b"hello world");
            assert_eq!(trailers, [(CRC.to_owned(), "abc=".to_owned())]);
        }
    }

    #[test]
    fn k6_trailers_must_be_what_was_declared() {
        let code =
            |body: &[u8], declared: &[&str], length| decode(body, declared, length, 7).expect_err("refused").code();
        assert_eq!(code(b"0\r\n\r\n", &[CRC], 0), Code::MalformedTrailerError);
        assert_eq!(code(b"0\r\nx-amz-checksum-sha1:a\r\n\r\n", &[CRC], 0), Code::MalformedTrailerError);
        assert_eq!(code(b"0\r\nx-amz-checksum-crc32:a\r\n\r\n", &[], 0), Code::MalformedTrailerError);
        assert_eq!(code(b"0\r\nno colon\r\n\r\n", &[CRC], 0), Code::MalformedTrailerError);
        assert_eq!(code(b"5\r\nhello\r\n0\r\n\r\n", &[], 6), Code::IncompleteBody);
        assert_eq!(code(b"5\r\nhello\r\n0\r\n\r\n", &[], 4), Code::IncompleteBody);
        assert_eq!(code(b"5\r\nhel", &[], 5), Code::IncompleteBody);
        assert_eq!(code(b"0\r\nx-amz-checksum-crc32:a\r\n", &[CRC], 0), Code::IncompleteBody);
        assert_eq!(code(b"5\r\nhelloo\r\n0\r\n\r\n", &[], 5), Code::InvalidRequest);
        assert_eq!(code(b"0\r\n\r\nmore", &[], 0), Code::InvalidRequest);
        assert_eq!(code(b"+5\r\nhello\r\n0\r\n\r\n", &[], 5), Code::InvalidRequest);
        assert_eq!(code(&[b'1'; 2000], &[], 5), Code::InvalidRequest);
        assert_eq!(code(&[&b"0\r\n"[..], &[b'a'; 5000]].concat(), &[CRC], 0), Code::MalformedTrailerError);
    }

    #[test]
    fn k6_trailers_may_end_in_lf() {
        let want = [(CRC.to_owned(), "abc=".to_owned())];
        // minio-go's spelling, and the same without the last line.
        for end in ["\r\n\r\n", "\r\n"] {
            let body = format!("5\r\nhello\r\n0\r\nx-amz-checksum-crc32:abc=\n{end}");
            for step in 1..body.len() {
                let (out, trailers) = decode(body.as_bytes(), &[CRC], 5, step).expect("well-formed");
                assert_eq!((out.as_slice(), trailers.as_slice()), (&b"hello"[..], &want[..]));
            }
        }
    }

    #[test]
    fn k6_nothing_else_may_end_in_lf_or_follow() {
        let code = |body: &str| {
            let codes: Vec<_> = (1..=body.len())
                .map(|step| decode(body.as_bytes(), &[CRC], 0, step).expect_err("refused").code())
                .collect();
            assert!(codes.iter().all(|code| *code == codes[0]), "in whatever pieces it comes");
            codes[0]
        };
        const LF: &str = "0\r\nx-amz-checksum-crc32:a\n";
        for (end, want) in [
            // Behind the end, and behind the one line that may follow it.
            ("\r\n\r\n\r\n", Code::InvalidRequest),
            ("\r\nGET / HTTP/1.1\r\n", Code::InvalidRequest),
            ("\r\n\r\nGET / HTTP/1.1\r\n", Code::InvalidRequest),
            ("\r\nx-amz-checksum-sha1:b\r\n\r\n", Code::InvalidRequest),
            // Half a line is not nothing.
            ("\r\n\r", Code::IncompleteBody),
            ("", Code::IncompleteBody),
            ("\r", Code::IncompleteBody),
            // The empty line ends in CRLF.
            ("\n", Code::MalformedTrailerError),
            ("\r\n\n", Code::MalformedTrailerError),
            // An unsigned body has no signature of its trailers.
            ("\r\nx-amz-trailer-signature:b\r\n\r\n", Code::InvalidRequest),
        ] {
            assert_eq!(code(&format!("{LF}{end}")), want, "{end:?}");
        }
        assert_eq!(code("0\nx-amz-checksum-crc32:a\r\n\r\n"), Code::InvalidRequest);
        assert_eq!(code("0\r\nx-amz-checksum-crc32:a\rb\n\r\n"), Code::MalformedTrailerError);
        assert_eq!(code("0\r\nx-amz-checksum-crc32:a\r\r\n\r\n"), Code::MalformedTrailerError);
    }

    #[test]
    fn a_chunk_in_single_bytes_is_held_in_few_pieces() {
        let size = 100_000u64;
        let mut decoder = Decoder::new(Some(ChunkSigner::for_tests()), false, Vec::new(), size);
        decoder.handle_bytes(format!("{size:x};chunk-signature=x\r\n").into()).expect("a line");
        for at in 0..size - 1 {
            decoder.handle_bytes(Bytes::from(vec![at as u8])).expect("a byte");
        }
        assert_eq!(decoder.held_bytes(), size - 1);
        assert!(decoder.held.take().len() < 10);
        // Chunks of one byte come out together, too.
        let mut decoder = Decoder::new(None, false, Vec::new(), 1000);
        decoder.handle_bytes("1\r\na\r\n".repeat(1000).into()).expect("chunks");
        assert_eq!((decoder.poll_piece().map(|piece| piece.len()), decoder.poll_piece()), (Some(1000), None));
    }

    proptest! {
        #[test]
        fn any_framing_decodes_or_fails_cleanly(body in proptest::collection::vec(any::<u8>(), 0..300), step in 1usize..50) {
            let _ = decode(&body, &[CRC], 100, step);
        }

        #[test]
        fn well_formed_chunks_decode(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..8), step in 1usize..40) {
            let mut body = Vec::new();
            for piece in &pieces {
                body.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                body.extend_from_slice(piece);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let whole = pieces.concat();
            let (out, _) = decode(&body, &[], whole.len() as u64, step).unwrap();
            prop_assert_eq!(out, whole);
        }
    }
}
