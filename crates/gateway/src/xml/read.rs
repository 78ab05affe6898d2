//! Reads request documents into a small tree, with limits and without trimming.
//!
//! Text is kept exactly: no trimming, no newline folding (D3). No DTD, no entities beyond the five
//! of XML and numeric references, so that nothing expands.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use crate::error::{Code, S3Error, S3Result};

/// Deepest nesting of a document.
const XML_DEPTH_MAX: usize = 16;
/// Most attributes of one element: namespaces only, of which S3's documents have one or two.
const XML_ATTRIBUTES_MAX: usize = 16;

/// How large a document may be.
#[derive(Clone, Copy, Debug)]
pub struct XmlLimits {
    /// Bytes of the body.
    pub bytes_max: usize,
    /// Elements in the document.
    pub elements_max: usize,
}

impl XmlLimits {
    /// Limits of a configuration document.
    pub const SMALL: XmlLimits = XmlLimits { bytes_max: 1 << 20, elements_max: 10_000 };
    /// Limits of CompleteMultipartUpload and DeleteObjects: 10,000 parts of up to five elements.
    pub const LARGE: XmlLimits = XmlLimits { bytes_max: 8 << 20, elements_max: 60_001 };
}

/// An element with its text and children.
#[derive(Debug, Default)]
pub struct Element {
    /// The name without a namespace prefix.
    pub name: String,
    /// The text exactly as sent; empty where the element has children.
    pub text: String,
    /// The child elements in order.
    pub children: Vec<Element>,
}

fn malformed() -> S3Error {
    Code::MalformedXML.into()
}

/// Parses a document with a single root element.
///
/// # Errors
/// `MalformedXML` for anything that is not well-formed XML within the limits.
pub fn parse(body: &[u8], limits: XmlLimits) -> S3Result<Element> {
    if body.len() > limits.bytes_max {
        return Err(Code::MaxMessageLengthExceeded.into());
    }
    let text = std::str::from_utf8(body).map_err(|_| malformed())?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader::from_str(text);
    let mut stack: Vec<Element> = Vec::new();
    let mut root = None;
    let mut elements = 0;
    loop {
        match reader.read_event().map_err(|_| malformed())? {
            Event::Start(start) => {
                elements += 1;
                if elements > limits.elements_max || stack.len() >= XML_DEPTH_MAX || root.is_some() {
                    return Err(malformed());
                }
                stack.push(element(&start)?);
            }
            Event::Empty(start) => {
                elements += 1;
                if elements > limits.elements_max || stack.len() >= XML_DEPTH_MAX || root.is_some() {
                    return Err(malformed());
                }
                attach(&mut stack, &mut root, element(&start)?)?;
            }
            Event::End(_) => {
                let done = stack.pop().ok_or_else(malformed)?;
                attach(&mut stack, &mut root, done)?;
            }
            Event::Text(text) => push_text(&mut stack, &text)?,
            Event::CData(text) => push_text(&mut stack, &text)?,
            Event::GeneralRef(reference) => {
                let resolved = match reference.resolve_char_ref().map_err(|_| malformed())? {
                    Some(character) => character,
                    None => entity(&reference)?,
                };
                push_text(&mut stack, resolved.encode_utf8(&mut [0; 4]))?;
            }
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
            Event::DocType(_) => return Err(malformed()),
            Event::Eof => break,
        }
    }
    if !stack.is_empty() {
        return Err(malformed());
    }
    root.ok_or_else(malformed)
}

fn entity(name: &str) -> S3Result<char> {
    Ok(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => return Err(malformed()),
    })
}

fn element(start: &BytesStart<'_>) -> S3Result<Element> {
    for (at, attribute) in start.attributes().enumerate() {
        let attribute = attribute.map_err(|_| malformed())?;
        if at >= XML_ATTRIBUTES_MAX {
            return Err(malformed());
        }
        let name: &str = attribute.key.as_ref();
        if name != "xmlns" && !name.starts_with("xmlns:") && !name.starts_with("xsi:") {
            return Err(malformed());
        }
    }
    let name = start.local_name();
    let name: &str = name.as_ref();
    Ok(Element { name: name.to_owned(), ..Element::default() })
}

fn attach(stack: &mut [Element], root: &mut Option<Element>, mut done: Element) -> S3Result<()> {
    if !done.children.is_empty() {
        // White space between children is layout; any other text there has no meaning in S3.
        if done.text.bytes().any(|byte| !byte.is_ascii_whitespace()) {
            return Err(malformed());
        }
        done.text.clear();
    }
    match stack.last_mut() {
        Some(parent) => parent.children.push(done),
        None => *root = Some(done),
    }
    Ok(())
}

fn push_text(stack: &mut [Element], text: &str) -> S3Result<()> {
    match stack.last_mut() {
        Some(parent) => {
            parent.text.push_str(text);
            Ok(())
        }
        None if text.bytes().all(|byte| byte.is_ascii_whitespace()) => Ok(()),
        None => Err(malformed()),
    }
}

impl Element {
    /// Returns the only child of this name, or nothing.
    ///
    /// # Errors
    /// `MalformedXML` where the child stands twice.
    pub fn child(&self, name: &str) -> S3Result<Option<&Element>> {
        let mut found = self.children.iter().filter(|child| child.name == name);
        let first = found.next();
        if found.next().is_some() { Err(malformed()) } else { Ok(first) }
    }

    /// Returns the text of the only child of this name, or nothing.
    ///
    /// # Errors
    /// `MalformedXML` where the child stands twice or has children of its own.
    pub fn child_text(&self, name: &str) -> S3Result<Option<&str>> {
        match self.child(name)? {
            Some(child) if !child.children.is_empty() => Err(malformed()),
            Some(child) => Ok(Some(&child.text)),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(body: &str) -> String {
        let root = parse(body.as_bytes(), XmlLimits::SMALL).expect("well-formed");
        root.child_text("Key").expect("once").expect("there").to_owned()
    }

    #[test]
    fn d3_text_is_kept_exactly() {
        assert_eq!(key("<a><Key> x\r\n&#13;&amp;&lt;&#x1F600; </Key></a>"), " x\r\n\r&<\u{1F600} ");
        assert_eq!(key("<?xml version='1.0'?>\n<s:a xmlns:s='u'>\n <s:Key><![CDATA[<&]]></s:Key>\n</s:a>\n"), "<&");
    }

    #[test]
    fn nothing_expands_and_nothing_nests_without_end() {
        let deep = "<a>".repeat(17) + &"</a>".repeat(17);
        let wide = format!("<a {}/>", (0..17).map(|at| format!("xmlns:n{at}='u' ")).collect::<String>());
        let bad = [
            "",
            "text",
            "<a>",
            "<a></b>",
            "<a/><b/>",
            "<a>&lol;</a>",
            "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
            "<a><b/>text</a>",
            "<a b='c'/>",
            "<a>&#0;</a>",
            "<a>&#xD800;</a>",
            deep.as_str(),
            wide.as_str(),
        ];
        for body in bad {
            let error = parse(body.as_bytes(), XmlLimits::SMALL).expect_err(body);
            assert_eq!(error.code(), Code::MalformedXML, "{body}");
        }
        assert!(parse(b"<a>\xff</a>", XmlLimits::SMALL).is_err());
        let many = format!("<a>{}</a>", "<b/>".repeat(10_000));
        assert!(parse(many.as_bytes(), XmlLimits::SMALL).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail_cleanly(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&body, XmlLimits::SMALL);
        }

        #[test]
        fn written_text_reads_back(text in "\\PC{0,40}|[ \r\n\t&<>\"']{0,10}") {
            let mut xml = crate::xml::Writer::document(0);
            xml.root("a");
            xml.text("Key", &text);
            xml.close("a");
            let root = parse(&xml.into_vec(), XmlLimits::SMALL).unwrap();
            prop_assert_eq!(root.child_text("Key").unwrap().unwrap(), text);
        }
    }
}
