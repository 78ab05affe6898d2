//! The HTTP/1.1 server: accepts, limits, serves, and stops in order.

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::gateway::{DRAIN_BYTES_MAX, Gateway, Origin};
use crate::guard::{Guarded, Watch};
use crate::head::HEADER_COUNT_MAX;
use crate::store::Store;
use plinth_transport::{HandshakeGate, Pass, source_of};

/// How long a TLS handshake may take.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a closing connection waits for the client to stop sending, so that the last answer is
/// not lost to a reset.
const LINGER_TIME_MAX: Duration = Duration::from_secs(2);
/// TLS handshakes that the socket begins per second; each address gets three quarters. More than one address may have
/// connections, so that clients behind one address can all come at once, as after a restart.
const HANDSHAKES_PER_SECOND_MAX: u32 = 2_000;
/// How often refused connections are told of.
const REFUSALS_TOLD_EVERY: Duration = Duration::from_secs(10);
/// Pause after the listener failed, typically for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// hyper's read buffer of one connection: the memory of a body that nobody takes.
const READ_BUFFER_BYTES_MAX: usize = 256 << 10;

/// Serves S3 on a listener until `shutdown` is ready; then takes no more connections, lets requests
/// in flight finish within the configured time, and returns.
pub async fn serve<S: Store>(
    listener: TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
    gateway: Gateway<S>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let (stop, stopped) = watch::channel(false);
    let stopping = Arc::new(AtomicBool::new(false));
    let sources = Sources::default();
    // Of connections half open there may be as many as of connections: `Sources` bounds each address.
    let at_once_max = u32::try_from(gateway.inner.config.connections_max).unwrap_or(u32::MAX);
    let gate = HandshakeGate::with_bounds(HANDSHAKES_PER_SECOND_MAX, at_once_max);
    let mut connections = JoinSet::new();
    // A flood must not fill the log: one line for all that was refused since the last.
    let (mut refused, mut told) = (0u64, None::<Instant>);
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let config = &gateway.inner.config;
        let place = sources.enter(address, config.connections_per_source_max);
        let place = place.filter(|_| connections.len() < config.connections_max);
        let pass = match (&place, &tls) {
            (Some(_), Some(_)) => gate.admit(address.ip(), Instant::now()).map(Some),
            _ => Some(None),
        };
        // Beyond the limits the connection is closed at once: clients try again.
        let (Some(place), Some(pass)) = (place, pass) else {
            refused += 1;
            if told.is_none_or(|told| told.elapsed() >= REFUSALS_TOLD_EVERY) {
                tracing::warn!(source = %address.ip(), refused, "too many connections");
                (told, refused) = (Some(Instant::now()), 0);
            }
            continue;
        };
        let (gateway, tls, stopped) = (gateway.clone(), tls.clone(), stopped.clone());
        let stopping = Arc::clone(&stopping);
        connections.spawn(async move {
            let _place = place;
            accept(stream, tls, pass, gateway, stopped, stopping).await;
        });
    }
    drop(listener);
    stopping.store(true, Ordering::Relaxed);
    stop.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(gateway.inner.config.drain, all).await.is_err() {
        tracing::warn!("requests still in flight are cut off");
        connections.shutdown().await;
    }
}

async fn accept<S: Store>(
    stream: TcpStream,
    tls: Option<tokio_rustls::TlsAcceptor>,
    pass: Option<Pass>,
    gateway: Gateway<S>,
    stopped: watch::Receiver<bool>,
    stopping: Arc<AtomicBool>,
) {
    // Head and body may leave in two writes: without this, small answers wait 40 ms for an
    // acknowledgement.
    let (Ok(()), Ok(source)) = (stream.set_nodelay(true), stream.peer_addr()) else { return };
    let watch = Arc::new(Watch::default());
    let origin = |encrypted| Arc::new(Origin { watch, encrypted, source: source_of(source.ip()), stopping });
    match tls {
        None => serve_stream(stream, origin(false), gateway, stopped).await,
        Some(acceptor) => {
            let shaken = tokio::time::timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream)).await;
            drop(pass);
            match shaken {
                Ok(Ok(stream)) => serve_stream(stream, origin(true), gateway, stopped).await,
                Ok(Err(error)) => tracing::debug!(%error, "handshake failed"),
                Err(_) => tracing::debug!("handshake timed out"),
            }
        }
    }
}

/// Serves one connection over any stream.
async fn serve_stream<S: Store, T>(
    stream: T,
    origin: Arc<Origin>,
    gateway: Gateway<S>,
    mut stopped: watch::Receiver<bool>,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(Guarded::new(stream, Arc::clone(&origin.watch), gateway.inner.config.patience));
    let service = service_fn(|request: Request<Incoming>| {
        // Read here, not in the future: what the guard says belongs to this very head.
        let refusal = origin.watch.refusal();
        origin.watch.set_busy(true);
        let (gateway, origin) = (gateway.clone(), Arc::clone(&origin));
        Box::pin(async move { Ok::<_, Infallible>(gateway.handle(request, &origin, refusal).await) })
    });
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).max_headers(HEADER_COUNT_MAX).max_buf_size(READ_BUFFER_BYTES_MAX).writev(true);
    let mut connection = builder.serve_connection(io, service);
    let served = tokio::select! {
        served = poll_fn(|cx| connection.poll_without_shutdown(cx)) => Some(served),
        _ = stopped.wait_for(|stopped| *stopped) => None,
    };
    let served = match served {
        Some(served) => served,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
        // An answer that broke off must not look like one that ended: no orderly close follows.
        return;
    }
    linger(connection.into_parts().io.into_inner().into_inner()).await;
}

/// Closes our side and takes a little of what the client still sends (H2).
async fn linger<T: AsyncRead + AsyncWrite + Unpin>(mut stream: T) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut left = DRAIN_BYTES_MAX as usize;
    let mut space = [0u8; 8 << 10];
    let _ = tokio::time::timeout(LINGER_TIME_MAX, async {
        while left > 0 {
            match stream.read(&mut space).await {
                Ok(0) | Err(_) => return,
                Ok(count) => left = left.saturating_sub(count),
            }
        }
    })
    .await;
}

/// Counts connections by address; of IPv6 the 64 bits in front count, as everywhere.
#[derive(Clone, Default)]
struct Sources {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection's place; given back when dropped.
struct Place {
    sources: Sources,
    address: IpAddr,
}

impl Sources {
    fn enter(&self, address: SocketAddr, max: usize) -> Option<Place> {
        let address = source_of(address.ip());
        let mut counts = self.counts.lock().expect("no holder of this lock panics");
        let count = counts.entry(address).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Place { sources: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.sources.counts.lock().expect("no holder of this lock panics");
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_ipv6_network_share_their_connections() {
        let sources = Sources::default();
        let address = |text: &str| SocketAddr::new(text.parse().expect("an address"), 1);
        let first = sources.enter(address("2001:db8::1"), 2).expect("free");
        let _second = sources.enter(address("2001:db8::ffff:1"), 2).expect("free");
        assert!(sources.enter(address("2001:db8:0:0:7::1"), 2).is_none(), "the same /64");
        let _other = sources.enter(address("2001:db8:0:1::1"), 2).expect("another /64");
        drop(first);
        let _again = sources.enter(address("2001:db8:0:0:7::1"), 2).expect("free again");
        let _mapped = sources.enter(address("::ffff:10.0.0.1"), 1).expect("free");
        assert!(sources.enter(address("10.0.0.1"), 1).is_none(), "the same IPv4 address");
    }
}
