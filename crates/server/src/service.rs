//! What a node answers: each method goes to the part that owns it.

#[cfg(test)]
pub mod fake;
#[cfg(test)]
mod tests;

use crate::admission::Admission;
use bytes::Bytes;
use plinth_meta::MetaNode;
use plinth_protocol::frame::FRAME_BYTES;
use plinth_protocol::meta::{AdminReply, AdminRequest, Command, GroupQuery, MetaRequest, NodeReport, Query, Reply};
use plinth_protocol::storage::{StorageAction, StorageRequest};
use plinth_protocol::wire::Wire;
use plinth_protocol::{Epoch, Failure, FailureKind, GROUP_SYSTEM, Method, NodeId};
use plinth_storage::StorageNode;
use plinth_transport::{BoxFuture, Request, Response, Service};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use tokio::time::Instant;

/// Answers operators' requests that concern the process rather than the cluster.
pub trait ProcessControl: Send + Sync + 'static {
    /// Stops or starts a node of a demo, or opens a disk; `None` where the request is not for the process.
    fn control(&self, request: AdminRequest) -> BoxFuture<'static, Result<AdminReply, Failure>>;
}

/// A node's parts, each there once it has started.
#[derive(Default)]
pub struct Parts {
    /// The meta role.
    pub meta: OnceLock<MetaNode>,
    /// The storage role.
    pub storage: OnceLock<StorageNode>,
    /// Admission of nodes that join, renewal of certificates.
    pub admission: OnceLock<Admission>,
    /// The process around the node.
    pub control: OnceLock<Arc<dyn ProcessControl>>,
    /// What the node says of itself.
    pub own: OnceLock<Weak<dyn SelfReport>>,
    /// Whether the node has said that it stops: it answers no ping any more, so that nobody takes it for up again.
    pub leaving: AtomicBool,
}

/// Says what a node knows of itself and of the cluster.
pub trait SelfReport: Send + Sync + 'static {
    /// Makes the report, at once and from memory; with the cluster map where that is newer than `known`.
    fn report(&self, known: Epoch) -> NodeReport;
}

/// The service of one node.
#[derive(Clone, Default)]
pub struct NodeService {
    /// The node's parts.
    pub parts: Arc<Parts>,
}

impl Service for NodeService {
    fn serve(&self, request: Request) -> BoxFuture<'static, Result<Response, Failure>> {
        let parts = self.parts.clone();
        Box::pin(async move { parts.dispatch(request).await })
    }

    fn reply_bytes(&self, method: Method, header: &[u8]) -> usize {
        match method {
            Method::Storage => StorageRequest::decode(header).map_or(0, |request| match request.action {
                StorageAction::Read(read) => usize::from(read.count) * FRAME_BYTES,
                _ => 0,
            }),
            _ => 0,
        }
    }
}

impl Parts {
    async fn dispatch(&self, request: Request) -> Result<Response, Failure> {
        match request.method {
            Method::Ping if self.leaving.load(Ordering::Acquire) => {
                Err(Failure::new(FailureKind::Unavailable, "the node is stopping"))
            }
            Method::Ping => Ok(Response::default()),
            Method::Meta => {
                let meta = started(&self.meta, "metadata")?;
                let asked = MetaRequest::decode(&request.header)?;
                asked.check_caller(request.caller.node, &request.caller.roles)?;
                check_disk(meta, &asked, request.caller.node, request.deadline).await?;
                let header = meta.handle_meta_encoded(asked, request.deadline).await?;
                Ok(Response { header, payload: Vec::new() })
            }
            Method::Raft => {
                let meta = started(&self.meta, "metadata")?;
                meta.handle_raft(request.caller.node, request.header, request.payload).await
            }
            Method::Storage => {
                let header = StorageRequest::decode(&request.header)?;
                header.check_caller(request.caller.node, &request.caller.roles)?;
                let storage = started(&self.storage, "storage")?;
                let (reply, payload) = storage.handle(header, request.payload, request.deadline).await?;
                Ok(Response { header: reply.to_bytes(), payload })
            }
            Method::Admin => self.operate(AdminRequest::decode(&request.header)?, request.deadline).await,
            Method::Join => {
                let admission = started(&self.admission, "admission")?;
                Ok(header_only(&admission.admit(&request.header, request.deadline).await?))
            }
            Method::Certify => {
                let admission = started(&self.admission, "admission")?;
                let Request { caller, certificate, header, deadline, .. } = request;
                Ok(header_only(&admission.renew(&caller, certificate.as_deref(), &header, deadline).await?))
            }
        }
    }

    async fn operate(&self, request: AdminRequest, deadline: Instant) -> Result<Response, Failure> {
        let reply = match request {
            AdminRequest::CertifyOperator(order) => {
                let admission = started(&self.admission, "admission")?;
                AdminReply::Certificate(admission.certify_operator(&order, deadline).await?)
            }
            AdminRequest::StopNode(_)
            | AdminRequest::StartNode(_)
            | AdminRequest::AddDisk(_)
            | AdminRequest::AddDiskFolder(_) => match self.control.get() {
                Some(control) => control.control(request).await?,
                None => return Err(Failure::new(FailureKind::Invalid, "this node's process does not take that order")),
            },
            AdminRequest::Report(known) => {
                let own = self.own.get().and_then(Weak::upgrade);
                let own = own.ok_or_else(|| Failure::new(FailureKind::Unavailable, "the node is starting"))?;
                AdminReply::Report(Box::new(own.report(known)))
            }
            other => started(&self.meta, "metadata")?.handle_admin(other).await?,
        };
        Ok(header_only(&reply))
    }
}

/// Fails with `Denied` where a node speaks of a disk that the map knows at another node.
async fn check_disk(meta: &MetaNode, asked: &MetaRequest, caller: NodeId, deadline: Instant) -> Result<(), Failure> {
    let MetaRequest::Mutate(mutation) = asked else { return Ok(()) };
    let disk = match &mutation.command {
        Command::SetDiskState(set) => set.disk,
        Command::RegisterDisk(record) => record.disk,
        _ => return Ok(()),
    };
    let query = GroupQuery { group: GROUP_SYSTEM, query: Query::Map(None), seen: None };
    match meta.handle_meta(MetaRequest::Query(query), deadline).await? {
        Reply::Map(map) if map.disk(disk).is_some_and(|known| known.node != caller) => {
            Err(Failure::new(FailureKind::Denied, format!("disk {disk} is another node's")))
        }
        _ => Ok(()),
    }
}

fn started<'a, T>(part: &'a OnceLock<T>, role: &str) -> Result<&'a T, Failure> {
    part.get()
        .ok_or_else(|| Failure::new(FailureKind::Unavailable, format!("the {role} part of this node does not serve")))
}

fn header_only(reply: &impl Wire) -> Response {
    Response { header: reply.to_bytes(), payload: Vec::<Bytes>::new() }
}
