//! A server over the fake cluster for real clients, run by hand:
//! `PLINTH_GATEWAY_LISTEN=127.0.0.1:9100 cargo test -p plinth-gateway --test s3 serve -- --ignored`.

use crate::client::keys;
use crate::fake::Fake;
use plinth_gateway::{Gateway, GatewayConfig, Metrics, serve};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "serves until the process ends"]
async fn serve_for_real_clients() {
    let address = std::env::var("PLINTH_GATEWAY_LISTEN").expect("an address to listen on");
    let metrics = Metrics::register(&prometheus::Registry::new()).expect("fresh registry");
    let mut config = GatewayConfig::new(keys());
    config.base_domains = vec!["localhost".into()];
    let gateway = Gateway::new(config, Fake::default(), metrics);
    let listener = tokio::net::TcpListener::bind(address).await.expect("the address is free");
    serve(listener, None, gateway, std::future::pending()).await;
}
