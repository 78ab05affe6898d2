//! Client tokens: how a repeated request is known for what it is (section 7 of the S3 contract).

use aws_lc_rs::digest::{Context, SHA256};
use plinth_protocol::UploadId;
use plinth_protocol::meta::{ClientToken, Expectation, REQUEST_MEMORY_MS, TOKEN_MEMORY_MS};
use plinth_protocol::wire::Wire;

use crate::error::{S3Error, S3Result};
use crate::head::Head;
use crate::signature::Verified;
use crate::support::Operation;

const TOKEN_HEADER: &str = "x-amz-client-token";
/// AWS SDKs repeat this on every attempt of one call.
const INVOCATION_HEADER: &str = "amz-sdk-invocation-id";
/// Longest token in characters.
const TOKEN_CHARACTERS_MAX: usize = 64;

/// A hash over length-prefixed fields, so that no two lists of fields collide.
pub struct FieldHash {
    context: Context,
}

impl FieldHash {
    /// Starts a hash under a name.
    pub fn new(name: &str) -> Self {
        let mut hash = FieldHash { context: Context::new(&SHA256) };
        hash.field(name.as_bytes());
        hash
    }

    /// Adds a field.
    pub fn field(&mut self, bytes: &[u8]) -> &mut Self {
        self.context.update(&(bytes.len() as u64).to_le_bytes());
        self.context.update(bytes);
        self
    }

    /// Returns the first 128 bits.
    pub fn finish(self) -> u128 {
        let digest = self.context.finish();
        let mut cut = [0; 16];
        cut.copy_from_slice(&digest.as_ref()[..16]);
        u128::from_le_bytes(cut)
    }
}

/// A token as sent, before the request's parameters are known.
pub struct TokenScope {
    scope: u128,
    memory_ms: u64,
    strict: bool,
}

impl TokenScope {
    /// Reads a request's token: its own, or on conditional writes the one that SDKs imply.
    ///
    /// # Errors
    /// `InvalidArgument` for a token that is not 1 to 64 printable ASCII characters.
    pub fn read(
        head: &Head,
        verified: &Verified,
        operation: Operation,
        expectation: Option<&Expectation>,
    ) -> S3Result<Option<Self>> {
        if let Some(token) = head.header(TOKEN_HEADER)? {
            let printable = token.bytes().all(|byte| (33..=126).contains(&byte));
            if token.is_empty() || token.len() > TOKEN_CHARACTERS_MAX || !printable {
                let text = "A client token has 1 to 64 characters of ASCII 33 to 126.";
                return Err(S3Error::argument(TOKEN_HEADER, &token, text));
            }
            let scope = scope(head, verified, operation, "client", &token);
            return Ok(Some(TokenScope { scope, memory_ms: TOKEN_MEMORY_MS, strict: true }));
        }
        // Only a condition makes a repetition differ from the first try.
        let trusted = head.encrypted || verified.is_signed(INVOCATION_HEADER);
        match head.header(INVOCATION_HEADER)? {
            Some(id) if expectation.is_some() && trusted && !id.is_empty() => {
                let scope = scope(head, verified, operation, "implied", &id);
                Ok(Some(TokenScope { scope, memory_ms: REQUEST_MEMORY_MS, strict: false }))
            }
            _ => Ok(None),
        }
    }

    /// Completes the token with the request's parameters, which `parameters` adds.
    pub fn complete(&self, parameters: impl FnOnce(&mut FieldHash)) -> ClientToken {
        let mut hash = FieldHash::new("parameters");
        parameters(&mut hash);
        ClientToken { scope: self.scope, parameters: hash.finish(), memory_ms: self.memory_ms, strict: self.strict }
    }

    /// Returns the upload id that this token always gives: a repeated CreateMultipartUpload names the
    /// same upload.
    pub fn upload_id(&self) -> UploadId {
        let mut hash = FieldHash::new("upload");
        hash.field(&self.scope.to_le_bytes());
        UploadId(hash.finish())
    }
}

fn scope(head: &Head, verified: &Verified, operation: Operation, kind: &str, token: &str) -> u128 {
    let mut hash = FieldHash::new(kind);
    hash.field(verified.credential.account.as_bytes())
        .field(operation.name().as_bytes())
        .field(head.target.bucket.as_deref().unwrap_or_default().as_bytes())
        .field(head.target.key.as_deref().unwrap_or_default().as_bytes())
        .field(token.as_bytes());
    hash.finish()
}

/// Adds any record to a parameter hash.
pub fn add_record(hash: &mut FieldHash, record: &impl Wire) {
    hash.field(&record.to_wire());
}
