//! A caller that breaks rules: any certificate, any suite, any bytes. It blocks; run it apart.

use plinth_protocol::pool::BufferPool;
use plinth_protocol::wire::Wire;
use plinth_protocol::{ClusterId, Incarnation, NodeId};
use plinth_transport::NodeCertificate;
use plinth_transport::frame::{Bounds, Decoder, Frame, FrameKind, HELLO_VERSION, Hello, Lane, OutFrame};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use std::io::{Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Trusts everyone.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

pub struct RawClient {
    stream: StreamOwned<ClientConnection, TcpStream>,
    decoder: Decoder,
}

pub fn hello(node: u64) -> Hello {
    Hello {
        version: HELLO_VERSION,
        cluster: super::CLUSTER,
        node: NodeId(node),
        incarnation: Incarnation(1),
        lane: Lane::Bulk,
        peer_incarnation: None,
    }
}

pub fn hello_of_cluster(cluster: u128) -> Hello {
    Hello { cluster: ClusterId(cluster), ..hello(2) }
}

impl RawClient {
    /// Connects with this certificate, or none, and these suites, or all.
    pub fn connect(
        address: SocketAddr,
        certificate: Option<&NodeCertificate>,
        suites: Option<Vec<rustls::SupportedCipherSuite>>,
    ) -> std::io::Result<Self> {
        let chain = certificate.map(|certificate| {
            let chain =
                CertificateDer::pem_slice_iter(certificate.chain_pem().as_bytes()).map(Result::unwrap).collect();
            (chain, PrivateKeyDer::from_pem_slice(certificate.key_pem().as_bytes()).unwrap())
        });
        let mut provider: CryptoProvider = aws_lc_rs::default_provider();
        provider.cipher_suites = suites.unwrap_or(provider.cipher_suites);
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous));
        let config = match chain {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
            None => config.with_no_client_auth(),
        };
        let name = ServerName::try_from("anyone").unwrap();
        let session = ClientConnection::new(Arc::new(config), name).unwrap();
        let socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut stream = StreamOwned::new(session, socket);
        stream.conn.complete_io(&mut stream.sock)?;
        Ok(RawClient { stream, decoder: Decoder::new(Bounds::NODE, BufferPool::new()) })
    }

    /// Connects, says hello as `node` and waits for the answer.
    pub fn greet(address: SocketAddr, certificate: &NodeCertificate, node: u64) -> std::io::Result<Self> {
        let mut client = Self::connect(address, Some(certificate), None)?;
        client.send(&OutFrame::hello(&hello(node)))?;
        let frame = client.receive()?;
        match frame.head.kind {
            FrameKind::Hello => Ok(client),
            kind => Err(Error::other(format!("answered {kind:?}"))),
        }
    }

    pub fn send(&mut self, frame: &OutFrame) -> std::io::Result<()> {
        self.stream.write_all(&frame.prefix)?;
        self.stream.write_all(&frame.header)?;
        frame.payload.iter().try_for_each(|part| self.stream.write_all(part))
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Returns the next frame; an error where the connection ends first.
    pub fn receive(&mut self) -> std::io::Result<Frame> {
        let mut byte = [0];
        loop {
            if self.stream.read(&mut byte)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if let Some(frame) = self.decoder.decode(&mut &byte[..]).map_err(Error::other)? {
                return Ok(frame);
            }
        }
    }

    /// Reads until the connection ends, passing over frames; false where it does not end in 10 s.
    pub fn ends(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            }
        }
    }

    /// Ends the connection without a word.
    pub fn abort(self) {}
}

/// Reads what a failed or a good hello is answered with.
pub fn failure_text(frame: &Frame) -> String {
    plinth_protocol::Failure::decode(&frame.header).map_or_else(|_| "unreadable".to_string(), |failure| failure.text)
}

/// A callee that breaks rules: it shows a valid certificate, says hello, and answers every request
/// with what `answer` makes of it.
pub fn rogue_server(
    certificate: &NodeCertificate,
    answer: impl Fn(&Frame) -> Vec<u8> + Send + 'static,
) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let chain = CertificateDer::pem_slice_iter(certificate.chain_pem().as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem().as_bytes()).unwrap();
    let said = Hello { node: certificate.node(), peer_incarnation: None, ..hello(0) };
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let session = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let mut stream = StreamOwned::new(session, socket);
        let mut decoder = Decoder::new(Bounds::NODE, BufferPool::new());
        let mut byte = [0];
        while matches!(stream.read(&mut byte), Ok(1)) {
            let Some(frame) = decoder.decode(&mut &byte[..]).unwrap() else { continue };
            let bytes = match frame.head.kind {
                FrameKind::Hello => {
                    let hello = OutFrame::hello(&said);
                    [&hello.prefix[..], &hello.header].concat()
                }
                FrameKind::Request => answer(&frame),
                _ => Vec::new(),
            };
            if stream.write_all(&bytes).is_err() {
                return;
            }
        }
    });
    (address, serving)
}
