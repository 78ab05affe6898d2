//! Signature Version 4 in the `Authorization` header, as cheap as a load generator needs it.
//!
//! The signing key of the day is derived once and kept, so that a request costs two hashes and one HMAC.
//! Tested against the examples that AWS publishes in its S3 API reference ("Signature Calculations: Examples").

use aws_lc_rs::{digest, hmac};
use std::fmt::Write;

/// The payload hash that says "the body is not part of the signature".
pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// Who signs, and for which region; the service is always `s3`.
#[derive(Clone)]
pub struct Signer {
    access_key: String,
    secret_key: String,
    region: String,
    /// The day (YYYYMMDD) and its derived key.
    day_key: Option<(String, hmac::Key)>,
}

/// What is signed: everything already in the form that goes over the wire.
pub struct Subject<'a> {
    /// GET, PUT and so on.
    pub method: &'a str,
    /// The path, percent-encoded once.
    pub path: &'a str,
    /// The query in canonical form: encoded, sorted, every name with `=`.
    pub query: &'a str,
    /// Lower-case names with values, sorted by name; `host` and all `x-amz-` headers among them.
    pub headers: &'a [(&'a str, &'a str)],
    /// Lower-case hexadecimal SHA-256 of the body, or [`UNSIGNED_PAYLOAD`].
    pub payload_hash: &'a str,
    /// The time of the request, as in 20130524T000000Z.
    pub timestamp: &'a str,
}

impl Signer {
    /// Makes a signer for one access key.
    pub fn new(access_key: &str, secret_key: &str, region: &str) -> Signer {
        let own = str::to_string;
        Signer { access_key: own(access_key), secret_key: own(secret_key), region: own(region), day_key: None }
    }

    /// Returns the value of the `Authorization` header.
    pub fn authorization(&mut self, subject: &Subject<'_>) -> String {
        let day = &subject.timestamp[..8];
        let names = subject.headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let mut canonical = format!("{}\n{}\n{}\n", subject.method, subject.path, subject.query);
        for (name, value) in subject.headers {
            let _ = writeln!(canonical, "{name}:{}", value.trim());
        }
        let _ = write!(canonical, "\n{names}\n{}", subject.payload_hash);

        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let request_hash = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let to_sign = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{request_hash}", subject.timestamp);
        let signature = hex(hmac::sign(self.key_of(day), to_sign.as_bytes()).as_ref());
        let access_key = &self.access_key;
        format!("AWS4-HMAC-SHA256 Credential={access_key}/{scope},SignedHeaders={names},Signature={signature}")
    }

    fn key_of(&mut self, day: &str) -> &hmac::Key {
        if self.day_key.as_ref().is_none_or(|(known, _)| known != day) {
            let mut key = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{}", self.secret_key).as_bytes());
            for word in [day, &self.region, "s3", "aws4_request"] {
                key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, word.as_bytes()).as_ref());
            }
            self.day_key = Some((day.to_string(), key));
        }
        &self.day_key.as_ref().expect("the key of the day was just derived").1
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const TIMESTAMP: &str = "20130524T000000Z";

    /// Signs with the credentials of AWS's examples and returns the signature alone.
    fn signature(method: &str, path: &str, query: &str, payload_hash: &str, more: &[(&str, &str)]) -> String {
        let mut headers = vec![
            ("host", "examplebucket.s3.amazonaws.com"),
            ("x-amz-content-sha256", payload_hash),
            ("x-amz-date", TIMESTAMP),
        ];
        headers.extend_from_slice(more);
        headers.sort();
        let mut signer = Signer::new("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1");
        let subject = Subject { method, path, query, headers: &headers, payload_hash, timestamp: TIMESTAMP };
        let header = signer.authorization(&subject);
        assert!(
            header.starts_with("AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,")
        );
        header.rsplit_once('=').unwrap().1.to_string()
    }

    #[test]
    fn get_object_example_of_aws() {
        let found = signature("GET", "/test.txt", "", EMPTY, &[("range", "bytes=0-9")]);
        assert_eq!(found, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
    }

    #[test]
    fn put_object_example_of_aws() {
        let hash = hex(digest::digest(&digest::SHA256, b"Welcome to Amazon S3.").as_ref());
        let more = [("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")];
        let found = signature("PUT", "/test%24file.text", "", &hash, &more);
        assert_eq!(found, "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
    }

    #[test]
    fn bucket_lifecycle_example_of_aws() {
        let found = signature("GET", "/", "lifecycle=", EMPTY, &[]);
        assert_eq!(found, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
    }

    #[test]
    fn list_objects_example_of_aws() {
        let found = signature("GET", "/", "max-keys=2&prefix=J", EMPTY, &[]);
        assert_eq!(found, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
    }

    #[test]
    fn a_kept_key_is_not_used_on_another_day() {
        let mut signer = Signer::new("A", "S", "r");
        let mut on = |timestamp| {
            let headers = [("host", "h")];
            signer.authorization(&Subject {
                method: "GET",
                path: "/",
                query: "",
                headers: &headers,
                payload_hash: EMPTY,
                timestamp,
            })
        };
        let (first, other, again) = (on("20130524T000000Z"), on("20130525T000000Z"), on("20130524T000000Z"));
        assert_ne!(first, other);
        assert_eq!(first, again);
    }
}
