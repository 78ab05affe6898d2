//! The demo's own S3 client: a few signed requests over HTTP, as any client would send them.

use aws_lc_rs::{digest, hmac};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::net::TcpStream;

/// Speaks S3 to one endpoint under one access key (SigV4, path style).
pub struct Caller {
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// The access key's id.
    pub access_key: String,
    /// The access key's secret.
    pub secret_key: String,
}

/// An answer: status and body.
pub type Answer = Result<(StatusCode, Bytes), String>;

impl Caller {
    /// Sends one request; `path` needs no escaping: letters, digits, `/`, `-`, `.` alone.
    pub async fn send(&self, method: Method, path: &str, body: Bytes) -> Answer {
        let now = OffsetDateTime::from_unix_timestamp((crate::node::wall_clock_ms() / 1000) as i64)
            .map_err(|error| error.to_string())?;
        let stamp = now
            .format(format_description!("[year][month][day]T[hour][minute][second]Z"))
            .map_err(|error| error.to_string())?;
        let payload = hex(digest::digest(&digest::SHA256, &body).as_ref());
        let host = self.endpoint.to_string();
        let authorization = self.authorization(&method, path, &host, &stamp, &payload);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &host)
            .header("x-amz-date", &stamp)
            .header("x-amz-content-sha256", &payload)
            .header("authorization", authorization)
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        let stream = TcpStream::connect(self.endpoint).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        driver.abort();
        Ok((status, body))
    }

    fn authorization(&self, method: &Method, path: &str, host: &str, stamp: &str, payload: &str) -> String {
        const SIGNED: &str = "host;x-amz-content-sha256;x-amz-date";
        let canonical = format!(
            "{method}\n{path}\n\nhost:{host}\nx-amz-content-sha256:{payload}\nx-amz-date:{stamp}\n\n{SIGNED}\n{payload}"
        );
        let day = &stamp[..8];
        let scope = format!("{day}/us-east-1/s3/aws4_request");
        let hashed = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashed}");
        let mut key = format!("AWS4{}", self.secret_key).into_bytes();
        for part in [day, "us-east-1", "s3", "aws4_request", &text] {
            key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
        }
        let signature = hex(&key);
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={SIGNED}, Signature={signature}",
            self.access_key
        )
    }
}

/// Returns bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
