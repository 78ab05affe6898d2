//! The S3 contract over a real socket, against a cluster in memory. Each test carries the id of
//! the statement that it proves.

mod auth;
mod client;
mod copies;
mod fake;
mod http;
mod lists;
mod multipart;
mod objects;
mod serve;
mod writes;
