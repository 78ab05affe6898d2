//! Walks the tables: every row does what it says.

use super::*;
use crate::head::Head;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> Head {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::try_from(*name).expect("a name"), HeaderValue::try_from(*value).expect("a value"));
    }
    let uri: Uri = uri.parse().expect("a URI");
    Head::read(Method::from_bytes(method.as_bytes()).expect("a method"), &uri, map, &[], false).expect("a head")
}

/// A request that looks like a row.
fn request_of(row: &OperationRow, extra: &[(&str, &str)], query: &str) -> Head {
    let path = match row.level {
        Level::Service => "/",
        Level::Bucket => "/bucket",
        Level::Object => "/bucket/key",
    };
    let mut parts: Vec<String> = row.subresource.iter().map(|name| (*name).to_owned()).collect();
    parts.extend(row.parameter.iter().map(|(name, value)| format!("{name}={value}")));
    if !query.is_empty() {
        parts.push(query.to_owned());
    }
    let query = if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) };
    let mut headers: Vec<(&str, &str)> = row.header.iter().map(|name| (*name, "/b/k")).collect();
    headers.extend_from_slice(extra);
    head(row.method, &format!("{path}{query}"), &headers)
}

#[test]
fn every_operation_is_routed_to_its_own_row() {
    for row in OPERATIONS {
        let request = request_of(row, &[], "");
        let found = route(&request).expect(row.name);
        assert_eq!(found.name, row.name);
        match row.support {
            Support::Implemented => assert_eq!(check(&request, found).expect(row.name), row.operation.expect("set")),
            Support::Refused(code) => assert_eq!(check(&request, found).expect_err(row.name).code(), code),
            Support::Harmless => panic!("an operation is never harmless"),
        }
    }
}

#[test]
fn every_header_does_what_its_row_says_for_every_operation() {
    for operation in OPERATIONS.iter().filter(|row| row.operation.is_some()) {
        for header in HEADERS {
            let name = header.name.replace('*', "x");
            if operation.header == Some(name.as_str()) {
                continue;
            }
            let good = match header.values {
                Values::Any => "v",
                Values::OneOf(values, _) => values[0],
            };
            let request = request_of(operation, &[(name.as_str(), good)], "");
            // x-amz-copy-source turns a PUT into a copy: that is another row's business.
            let row = route(&request).expect("routed");
            let known = header.operations.is_empty() || row.operation.is_some_and(|op| header.operations.contains(&op));
            let result = check(&request, row);
            match header.support {
                Support::Implemented if known => assert!(result.is_ok(), "{name} on {}", operation.name),
                Support::Harmless => assert!(result.is_ok(), "{name} on {}", operation.name),
                Support::Implemented if header.harmless_because.is_some() => {
                    assert!(result.is_ok(), "{name} on {}", operation.name);
                }
                Support::Implemented => {
                    assert_eq!(result.expect_err(&name).code(), Code::NotImplemented, "{name} on {}", operation.name);
                }
                Support::Refused(code) => assert_eq!(result.expect_err(&name).code(), code, "{name}"),
            }
            if let (Values::OneOf(_, code), true) = (header.values, known) {
                let request = request_of(operation, &[(name.as_str(), "no-such-value")], "");
                assert_eq!(check(&request, row).expect_err(&name).code(), code, "{name}");
            }
        }
    }
}

#[test]
fn every_parameter_does_what_its_row_says_for_every_operation() {
    for operation in OPERATIONS.iter().filter(|row| row.operation.is_some()) {
        for parameter in PARAMETERS {
            let is_own = operation.subresource == Some(parameter.name)
                || operation.parameter.is_some_and(|(name, _)| name == parameter.name);
            let makes_another = table::SUBRESOURCES.contains(&parameter.name) || parameter.name == "list-type";
            if is_own || makes_another {
                continue;
            }
            let request = request_of(operation, &[], &format!("{}=1", parameter.name));
            let row = route(&request).expect("routed");
            let known = parameter.operations.is_empty()
                || operation.operation.is_some_and(|op| parameter.operations.contains(&op));
            let result = check(&request, row);
            match parameter.support {
                Support::Implemented if known => assert!(result.is_ok(), "{} on {}", parameter.name, operation.name),
                Support::Harmless => assert!(result.is_ok(), "{} on {}", parameter.name, operation.name),
                Support::Implemented | Support::Refused(_) => {
                    let error = result.expect_err(parameter.name);
                    assert_eq!(error.code(), Code::NotImplemented, "{} on {}", parameter.name, operation.name);
                }
            }
        }
    }
}

#[test]
fn unknown_words_of_ours_are_refused_and_strangers_ignored() {
    let row = route(&head("PUT", "/b/k", &[])).expect("routed");
    for name in ["x-amz-unheard-of", "x-plinth-unheard-of"] {
        let error = check(&head("PUT", "/b/k", &[(name, "1")]), row).expect_err(name);
        assert_eq!(error.code(), Code::NotImplemented);
        assert!(error.to_string().contains(name), "names the word");
    }
    check(&head("PUT", "/b/k?utm_source=mail", &[("x-forwarded-for", "1.2.3.4"), ("dnt", "1")]), row).expect("ignored");
    let hoisted = head("PUT", "/b/k?x-amz-unheard-of=1", &[]);
    assert_eq!(check(&hoisted, row).expect_err("refused").code(), Code::NotImplemented);
    check(&head("PUT", "/b/k?x-id=PutObject", &[]), row).expect("harmless");
}

#[test]
fn a_directive_without_a_copy_source_is_harmless() {
    for (method, uri) in [("PUT", "/b/k"), ("POST", "/b/k?uploads"), ("PUT", "/b/k?uploadId=u&partNumber=1")] {
        for name in ["x-amz-metadata-directive", "x-amz-tagging-directive"] {
            let request = head(method, uri, &[(name, "REPLACE")]);
            check(&request, route(&request).expect("routed")).expect(name);
            let request = head(method, uri, &[(name, "PERHAPS")]);
            let error = check(&request, route(&request).expect("routed")).expect_err("no such value");
            assert_eq!(error.code(), Code::InvalidArgument);
        }
        // What changes the meaning of a plain upload is still refused.
        let request = head(method, uri, &[("x-amz-copy-source-if-match", "e")]);
        let error = check(&request, route(&request).expect("routed")).expect_err("no source to compare");
        assert_eq!(error.code(), Code::NotImplemented);
    }
}

#[test]
fn every_harmless_header_says_why() {
    for row in HEADERS.iter().filter(|row| row.support == Support::Harmless) {
        assert!(row.harmless_because.is_some_and(|because| !because.is_empty()), "{}", row.name);
    }
}

#[test]
fn a2_conflicting_subresources_are_refused() {
    assert_eq!(route(&head("GET", "/b?acl&policy", &[])).expect_err("conflict").code(), Code::InvalidArgument);
    assert_eq!(
        route(&head("GET", "/b/k?uploadId=1&tagging", &[])).expect_err("conflict").code(),
        Code::InvalidArgument
    );
    assert_eq!(route(&head("POST", "/b/k", &[])).expect_err("no such").code(), Code::MethodNotAllowed);
    assert_eq!(route(&head("PATCH", "/b/k", &[])).expect_err("no such").code(), Code::MethodNotAllowed);
    assert_eq!(route(&head("GET", "/b/k?website", &[])).expect_err("not here").code(), Code::NotImplemented);
}

#[test]
fn every_element_of_every_document_is_in_the_table() {
    for document in ELEMENTS {
        for row in document.elements {
            // Nest the element under its parents.
            let names: Vec<&str> = row.path.split('/').collect();
            let mut element = Element { name: (*names.last().expect("a name")).to_owned(), ..Element::default() };
            for name in names.iter().rev().skip(1) {
                element = Element { name: (*name).to_owned(), text: String::new(), children: vec![element] };
            }
            let root = Element { name: document.root.to_owned(), text: String::new(), children: vec![element] };
            match row.support {
                Support::Implemented | Support::Harmless => check_document(&root, document).expect(row.path),
                Support::Refused(code) => {
                    assert_eq!(check_document(&root, document).expect_err(row.path).code(), code);
                }
            }
        }
        let stranger = Element { name: "Stranger".into(), ..Element::default() };
        let root = Element { name: document.root.to_owned(), text: String::new(), children: vec![stranger] };
        assert_eq!(check_document(&root, document).expect_err("stranger").code(), Code::NotImplemented);
    }
}

#[test]
fn the_matrix_shows_every_row() {
    let matrix = matrix();
    for row in OPERATIONS {
        assert!(matrix.contains(row.name), "{}", row.name);
    }
    for row in HEADERS {
        assert!(matrix.contains(&format!("`{}`", row.name)), "{}", row.name);
    }
}
