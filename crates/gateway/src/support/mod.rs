//! The support table: what the gateway does with every word of S3's vocabulary.
//!
//! Principle 1 of the S3 contract: refuse, never ignore. Each operation, header, query parameter
//! and XML element stands in a table here as implemented, harmless or refused; the router, the
//! checks and the published matrix all read the same rows. What is not in a table and looks like a
//! word of ours (`x-amz-*`, `x-plinth-*`, an XML element) is refused too.

mod table;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use crate::error::{Code, S3Error, S3Result};
use crate::head::Head;
use crate::xml::Element;
pub use table::{COMPLETE, CREATE_BUCKET, DELETE};
pub use table::{
    Document, ELEMENTS, ElementRow, HEADERS, HeaderRow, OPERATIONS, OperationRow, PARAMETERS, ParameterRow,
};

/// What the gateway does with a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Does what S3 says.
    Implemented,
    /// Accepts it: doing so promises nothing.
    Harmless,
    /// Answers this code.
    Refused(Code),
}

impl Support {
    fn name(self) -> String {
        match self {
            Support::Implemented => "implemented".into(),
            Support::Harmless => "harmless".into(),
            Support::Refused(code) => format!("refused: {} {code}", code.status()),
        }
    }
}

/// The values that a header may have.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// The operation judges them.
    Any,
    /// One of these, else the code.
    OneOf(&'static [&'static str], Code),
}

/// What a request path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// `/`
    Service,
    /// `/bucket`
    Bucket,
    /// `/bucket/key`
    Object,
}

/// The operations that the gateway answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Operation {
    ListBuckets,
    CreateBucket,
    HeadBucket,
    DeleteBucket,
    GetBucketLocation,
    GetBucketVersioning,
    GetBucketAcl,
    GetBucketAccelerateConfiguration,
    GetBucketConfiguration,
    ListObjects,
    ListObjectsV2,
    ListMultipartUploads,
    DeleteObjects,
    PutObject,
    CopyObject,
    GetObject,
    HeadObject,
    DeleteObject,
    GetObjectAttributes,
    GetObjectAcl,
    GetObjectTagging,
    CreateMultipartUpload,
    UploadPart,
    UploadPartCopy,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListParts,
}

impl Operation {
    /// Returns the name as in S3's API reference; also the `api` label of metrics.
    pub fn name(self) -> &'static str {
        OPERATIONS.iter().find(|row| row.operation == Some(self)).map_or("Unknown", |row| row.name)
    }
}

/// Finds the row of a request's operation.
///
/// # Errors
/// `InvalidArgument` for several subresources at once (A2), `MethodNotAllowed` for a method that
/// the resource does not have.
pub fn route(head: &Head) -> S3Result<&'static OperationRow> {
    let level = match (&head.target.bucket, &head.target.key) {
        (None, _) => Level::Service,
        (Some(_), None) => Level::Bucket,
        (Some(_), Some(_)) => Level::Object,
    };
    let subresource = subresource(head)?;
    let method = head.method.as_str();
    let candidates = OPERATIONS.iter().filter(|row| {
        row.level == level
            && row.method == method
            && row.subresource == subresource
            && row.header.is_none_or(|name| head.has(name))
            && row.parameter.is_none_or(|(name, value)| head.query.get(name) == Some(value))
    });
    // The row with the most conditions wins: a copy is a PUT with one header more.
    let found = candidates.max_by_key(|row| (row.header.is_some(), row.parameter.is_some()));
    match (found, subresource) {
        (Some(row), _) => Ok(row),
        (None, Some(name)) if !table::is_used_at(name, level) => {
            Err(S3Error::not_implemented(&format!("The subresource {name} on this resource")))
        }
        (None, _) => Err(S3Error::from(Code::MethodNotAllowed)
            .element("Method", method.to_owned())
            .element("ResourceType", format!("{level:?}").to_uppercase())),
    }
}

fn subresource(head: &Head) -> S3Result<Option<&'static str>> {
    let mut found: Option<&'static str> = None;
    for (name, _) in head.query.pairs() {
        let Some(name) = table::SUBRESOURCES.iter().find(|known| **known == name) else { continue };
        match found {
            Some(first) if first != *name => {
                return Err(S3Error::argument(
                    "ResourceType",
                    name,
                    format!("Conflicting query string parameters: {first}, {name}"),
                ));
            }
            _ => found = Some(name),
        }
    }
    Ok(found)
}

/// Checks a request against the tables: operation, headers, query parameters.
///
/// # Errors
/// The code of the first row that refuses, naming the word.
pub fn check(head: &Head, row: &'static OperationRow) -> S3Result<Operation> {
    let operation = match (row.support, row.operation) {
        (Support::Refused(Code::NotImplemented), _) => return Err(S3Error::not_implemented(row.name)),
        (Support::Refused(code), _) => return Err(code.into()),
        (_, Some(operation)) => operation,
        (_, None) => return Err(S3Error::not_implemented(row.name)),
    };
    for name in head.headers.keys() {
        check_header(head, name.as_str(), operation)?;
    }
    let mut seen: Vec<&str> = Vec::new();
    for (name, value) in head.query.pairs() {
        let folded = name.to_ascii_lowercase();
        if folded.starts_with("x-amz-") {
            // A signed parameter counts as the header of its name.
            if !table::SIGNATURE_PARAMETERS.contains(&folded.as_str()) {
                check_header(head, &folded, operation)?;
            }
            continue;
        }
        let Some(row) = PARAMETERS.iter().find(|row| row.name == name) else { continue };
        if seen.contains(&name) {
            return Err(S3Error::argument(name, value, "The parameter stands twice."));
        }
        seen.push(name);
        let applies = row.operations.is_empty() || row.operations.contains(&operation);
        match row.support {
            Support::Refused(Code::NotImplemented) => return Err(not_here("parameter", name, operation)),
            Support::Refused(code) => return Err(code.into()),
            Support::Implemented if !applies => return Err(not_here("parameter", name, operation)),
            Support::Implemented | Support::Harmless => {}
        }
    }
    Ok(operation)
}

fn not_here(kind: &str, name: &str, operation: Operation) -> S3Error {
    Code::NotImplemented
        .with(format!("The {kind} {name} is not implemented for {}.", operation.name()))
        .element("Header", name)
}

/// Exact names by hash: a request has a dozen headers, the table many dozens.
static EXACT: LazyLock<HashMap<&'static str, &'static HeaderRow>> =
    LazyLock::new(|| HEADERS.iter().filter(|row| !row.name.ends_with('*')).map(|row| (row.name, row)).collect());
static PREFIXES: LazyLock<Vec<(&'static str, &'static HeaderRow)>> =
    LazyLock::new(|| HEADERS.iter().filter_map(|row| Some((row.name.strip_suffix('*')?, row))).collect());

fn find_header(name: &str) -> Option<&'static HeaderRow> {
    let exact = EXACT.get(name).copied();
    exact.or_else(|| PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, row)| *row))
}

fn check_header(head: &Head, name: &str, operation: Operation) -> S3Result<()> {
    let Some(row) = find_header(name) else {
        let ours = name.starts_with("x-amz-") || name.starts_with("x-plinth-");
        return if ours { Err(not_here("header", name, operation)) } else { Ok(()) };
    };
    match row.support {
        Support::Refused(Code::NotImplemented) => Err(not_here("header", name, operation)),
        Support::Refused(code) => Err(code.with(format!("{} ({name})", code.text())).element("Header", name)),
        Support::Harmless => Ok(()),
        Support::Implemented if !row.is_known_to(operation) && row.harmless_because.is_none() => {
            Err(not_here("header", name, operation))
        }
        Support::Implemented => match row.values {
            Values::Any => Ok(()),
            Values::OneOf(values, code) => {
                let value = head.header(name)?.unwrap_or_default();
                if values.contains(&value.as_ref()) {
                    return Ok(());
                }
                let text = format!("The value '{value}' of {name} is not one of: {}.", values.join(", "));
                Err(code.with(text).element("Header", name).element("ArgumentValue", value.into_owned()))
            }
        },
    }
}

/// Checks a request document: its root, and each element by its path.
///
/// # Errors
/// `MalformedXML` for another root, `NotImplemented` naming an element that is not in the table.
pub fn check_document(root: &Element, document: &Document) -> S3Result<()> {
    if root.name != document.root {
        return Err(Code::MalformedXML.into());
    }
    let mut path = String::new();
    root.children.iter().try_for_each(|child| check_element(child, document, &mut path))
}

fn check_element(element: &Element, document: &Document, path: &mut String) -> S3Result<()> {
    let length = path.len();
    if length > 0 {
        path.push('/');
    }
    path.push_str(&element.name);
    let row = document.elements.iter().find(|row| row.path == path.as_str());
    match row.map(|row| row.support) {
        Some(Support::Implemented | Support::Harmless) => {}
        Some(Support::Refused(code)) if code != Code::NotImplemented => {
            return Err(code.with(format!("{} ({path})", code.text())));
        }
        _ => return Err(S3Error::not_implemented(&format!("The element {}/{path}", document.root))),
    }
    element.children.iter().try_for_each(|child| check_element(child, document, path))?;
    path.truncate(length);
    Ok(())
}

/// Writes the support matrix as Markdown, from the very rows that the gateway obeys.
pub fn matrix() -> String {
    let mut out =
        String::from("# What Plinth does with S3's vocabulary\n\nGenerated from the gateway's support table.\n");
    out.push_str("\n## Operations\n\n| operation | request | support |\n| --- | --- | --- |\n");
    for row in OPERATIONS {
        let place = match row.level {
            Level::Service => "/",
            Level::Bucket => "/bucket",
            Level::Object => "/bucket/key",
        };
        let query = row.subresource.map(|name| format!("?{name}")).unwrap_or_default();
        let _ = writeln!(out, "| {} | {} {place}{query} | {} |", row.name, row.method, row.support.name());
    }
    let operations = |operations: &[Operation]| match operations {
        [] => "all".to_owned(),
        some => some.iter().map(|operation| operation.name()).collect::<Vec<_>>().join(", "),
    };
    out.push_str("\n## Headers\n\nElsewhere than listed, an implemented header is refused with 501, unless the last column says why it is harmless there.\n\n");
    out.push_str("| header | operations | support | values | harmless because |\n| --- | --- | --- | --- | --- |\n");
    for row in HEADERS {
        let values = match row.values {
            Values::Any => String::new(),
            Values::OneOf(values, code) => format!("{}; else {} {code}", values.join(", "), code.status()),
        };
        let known = operations(row.operations);
        let because = row.harmless_because.unwrap_or_default();
        let _ = writeln!(out, "| `{}` | {known} | {} | {values} | {because} |", row.name, row.support.name());
    }
    out.push_str("\nAny other `x-amz-*` or `x-plinth-*` header: refused with 501.\n");
    out.push_str("\n## Query parameters\n\n| parameter | operations | support |\n| --- | --- | --- |\n");
    for row in PARAMETERS {
        let _ = writeln!(out, "| `{}` | {} | {} |", row.name, operations(row.operations), row.support.name());
    }
    out.push_str("\n## XML elements\n\n| document | element | support |\n| --- | --- | --- |\n");
    for document in ELEMENTS {
        for row in document.elements {
            let _ = writeln!(out, "| {} | `{}` | {} |", document.root, row.path, row.support.name());
        }
    }
    out
}

#[cfg(test)]
mod tests;
