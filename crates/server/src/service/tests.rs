//! The dispatch over the real transport: who may order what.

use super::*;
use plinth_protocol::storage::{DeleteFragments, IoClass, ListFragments, ReadFrames};
use plinth_protocol::stripe::{Code, FragmentHeader, StripeRef};
use plinth_protocol::*;
use plinth_transport::{Authority, Call, Credentials, Identity, Link, Peer, Server, ServerConfig, TlsLink};
use std::time::Duration;

const CLUSTER: ClusterId = ClusterId(7);

/// A served node, and the authority that its callers need.
struct Rig {
    authority: Authority,
    server: Server,
}

impl Rig {
    async fn new() -> Rig {
        let authority = Authority::create(CLUSTER, crate::node::wall_clock()).unwrap();
        let credentials = credentials(&authority, 1, &[Role::Meta, Role::Storage]);
        let service = Arc::new(NodeService::default());
        let server = Server::bind("127.0.0.1:0", ServerConfig::new(credentials), service).await.unwrap();
        Rig { authority, server }
    }

    async fn ask(&self, roles: &[Role], method: Method, header: Bytes) -> FailureKind {
        let link = TlsLink::new(credentials(&self.authority, 2, roles));
        let address = self.server.address().to_string();
        let peer = Peer { node: NodeId(1), incarnation: None, address };
        let call = Call { method, header, payload: Vec::new(), deadline: Duration::from_secs(30) };
        link.call(&peer, call).await.expect_err("no part of this node has started").kind
    }
}

fn credentials(authority: &Authority, node: u64, roles: &[Role]) -> Arc<Credentials> {
    let identity =
        Identity { cluster: CLUSTER, node: NodeId(node), roles: roles.to_vec(), incarnation: Incarnation(1) };
    let life = Duration::from_secs(3600);
    let certificate = authority.issue(&identity, life, crate::node::wall_clock()).unwrap();
    Arc::new(Credentials::new(&certificate, authority.certificate_pem(), identity.incarnation).unwrap())
}

/// Every action, each with whether a gateway may order it.
fn actions() -> Vec<(StorageAction, bool)> {
    let fragment = FragmentId { stripe: StripeId::new(WriterId(1), 1, 1), index: 0 };
    let stripe = StripeRef {
        stripe: fragment.stripe,
        pg: PgId(0),
        generation: 1,
        code: Code::new(1, 0),
        payload_bytes: 1,
        fragment_payload_bytes: 1,
        missing: None,
        plain_bytes: None,
        sealing: None,
        pack_offset: None,
    };
    vec![
        (StorageAction::Put(FragmentHeader { fragment, stripe, owner: None, made: 1 }), true),
        (StorageAction::Read(ReadFrames { fragment, first: 0, count: 1 }), true),
        (StorageAction::Delete(DeleteFragments { fragments: vec![fragment] }), true),
        (StorageAction::List(ListFragments { after: None, limit: 1 }), false),
        (StorageAction::Stat(fragment), true),
        (StorageAction::Disk, true),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_storage_node_reads_lists_or_deletes_what_another_keeps() {
    let rig = Rig::new().await;
    let every_role = [Role::Gateway, Role::Meta, Role::Storage, Role::Admin].map(|role| vec![role]);
    for roles in every_role.into_iter().chain([vec![Role::Meta, Role::Storage], vec![Role::Gateway, Role::Storage]]) {
        for (action, gateway_may) in actions() {
            let request = StorageRequest { disk: DiskId(1), incarnation: Incarnation(1), class: IoClass::Read, action };
            let kind = rig.ask(&roles, Method::Storage, request.to_bytes()).await;
            // What is let through finds that the disk's part has not started here.
            let passes = gateway_may && roles.contains(&Role::Gateway);
            let wanted = if passes { FailureKind::Unavailable } else { FailureKind::Denied };
            assert_eq!(kind, wanted, "{:?} by {roles:?}", request.action);
        }
    }
}
