//! Writes XML straight into a buffer: a listing of a thousand keys is one allocation.

/// The namespace of S3's documents. Errors carry none.
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// An XML document being written.
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// Starts a document with its declaration, expecting about `capacity` bytes.
    pub fn document(capacity: usize) -> Self {
        let mut writer = Writer { out: Vec::with_capacity(capacity.max(64)) };
        writer.out.extend_from_slice(b"<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        writer
    }

    /// Starts a document without a declaration, for where it has been sent already.
    pub fn bare() -> Self {
        Writer { out: Vec::with_capacity(256) }
    }

    /// Opens the root element in S3's namespace.
    pub fn root(&mut self, name: &str) {
        self.out.push(b'<');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b" xmlns=\"");
        self.out.extend_from_slice(NAMESPACE.as_bytes());
        self.out.extend_from_slice(b"\">");
    }

    /// Opens an element.
    pub fn open(&mut self, name: &str) {
        self.out.push(b'<');
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(b'>');
    }

    /// Opens an element with attributes, given as they stand.
    pub fn open_with(&mut self, name: &str, attributes: &str) {
        self.out.push(b'<');
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(b' ');
        self.out.extend_from_slice(attributes.as_bytes());
        self.out.push(b'>');
    }

    /// Closes an element.
    pub fn close(&mut self, name: &str) {
        self.out.extend_from_slice(b"</");
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(b'>');
    }

    /// Writes an element with escaped text.
    pub fn text(&mut self, name: &str, text: &str) {
        self.open(name);
        push_escaped(&mut self.out, text);
        self.close(name);
    }

    /// Writes escaped text inside the open element.
    pub fn chars(&mut self, text: &str) {
        push_escaped(&mut self.out, text);
    }

    /// Writes `<Owner>`.
    pub fn owner(&mut self, account: &str) {
        self.open("Owner");
        self.text("ID", account);
        self.text("DisplayName", account);
        self.close("Owner");
    }

    /// Writes an element whose text needs no escaping.
    pub fn plain(&mut self, name: &str, text: &[u8]) {
        self.open(name);
        self.out.extend_from_slice(text);
        self.close(name);
    }

    /// Writes an element with a number.
    pub fn number(&mut self, name: &str, mut value: u64) {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.plain(name, &digits[at..]);
    }

    /// Writes `true` or `false`.
    pub fn flag(&mut self, name: &str, value: bool) {
        self.plain(name, if value { b"true" } else { b"false" });
    }

    /// Writes an ETag in quotes, lower-case hex, with its part count.
    pub fn etag(&mut self, name: &str, etag: &plinth_protocol::object::Etag) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        self.open(name);
        self.out.extend_from_slice(b"&quot;");
        for byte in etag.md5 {
            self.out.push(HEX[usize::from(byte >> 4)]);
            self.out.push(HEX[usize::from(byte & 15)]);
        }
        if let Some(parts) = etag.parts {
            self.out.push(b'-');
            self.out.extend_from_slice(parts.to_string().as_bytes());
        }
        self.out.extend_from_slice(b"&quot;");
        self.close(name);
    }

    /// Writes an element with a name from the client, in `encoding-type=url` where asked for.
    pub fn name(&mut self, element: &str, text: &str, encoding: UrlEncoded) {
        self.open(element);
        match encoding {
            UrlEncoded::Yes => push_url_encoded(&mut self.out, text),
            UrlEncoded::No => push_escaped(&mut self.out, text),
        }
        self.close(element);
    }

    /// Returns the bytes.
    pub fn into_vec(self) -> Vec<u8> {
        self.out
    }
}

/// Whether a listing was asked for with `encoding-type=url`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlEncoded {
    /// Names are percent-encoded.
    Yes,
    /// Names are XML text; control characters become numeric references.
    No,
}

/// Appends text with the characters that XML reserves escaped. Control characters become numeric
/// references, so that a carriage return in a key survives the reader's newline folding.
fn push_escaped(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let mut done = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && !matches!(byte, b'&' | b'<' | b'>' | b'"' | b'\'' | 0x7f) {
            continue;
        }
        out.extend_from_slice(&bytes[done..at]);
        done = at + 1;
        match byte {
            b'&' => out.extend_from_slice(b"&amp;"),
            b'<' => out.extend_from_slice(b"&lt;"),
            b'>' => out.extend_from_slice(b"&gt;"),
            b'"' => out.extend_from_slice(b"&quot;"),
            b'\'' => out.extend_from_slice(b"&apos;"),
            control => out.extend_from_slice(format!("&#x{control:X};").as_bytes()),
        }
    }
    out.extend_from_slice(&bytes[done..]);
}

/// Appends text as `encoding-type=url` wants it: letters, digits, `-._*/` stay, a space is `+`,
/// everything else is percent-encoded.
fn push_url_encoded(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in text.as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' | b'/' => out.push(byte),
            b' ' => out.push(b'+'),
            _ => out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &str) -> String {
        let mut out = Vec::new();
        push_url_encoded(&mut out, text);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn l5_url_encoding_keeps_slashes_and_turns_spaces_into_plus() {
        assert_eq!(encoded("a/b c(d)+é~"), "a/b+c%28d%29%2B%C3%A9%7E");
    }

    #[test]
    fn l5_control_characters_are_numeric_references() {
        let mut xml = Writer::bare();
        xml.text("Key", "a\r\n\u{1}<&>\"'");
        assert_eq!(xml.into_vec(), b"<Key>a&#xD;&#xA;&#x1;&lt;&amp;&gt;&quot;&apos;</Key>");
    }

    #[test]
    fn numbers_are_written_whole() {
        let mut xml = Writer::bare();
        xml.number("A", 0);
        xml.number("B", u64::MAX);
        assert_eq!(xml.into_vec(), b"<A>0</A><B>18446744073709551615</B>");
    }
}
