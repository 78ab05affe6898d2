//! Drives the Rust S3 SDKs against a server: `plinth-rust-clients CLIENT FACT --endpoint URL --bucket NAME`.
//!
//! Each fact is one function that panics with a reason when it does not hold; keys come from the environment.

mod aws;
mod store;

use std::collections::HashMap;

/// Sizes around the limits inside the server.
pub const SIZES: [usize; 9] = [0, 1, 4096, 4097, 65_492, 65_536, 1 << 20, (1 << 20) + 1, 6 << 20];

/// Bytes that no other seed has.
pub fn body(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(size).collect()
}

/// Where the server is and who asks.
pub struct Target {
    /// The endpoint's address.
    pub endpoint: String,
    /// An empty bucket.
    pub bucket: String,
    /// Access key id.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    /// Region to sign for.
    pub region: String,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [client, fact, options @ ..] = words.as_slice() else {
        panic!("usage: plinth-rust-clients CLIENT FACT --endpoint URL --bucket NAME");
    };
    let options: HashMap<&str, &str> =
        options.chunks(2).map(|pair| (pair[0].as_str(), pair.get(1).map_or("", String::as_str))).collect();
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let target = Target {
        endpoint: options["--endpoint"].to_string(),
        bucket: options["--bucket"].to_string(),
        access_key: variable("AWS_ACCESS_KEY_ID"),
        secret_key: variable("AWS_SECRET_ACCESS_KEY"),
        region: variable("AWS_REGION"),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match (client.as_str(), fact.as_str()) {
            ("aws-sdk-s3", "sizes") => aws::sizes(&target).await,
            ("aws-sdk-s3", "checksums") => aws::checksums(&target).await,
            ("aws-sdk-s3", "multipart") => aws::multipart(&target).await,
            ("aws-sdk-s3", "conditions") => aws::conditions(&target).await,
            ("object-store", "sizes") => store::sizes(&target).await,
            ("object-store", "conditions") => store::conditions(&target).await,
            ("object-store", "race") => store::race(&target).await,
            ("object-store", "listing") => store::listing(&target).await,
            _ => panic!("unknown client or fact: {client} {fact}"),
        }
    });
    println!("{client} {fact}: holds");
}
